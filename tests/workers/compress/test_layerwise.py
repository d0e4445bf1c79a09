"""Layer by layer with calibration: a job that goes on ends as one that was never interrupted."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.headers import read_headers
from workers.compress import method, pipeline
from workers.compress.activations import Activations
from workers.compress.layerwise import CompressedWeight, LayerJob
from workers.compress.plan import plan_compression
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.formats import grid
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import Calibration, GptqRecipe
from workers.protocol.specs import CompressSpec

IDS = torch.randint(3, 120, (3, 24), generator=torch.Generator().manual_seed(1))


class AbsMax:
    """Each input channel's largest magnitude."""

    def __init__(self, in_features: int) -> None:
        self.values = torch.zeros(in_features)

    def add(self, inputs: Tensor) -> None:
        self.values = torch.maximum(self.values, inputs.abs().amax(0))


class ObservingMethod:
    """int8 whose scales depend on the inputs: the smallest method that a wrong activation would change."""

    is_sequential = True

    def observer(self, module: str, in_features: int) -> AbsMax:
        return AbsMax(in_features)

    def compress(self, module: str, weight: Tensor, observed: AbsMax) -> CompressedWeight:
        scale = grid.channel_scales(weight * (1 + observed.values), 8, torch.bfloat16)
        tensors = {"weight": grid.quantize(weight, scale, 8), "weight_scale": scale}
        return CompressedWeight(tensors=tensors, error_before=0.5, error_after=0.25)

    def restore(self, module: str, tensors: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
        return grid.dequantize(tensors["weight"], tensors["weight_scale"])


def run(
    base: Path, folder: Path, report: Callable[[JobProgress], None] = lambda _: None, limit_bytes: int = 2**30
) -> StagedLayers:
    headers = read_headers(base)
    walk = LayerWalk(base, headers, torch.device("cpu"))
    staged = StagedLayers(folder, {"seed": 0})
    activations = Activations(walk.embed(IDS), folder.with_suffix(".activations"), limit_bytes, len(IDS))
    LayerJob(
        walk=walk,
        plan=plan_compression(walk.model, headers, ()),
        method=ObservingMethod(),
        staged=staged,
        activations=activations,
        report=report,
        poll=lambda: None,
    ).run()
    return staged


def hashes(folder: Path) -> list[str]:
    return [line for line in (folder / "progress.jsonl").read_text().splitlines() if line]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_killed_job_continues_behind_its_last_layer_and_ends_the_same(tmp_path: Path, model_type: str) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, num_hidden_layers=3)
    run(base, tmp_path / "whole")
    child = os.fork()
    if child == 0:

        def die(progress: JobProgress) -> None:
            if progress.done == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        run(base, tmp_path / "cut", die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(hashes(tmp_path / "cut")) == 1
    seen: list[JobProgress] = []

    run(base, tmp_path / "cut", seen.append)

    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert {progress.done for progress in seen} == {1, 2}
    assert {progress.total for progress in seen} == {3}


def test_corrupt_layer_is_made_again_and_so_is_everything_behind_it(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", num_hidden_layers=3)
    run(base, tmp_path / "layers")
    before = hashes(tmp_path / "layers")
    file = tmp_path / "layers" / "layer_0001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seen: list[JobProgress] = []

    run(base, tmp_path / "layers", seen.append)

    assert hashes(tmp_path / "layers") == before
    assert {progress.done for progress in seen} == {1, 2}


def test_layers_of_another_plan_are_not_used(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    run(base, tmp_path / "layers")

    assert StagedLayers(tmp_path / "layers", {"seed": 0}).num_finished == 2
    assert StagedLayers(tmp_path / "layers", {"seed": 1}).num_finished == 0
    assert not list((tmp_path / "layers").glob("*.safetensors"))


def test_activations_on_disk_change_nothing(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")

    run(base, tmp_path / "memory")
    run(base, tmp_path / "disk", limit_bytes=1)

    assert hashes(tmp_path / "memory") == hashes(tmp_path / "disk")
    assert len(list((tmp_path / "disk.activations").iterdir())) == len(IDS)
    assert not (tmp_path / "memory.activations").exists()


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompressSpec:
    """A whole calibrated job on a base of four layers."""
    monkeypatch.setitem(method.CALIBRATED, "gptq", (lambda recipe: ObservingMethod(), "int8"))
    base = save_tiny_model(tmp_path / "base", num_hidden_layers=4)
    save_file({"token_ids": IDS.to(torch.int32)}, tmp_path / "ids.safetensors")
    return CompressSpec(
        base_path=str(base),
        output_dir=str(tmp_path / "job" / "out"),
        base="tiny",
        variant="tiny/x",
        method="gptq",
        recipe=GptqRecipe(),
        calibration=Calibration(token_ids_path=str(tmp_path / "ids.safetensors")),
        device="cpu",
    )


def compress(spec: CompressSpec, poll: Callable[[], None] = lambda: None) -> str:
    """Run the job as one attempt of the front end does. Returns the weights' SHA-256."""
    output = Path(spec.output_dir)
    shutil.rmtree(output, ignore_errors=True)
    pipeline.compress_checkpoint(spec, lambda _: None, poll)
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()


def test_job_killed_at_random_instants_ends_with_the_bytes_of_an_uninterrupted_one(spec: CompressSpec) -> None:
    start_s = time.monotonic()
    expected = compress(spec)
    duration_s = time.monotonic() - start_s
    output = Path(spec.output_dir)
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    chance = random.Random(7)
    for _ in range(6):
        shutil.rmtree(output.parent)
        child = os.fork()
        if child == 0:
            compress(spec)
            os._exit(0)
        time.sleep(chance.uniform(0.1, 0.9) * duration_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        assert compress(spec) == expected
        assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_cancel_within_a_layer_keeps_only_finished_layers(spec: CompressSpec) -> None:
    polls = 0

    def poll() -> None:
        nonlocal polls
        polls += 1
        if polls == 40:
            raise WorkerError(WorkerErrorCode.CANCELLED, "cancelled")

    with pytest.raises(WorkerError, match="cancelled"):
        compress(spec, poll)

    assert [path.name for path in Path(spec.output_dir).parent.iterdir()] == ["out.layers"]
