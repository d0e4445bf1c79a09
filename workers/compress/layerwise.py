"""Compression of a model larger than memory by methods that look at activations: one decoder layer at a time.

Each layer sees what the compressed layers before it make of the calibration samples. A finished layer is read back from
disk before the samples run through it, so an interrupted job that goes on computes with the same numbers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workers.compress.activations import Activations
from workers.compress.plan import CompressionPlan
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.device import memory_used_bytes
from workers.protocol.messages import JobProgress


class Observer(Protocol):
    """What a method remembers of one linear's inputs."""

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in_features), fp32, of one sample."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedWeight:
    """The tensors that stand for a weight, by the last part of their names, and the error of its outputs."""

    tensors: dict[str, Tensor]
    error_before: float
    error_after: float


class CalibratedMethod(Protocol):
    """Chooses a weight's numbers by what its inputs look like. The same inputs give the same numbers.

    is_sequential: linears that run later in a layer see what the compressed earlier ones make.
    """

    is_sequential: bool

    def observer(self, module: str, in_features: int) -> Observer:
        """A new, empty memory for the inputs of the linears that read what `module` reads."""
        ...

    def compress(self, module: str, weight: Tensor, observed: Observer) -> CompressedWeight:
        """weight: (N, K), fp32."""
        ...

    def restore(self, module: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        """The weight that the stored tensors stand for, (N, K), fp32."""
        ...


@dataclass(slots=True, kw_only=True)
class LayerJob:
    """One walk over all layers. `poll` raises to cancel; it is called between modules and between samples."""

    walk: LayerWalk
    plan: CompressionPlan
    method: CalibratedMethod
    staged: StagedLayers
    activations: Activations
    report: Callable[[JobProgress], None]
    poll: Callable[[], None]
    started_at_s: float = field(default_factory=time.monotonic)
    _num_resumed: int = 0

    def run(self) -> None:
        """Compress every layer that is not finished yet. Raises WorkerError, OSError, or what `poll` raises."""
        self._num_resumed = self.staged.num_finished
        num_layers = len(self.walk.layers)
        for index in range(num_layers):
            targets = self._targets(index)
            if index >= self.staged.num_finished:
                with self.walk.layer(index) as layer:
                    tensors, note = self._compress(index, layer, targets)
                self.staged.save(tensors, note)
            if index + 1 < num_layers:
                self._advance(index, targets)

    def _compress(
        self, index: int, layer: nn.Module, targets: dict[str, nn.Linear]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All new tensors of a layer by their final names, and each module's errors."""
        tensors: dict[str, Tensor] = {}
        errors: dict[str, list[float]] = {}
        groups = self._groups(index, targets)
        stages = [[group] for group in groups] if self.method.is_sequential else [groups]
        for stage in stages:
            for group, observed in zip(stage, self._observe(index, stage, targets), strict=True):
                for module in group:
                    start_s = time.monotonic()
                    linear = targets[module]
                    made = self.method.compress(module, linear.weight, observed)
                    shape = (linear.out_features, linear.in_features)
                    linear.weight.copy_(self.method.restore(module, made.tensors, shape))
                    stored = self._stored(module)
                    tensors |= {f"{stored}.{last}": values.cpu() for last, values in made.tensors.items()}
                    errors[module] = [made.error_before, made.error_after]
                    self._tell(index, module, made, time.monotonic() - start_s)
        return tensors, {"errors": errors}

    def _groups(self, index: int, targets: dict[str, nn.Linear]) -> list[list[str]]:
        """Linears that receive the same input object, in the order of their first calls. One that is never called by
        the first sample sees no data at all and comes last, alone.
        """
        calls: dict[int, list[str]] = {}
        alive: list[Tensor] = []
        seen: set[str] = set()

        def note(module: str, inputs: Tensor) -> None:
            if module not in seen:
                seen.add(module)
                # Held until the end: a freed tensor's id may be given to another one.
                alive.append(inputs)
                calls.setdefault(id(inputs), []).append(module)

        with _watching(targets, note):
            self.walk.run(index, self.activations.get(0).to(self.walk.device))
        return [*calls.values(), *([module] for module in targets if module not in seen)]

    def _observe(self, index: int, groups: list[list[str]], targets: dict[str, nn.Linear]) -> list[Observer]:
        """Run all samples through the layer as it is now; one memory per group."""
        observers = {group[0]: self.method.observer(group[0], targets[group[0]].in_features) for group in groups}

        def note(module: str, inputs: Tensor) -> None:
            observers[module].add(inputs.reshape(-1, inputs.shape[-1]))

        with _watching({module: targets[module] for module in observers}, note):
            for sample in self.activations:
                self.poll()
                self.walk.run(index, sample.to(self.walk.device))
        return list(observers.values())

    def _advance(self, index: int, targets: dict[str, nn.Linear]) -> None:
        """Replace every sample's hidden states by what the finished layer makes of them."""
        tensors = self.staged.tensors(index)
        # Norms and biases that the method has changed; the compressed weights are restored below.
        changed = {name: held for name, held in tensors.items() if name not in self.plan.targets}
        with self.walk.layer(index, changed), torch.inference_mode():
            for module, linear in targets.items():
                prefix = self._stored(module) + "."
                own = {name.removeprefix(prefix): held for name, held in tensors.items() if name.startswith(prefix)}
                shape = (linear.out_features, linear.in_features)
                linear.weight.copy_(self.method.restore(module, own, shape))
            for number in range(len(self.activations)):
                self.poll()
                sample = self.activations.get(number).to(self.walk.device)
                self.activations.put(number, self.walk.run(index, sample))

    def _targets(self, index: int) -> dict[str, nn.Linear]:
        """The layer's linears that are compressed, by module name."""
        prefix = f"{self.walk.path}.{index}."
        found: dict[str, nn.Linear] = {}
        for module in self.plan.targets.values():
            if module.startswith(prefix):
                linear = self.walk.model.get_submodule(module)
                assert isinstance(linear, nn.Linear), "planned on the same skeleton"
                found[module] = linear
        return found

    def _stored(self, module: str) -> str:
        return next(name for name, target in self.plan.targets.items() if target == module).removesuffix(".weight")

    def _tell(self, index: int, module: str, made: CompressedWeight, seconds: float) -> None:
        num_layers = len(self.walk.layers)
        num_done = index - self._num_resumed
        elapsed_s = time.monotonic() - self.started_at_s
        self.report(
            JobProgress(
                phase="compressing",
                done=index,
                total=num_layers,
                unit=module,
                error=made.error_after,
                error_before=made.error_before,
                error_after=made.error_after,
                seconds=seconds,
                eta_s=elapsed_s / num_done * (num_layers - index) if num_done else None,
                rss_bytes=memory_used_bytes(torch.device("cpu")),
            )
        )
        self.poll()


@contextmanager
def _watching(linears: dict[str, nn.Linear], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call note(module name, input) whenever one of the linears runs."""

    def hook_of(module: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: note(module, args[0])

    handles = [linear.register_forward_pre_hook(hook_of(module)) for module, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
