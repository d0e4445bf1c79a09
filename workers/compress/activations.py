"""Hidden states of all calibration samples between two layers: in memory, or in files when they are too many."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor


class Activations:
    """A list of fp32 tensors of one shape, each read and replaced in turn. Above limit_bytes they live in `folder`.

    The folder is scratch: nothing in it outlives a job, because a resumed one computes its hidden states again.
    """

    def __init__(self, samples: Iterable[Tensor], folder: Path, limit_bytes: int, num_samples: int) -> None:
        self._tensors: list[Tensor | None] = []
        self._folder = folder
        self._shape: tuple[int, ...] = ()
        self._limit_bytes = limit_bytes
        self._num_samples = num_samples
        for number, sample in enumerate(samples):
            self._shape = tuple(sample.shape)
            self._tensors.append(None)
            self.put(number, sample)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def is_spilled(self) -> bool:
        """True if the samples together are above the limit."""
        return 4 * math.prod(self._shape) * self._num_samples > self._limit_bytes

    def __iter__(self) -> Iterator[Tensor]:
        return (self.get(number) for number in range(len(self)))

    def get(self, number: int) -> Tensor:
        """One sample's hidden states."""
        held = self._tensors[number]
        if held is not None:
            return held
        raw = bytearray(self._file(number).read_bytes())
        return torch.frombuffer(raw, dtype=torch.float32).reshape(self._shape)

    def put(self, number: int, sample: Tensor) -> None:
        """Replace one sample's hidden states."""
        values = sample.detach().to("cpu", torch.float32).contiguous()
        if not self.is_spilled:
            self._tensors[number] = values
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(number).write_bytes(values.numpy().tobytes())

    def _file(self, number: int) -> Path:
        return self._folder / f"activations_{number:05d}.bin"
