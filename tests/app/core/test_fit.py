"""Estimates of memory."""

import os

import psutil
import pytest

from app.core import fit

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


def test_bytes_that_come_back_are_those_that_no_other_process_shares() -> None:
    own = fit.private_bytes(os.getpid())

    assert 0 < own <= psutil.Process().memory_info().rss
    assert fit.private_bytes(2**22 + 1) == 0, "no process has this id"


@pytest.mark.parametrize(("name", "key"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_device_has_one_key_whatever_it_is_called(name: str, key: str) -> None:
    assert fit.device_key(name) == key
