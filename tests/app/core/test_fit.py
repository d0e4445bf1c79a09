"""Estimates of memory, and the refusal of what does not fit."""

import pytest

from app.core import fit
from app.errors import DoesNotFit

GIB = 2**30


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [("bf16", "fp32", 2 * GIB), ("bf16", "bf16", GIB), ("fp32", "fp16", GIB // 2), ("fp64", "fp32", GIB // 2)],
)
def test_cast_changes_the_bytes_with_the_width_of_the_dtype(stored: str, dtype: str, expected: int) -> None:
    assert fit.cast_bytes(GIB, stored, dtype) == expected


@pytest.mark.parametrize(
    ("stored", "has_bf16", "expected"),
    [
        ("bf16", True, "bf16"),
        ("bf16", False, "fp32"),
        ("fp16", True, "bf16"),
        ("fp16", False, "fp32"),
        ("fp32", True, "fp32"),
    ],
)
def test_auto_dtype_on_a_cpu(monkeypatch: pytest.MonkeyPatch, stored: str, has_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(fit, "_cpu_has_fast_bf16", lambda: has_bf16)

    assert fit.auto_dtype(stored, "cpu") == expected


def test_auto_dtype_on_a_gpu_is_the_stored_one() -> None:
    assert fit.auto_dtype("fp16", "cuda:1") == "fp16"


def test_refusal_names_needed_and_free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda: 3 * GIB)

    fit.check_fit("a/fp32", 2 * GIB, promised_bytes=GIB)
    with pytest.raises(DoesNotFit) as error:
        fit.check_fit("a/fp32", 2 * GIB + 1, promised_bytes=GIB)

    assert error.value.status == 507
    assert f"{2 * GIB + 1:,}" in error.value.message
    assert f"{2 * GIB:,} are free" in error.value.message
