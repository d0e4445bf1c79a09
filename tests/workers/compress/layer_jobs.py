"""Layer jobs on tiny models, also in child processes that are killed.

A child starts from a fork server that has imported this module and computed nothing: a fork of a process in which torch
has computed hangs in OpenMP now and then.
"""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.checkpoint.headers import read_headers
from workers.checkpoint.layouts.table import LAYOUTS
from workers.checkpoint.load import build_skeleton
from workers.compress import pipeline
from workers.compress.activations import Activations
from workers.compress.layerwise import LayerJob
from workers.compress.plan import Wishes, plan_compression
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.formats.swap import quantized_linears
from workers.protocol.messages import CompressResult, JobProgress
from workers.protocol.recipes import GptqRecipe, Override, Recipe
from workers.protocol.specs import CompressSpec

IDS = torch.randint(3, 120, (3, 24), generator=torch.Generator().manual_seed(1))
GPTQ = GptqRecipe(group_size=32)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


@dataclass(kw_only=True)
class TinyJob:
    """One attempt at the layers of a base, finished ones in `folder`."""

    base: Path
    folder: Path
    recipe: Recipe = GPTQ
    layout: str = "gptq"
    overrides: tuple[Override, ...] = ()
    ids: Tensor = field(default_factory=lambda: IDS)
    limit_bytes: int = 2**30
    poll: Callable[[], None] = lambda: None

    def run(self, report: Callable[[JobProgress], None] = lambda _: None) -> StagedLayers:
        """All layers that are not there yet."""
        headers, layout = read_headers(self.base), LAYOUTS[self.layout]
        wishes = Wishes(recipe=self.recipe, layout=layout, overrides=self.overrides)
        plan = plan_compression(build_skeleton(self.base), headers, wishes)
        walk = LayerWalk(self.base, headers, torch.device("cpu"))
        staged = StagedLayers(self.folder, {"seed": 0})
        LayerJob(
            walk=walk,
            plan=plan,
            main=self.recipe,
            layout=layout,
            quantization_config=layout.quantization_config(plan.groups(), plan.ignore),
            staged=staged,
            activations=Activations(
                walk.embed(self.ids), self.folder.with_suffix(".activations"), self.limit_bytes, len(self.ids)
            ),
            report=report,
            poll=self.poll,
        ).run()
        return staged


def compress(
    spec: CompressSpec,
    poll: Callable[[], None] = lambda: None,
    report: Callable[[JobProgress], None] = lambda _: None,
) -> CompressResult:
    """Run a whole job as one attempt of the front end does, on one thread: so it takes as long each time."""
    shutil.rmtree(spec.output_dir, ignore_errors=True)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return pipeline.compress_checkpoint(spec, report, poll)
    finally:
        torch.set_num_threads(num_threads)


def with_exact_products(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with its compressed layers as ordinary linears of what they stand for: nothing else is rounded."""
    for name, layer in quantized_linears(model).items():
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight.data = layer.dequantize()
        if layer.bias is not None:
            linear.bias.data = layer.bias.float()
        model.set_submodule(name, linear)
    return model


def child(target: Callable[..., object], *args: Any) -> BaseProcess:
    """A process that runs target(*args), started."""
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def run_and_die_behind_the_first_layer(base: Path, folder: Path, recipe: Recipe) -> None:
    """For `child`."""

    def die(progress: JobProgress) -> None:
        if progress.done == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    TinyJob(base=base, folder=folder, recipe=recipe).run(die)


def compress_and_time(spec: CompressSpec, seconds_file: Path) -> None:
    """For `child`: notes how much time of a processor the whole job takes."""
    start_s = time.process_time()
    compress(spec)
    seconds_file.write_text(str(time.process_time() - start_s))


def compress_and_die(spec: CompressSpec, seconds: float) -> None:
    """For `child`: the kernel ends the process, as SIGKILL does, when it has had `seconds` of a processor.

    Not by a clock on the wall: where a busy machine is at after some seconds nobody knows.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    compress(spec)
