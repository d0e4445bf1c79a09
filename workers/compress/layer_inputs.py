"""What the linears of one layer read: which of them the same tensor, and all of it, sample by sample."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from workers.compress.activations import Activations
from workers.compress.method import Observer
from workers.compress.walk import LayerWalk

Note = Callable[[str, Tensor], object]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """The calibration samples of one layer, run through it as it is at that moment. `poll` raises to cancel."""

    walk: LayerWalk
    index: int
    samples: Activations
    poll: Callable[[], None]

    @property
    def name(self) -> str:
        """The layer's name in the model."""
        return f"{self.walk.path}.{self.index}"

    @property
    def first(self) -> Tensor:
        """The first sample, (1, tokens, hidden)."""
        return self.samples.get(0).to(self.walk.device)

    def run_first(self) -> Tensor:
        """What the layer makes of the first sample."""
        return self.walk.run(self.index, self.first)

    def groups(self, linears: Mapping[str, nn.Module]) -> list[list[str]]:
        """Linears that read the same numbers, in the order of their first calls. One that no sample reaches comes last,
        alone. Samples are run until all linears have been called, as a rule one.
        """
        found: list[list[str]] = []
        for sample in self.samples:
            self.poll()
            left = {module: linears[module] for module in linears if not any(module in group for group in found)}
            if not left:
                break
            calls: dict[str, Tensor] = {}
            with watching_inputs(left, calls.setdefault):
                self.walk.run(self.index, sample.to(self.walk.device))
            # All inputs are alive here, so that one address is one tensor, whatever its views are called.
            by_tensor: dict[tuple[int, int], list[str]] = {}
            for module, inputs in calls.items():
                by_tensor.setdefault((inputs.data_ptr(), inputs.numel()), []).append(module)
            found += by_tensor.values()
        seen = {module for group in found for module in group}
        return [*found, *([module] for module in linears if module not in seen)]

    def observe(self, reading: Mapping[str, Observer], writing: Mapping[str, Observer] | None = None) -> None:
        """Run all samples. reading: module -> what remembers its inputs; writing: its outputs."""
        memories = {**reading, **(writing or {})}

        def note(module: str, values: Tensor) -> None:
            memories[module].add(values.reshape(-1, values.shape[-1]))

        with ExitStack() as watches:
            watches.enter_context(watching_inputs(self._modules(reading), note))
            watches.enter_context(_watching_outputs(self._modules(writing or ()), note))
            for sample in self.samples:
                self.poll()
                self.walk.run(self.index, sample.to(self.walk.device))

    def _modules(self, names: Iterable[str]) -> dict[str, nn.Module]:
        return {name: self.walk.model.get_submodule(name) for name in names}


@contextmanager
def watching_inputs(modules: Mapping[str, nn.Module], note: Note) -> Iterator[None]:
    """Call note(module name, first argument) before one of the modules runs."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args:
                note(name, args[0])

        return hook

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watching_outputs(modules: Mapping[str, nn.Module], note: Note) -> Iterator[None]:
    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            note(name, output)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def family(module: str) -> str:
    """A module's name without its numbers: all experts' gate_proj are one family, and so are all layers'."""
    return _NUMBER.sub("#", module)


def numbers(module: str) -> list[str]:
    """The numbers in a module's name."""
    return _NUMBER.findall(f".{module}")
