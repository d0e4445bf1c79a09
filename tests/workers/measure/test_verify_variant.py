"""A variant is good if its files are those written, it generates, and it is close to its base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.manifest import MANIFEST, Origin, write_manifest
from workers.checkpoint.save import FileRecord, copy_file
from workers.compress.pipeline import compress_checkpoint
from workers.measure.verify import verify_variant
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import JobProgress, VerifyResult
from workers.protocol.specs import CompressSpec, VerifySpec

TEXT = tuple(range(3, 100))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


@pytest.fixture
def variant(base: Path, tmp_path: Path) -> Path:
    spec = CompressSpec(
        base_path=str(base), output_dir=str(tmp_path / "out"), base="tiny", variant="tiny/int8", method="int8"
    )
    compress_checkpoint(spec, lambda progress: None, lambda: None)
    return tmp_path / "out"


def verify(variant: Path, base: Path, **changes: Any) -> VerifyResult:
    fields: dict[str, Any] = {"text_ids": TEXT, "max_kl": 0.05, "device": "cpu", **changes}
    spec = VerifySpec(variant_dir=str(variant), base_path=str(base), **fields)
    return verify_variant(spec, lambda progress: None, lambda: None)


def change_weights(variant: Path, factor: float) -> None:
    """Another variant, with a manifest that fits it."""
    file = variant / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * factor
    save_file(tensors, file, metadata={"format": "pt"})
    (variant / MANIFEST).unlink()
    records: dict[str, FileRecord] = {}
    (variant.parent / "copies").mkdir()
    for path in variant.iterdir():
        records[path.name] = copy_file(path, variant.parent / "copies")
    write_manifest(variant, records, Origin(variant="tiny/int8", base="tiny", base_fingerprint="", recipe={}))


def test_good_variant_is_close_to_its_base(variant: Path, base: Path) -> None:
    result = verify(variant, base)

    assert 0 < result.kl_mean < 1e-4
    assert result.kl_mean <= result.kl_max
    assert result.top1_agreement > 0.9
    assert result.num_tokens == len(TEXT)


def test_text_longer_than_the_context_is_read_in_windows(variant: Path, base: Path) -> None:
    assert verify(variant, base, text_ids=TEXT * 3).num_tokens == 3 * len(TEXT)


def test_distant_variant_fails(variant: Path, base: Path) -> None:
    change_weights(variant, -30.0)

    with pytest.raises(WorkerError, match="nats per token away") as caught:
        verify(variant, base)

    assert caught.value.code is WorkerErrorCode.VERIFICATION_FAILED


def test_nan_fails_even_without_a_bound(variant: Path, base: Path) -> None:
    change_weights(variant, torch.nan)

    with pytest.raises(WorkerError, match="NaN") as caught:
        verify(variant, base, max_kl=torch.inf)

    assert caught.value.code is WorkerErrorCode.VERIFICATION_FAILED


def test_flipped_bit_is_corrupt(variant: Path, base: Path) -> None:
    content = bytearray((variant / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (variant / "model.safetensors").write_bytes(content)

    with pytest.raises(WorkerError, match="SHA-256") as caught:
        verify(variant, base)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_no_text_is_an_invalid_request(variant: Path, base: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        verify(variant, base, text_ids=())

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


def test_every_phase_reports_and_polls(variant: Path, base: Path) -> None:
    spec = VerifySpec(variant_dir=str(variant), base_path=str(base), text_ids=TEXT, max_kl=1.0, device="cpu")
    seen: list[JobProgress] = []
    polls: list[None] = []

    verify_variant(spec, seen.append, lambda: polls.append(None))

    assert list(dict.fromkeys(progress.phase for progress in seen)) == ["hashing", "reading base", "reading variant"]
    assert len(polls) == len(seen)
