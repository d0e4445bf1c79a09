"""transformers with the compressed-tensors package reads our folders and gives our numbers. Needs that package."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.load import load_model
from workers.compress.pipeline import compress_checkpoint
from workers.formats.swap import quantized_linears
from workers.protocol.specs import CompressSpec

pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors accelerate to run this")


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_compressed_tensors_restores_the_same_weights(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    spec = CompressSpec(
        base_path=str(base), output_dir=str(tmp_path / "out"), base="tiny", variant="tiny/int8", method="int8"
    )
    compress_checkpoint(spec, lambda progress: None, lambda: None)
    ours = load_model(
        tmp_path / "out", dtype="fp32", device=torch.device("cpu"), on_progress=lambda done, total: None
    ).model
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(3, 60)[None]

    with torch.inference_mode():
        expected, result = theirs(ids).logits, ours(ids).logits

    for name, layer in quantized_linears(ours).items():
        # the package decompresses a layer in place in its first forward
        assert torch.equal(theirs.get_submodule(name).weight, layer.dequantize())
    assert (result - expected).square().mean().sqrt() <= 2**-5 * expected.std()
