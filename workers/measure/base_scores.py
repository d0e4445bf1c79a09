"""A base's logits on a text: with the whole model in memory where it fits, else one layer at a time.

So a variant can be compared with a base that is larger than the machine. Layer by layer everything is fp32.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoint.headers import CheckpointHeaders, read_headers
from workers.checkpoint.load import load_model
from workers.compress.walk import LayerWalk
from workers.device import memory_free_bytes
from workers.measure.quality import window_logits
from workers.protocol.specs import DtypeName

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
# Activations and what the allocator wastes.
_MARGIN = 1.2
# fp16 and bf16 become fp32 on a CPU that does not multiply them.
_LARGEST_BYTES = 4


def base_logits(
    folder: Path, windows: Sequence[Tensor], *, dtype: DtypeName, device: torch.device, on_progress: Progress
) -> Iterator[Tensor]:
    """One (T, V) tensor for each window of token ids (T,), int64, each read from an empty context.

    on_progress: bytes while the model is read, layers while it is walked. Raises what loading or walking raises.
    """
    headers = read_headers(folder)
    needed_bytes = headers.num_parameters * _LARGEST_BYTES * _MARGIN
    if needed_bytes <= memory_free_bytes(device):
        yield from _logits_of_whole(folder, windows, dtype, device, on_progress)
    else:
        logger.info("the base needs about %d bytes, more than are free: it is read layer by layer", needed_bytes)
        yield from logits_by_layer(folder, headers, windows, device, on_progress)


def _logits_of_whole(
    folder: Path, windows: Sequence[Tensor], dtype: DtypeName, device: torch.device, on_progress: Progress
) -> Iterator[Tensor]:
    model = load_model(folder, dtype=dtype, device=device, on_progress=on_progress).model
    yield from window_logits(model, windows)
    # Modules point at each other in circles: only a collection frees the base before the variant comes.
    del model
    gc.collect()


@torch.inference_mode()
def logits_by_layer(
    folder: Path, headers: CheckpointHeaders, windows: Sequence[Tensor], device: torch.device, on_progress: Progress
) -> Iterator[Tensor]:
    """As `base_logits`, with memory for one layer, the hidden states of all windows, and the largest other tensor.

    Raises WorkerError (unsupported_model) for a model whose layers cannot be walked.
    """
    walk = LayerWalk(folder, headers, device)
    lengths = sorted({len(ids) for ids in windows})
    hidden: dict[int, Tensor] = {}
    done = 0
    # A walk learns how layers are called from one length of text.
    for length in lengths:
        numbers = [number for number, ids in enumerate(windows) if len(ids) == length]
        embedded = walk.embed(torch.stack([windows[number] for number in numbers]))
        hidden |= dict(zip(numbers, embedded, strict=True))
        for index in range(len(walk.layers)):
            with walk.layer(index):
                for number in numbers:
                    hidden[number] = walk.run(index, hidden[number])
            done += 1
            on_progress(done, len(lengths) * len(walk.layers))
    yield from walk.logits((ids, hidden.pop(number)) for number, ids in enumerate(windows))
