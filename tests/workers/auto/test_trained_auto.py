"""On trained models a variant of `auto` is at least as close to its base as the uniform one of the same bytes."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from app import embedded
from workers.auto.search import compress_within_budget
from workers.compress.pipeline import compress_checkpoint
from workers.measure.comparison import measure_variant
from workers.protocol.recipes import AutoRecipe, Calibration, GptqRecipe, Recipe
from workers.protocol.specs import CompressSpec, MeasureSpec

FOLDER = os.environ.get("SLIMSERVE_TEST_MODELS")
# name -> group size that divides all rows
MODELS = {"slimstory": 32, "stories260K": -1, "babyllama105": 32}
WINDOW = 256


def base_of(name: str) -> Path:
    if name == "slimstory":
        return embedded.model_path()
    folder = Path(FOLDER or "") / name
    if FOLDER is None or not folder.is_dir():
        pytest.skip(f"SLIMSERVE_TEST_MODELS names no folder with {name}")
    return folder


def save_windows(base: Path, text: str, file: Path, first: int, count: int) -> None:
    """Windows first to first + count of a text."""
    ids = Tokenizer.from_file(str(base / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    rows = torch.tensor(ids[first * WINDOW : (first + count) * WINDOW], dtype=torch.int32).reshape(-1, WINDOW)
    save_file({"token_ids": rows}, file)


@pytest.mark.parametrize("num_bits", [3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_chosen_bits_are_at_least_as_good_as_uniform_ones(tmp_path: Path, name: str, num_bits: int) -> None:
    base, group_size = base_of(name), MODELS[name]
    save_windows(base, embedded.calibration_text(), tmp_path / "ids.safetensors", 0, 16)
    save_windows(base, embedded.calibration_text(), tmp_path / "heldout.safetensors", 16, 8)
    text = tmp_path / "text.safetensors"
    ids = Tokenizer.from_file(str(base / "tokenizer.json")).encode(embedded.heldout_text()).ids[: 24 * WINDOW]
    save_file({"token_ids": torch.tensor([ids], dtype=torch.int32)}, text)

    def spec(recipe: Recipe, output: str) -> CompressSpec:
        return CompressSpec(
            base_path=str(base),
            output_dir=str(tmp_path / output),
            base="base",
            variant="base/x",
            method="x",
            recipe=recipe,
            layout="pack-quantized",
            calibration=Calibration(
                token_ids_path=str(tmp_path / "ids.safetensors"), heldout_ids_path=str(tmp_path / "heldout.safetensors")
            ),
            device="cpu",
        )

    def divergence(output: str) -> float:
        measured = measure_variant(
            MeasureSpec(
                variant_dir=str(tmp_path / output),
                token_ids_path=str(text),
                window=WINDOW,
                stride=WINDOW,
                base_path=str(base),
                base_fingerprint=name,
                cache_dir=str(tmp_path / "references"),
                top_k=4096,
                device="cpu",
            ),
            lambda _: None,
            lambda: None,
        )
        assert measured.kl_mean is not None
        return measured.kl_mean

    uniform = compress_checkpoint(
        spec(GptqRecipe(num_bits=num_bits, group_size=group_size), "uniform"),  # type: ignore[arg-type]
        lambda _: None,
        lambda: None,
    )
    chosen = compress_within_budget(
        spec(AutoRecipe(max_bytes=uniform.weight_bytes, group_size=group_size), "chosen"), lambda _: None, lambda: None
    )

    assert chosen.weight_bytes <= uniform.weight_bytes
    assert divergence("chosen") <= divergence("uniform")
