"""The Triton kernels, in Triton's interpreter and through its compiler; and what decides whether they are used.

Interpreter and compiler exclude each other in one process and are chosen by the environment, so each has its own.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.kernels import cuda, ops, triton_choice

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent.relative_to(ROOT)
try:
    TRITON = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
except importlib.metadata.PackageNotFoundError:
    TRITON = (0, 0)


def needs_triton(*version: int) -> pytest.MarkDecorator:
    here = ".".join(map(str, TRITON)) if any(TRITON) else "none"
    return pytest.mark.skipif(version > TRITON, reason=f"needs triton {version[0]}.{version[1]}, {here} is here")


@pytest.mark.parametrize(
    ("cases", "interprets"),
    [
        # the interpreter of 3.6 fails with numpy 2.4: it makes a Python number of an array of one
        pytest.param("triton_cases.py", "1", marks=needs_triton(3, 7), id="interpreted"),
        pytest.param("triton_compile_cases.py", "0", marks=needs_triton(3, 6), id="compiled"),
    ],
)
def test_kernels(cases: str, interprets: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / cases)]
    environment = {**os.environ, "TRITON_INTERPRET": interprets, "TRITON_CACHE_DIR": str(tmp_path)}

    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_importing_ops_imports_no_triton() -> None:
    code = (
        "import sys, torch, workers.kernels.ops as ops\n"
        "x = torch.zeros(1, 32)\n"
        "ops.int8_linear(x, torch.zeros(8, 32, dtype=torch.int8), torch.ones(8, 1), None)\n"
        "assert ops.kernel('int4_linear', torch.device('cuda')) == ops.EMULATED or torch.cuda.is_available()\n"
        "sys.exit('triton' in sys.modules and not torch.cuda.is_available())"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("op", ["int8_linear", "int4_linear", "codebook_linear", "float8_linear"])
def test_kernel_is_named_where_it_is_used(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")

    monkeypatch.setattr(triton_choice, "find", lambda name: None)
    assert ops.kernel(op, device) == ops.EMULATED

    monkeypatch.setattr(triton_choice, "find", lambda name: SimpleNamespace())
    assert ops.kernel(op, device) == f"triton-{op.removesuffix('_linear')}"
    # a kernel multiplies in the activations' dtype
    assert ops.product_dtype(op, device) is torch.float32


def fake(product: Any, takes: bool = True) -> SimpleNamespace:
    """A kernel of int8_linear."""

    def sample(device: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
        weight = torch.randint(-127, 128, (256, 512), dtype=torch.int8, generator=generator)
        return torch.randn(1, 512, generator=generator).to(torch.bfloat16), weight, torch.ones(256, 1), None

    return SimpleNamespace(sample=sample, takes=lambda *arguments: takes, product=product)


@pytest.mark.parametrize(
    ("change", "passes"),
    [(lambda y: y, True), (lambda y: y * 1.05, False), (lambda y: y * torch.nan, False), (lambda y: y.roll(1), False)],
    ids=["right", "scale-off", "nan", "shifted"],
)
def test_wrong_kernel_fails_the_check(change: Any, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_choice, "is_worth_it", lambda op, fallback: True)
    kernel = fake(lambda *arguments: change(cuda.int8_linear(*arguments)))

    assert triton_choice.passes_check(kernel, "int8_linear", torch.device("cpu")) is passes


@pytest.mark.parametrize("is_fast", [True, False])
def test_slow_kernel_fails_the_check(is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        triton_choice, "is_worth_it", lambda op, fallback: bool(torch.equal(op(), fallback())) and is_fast
    )

    assert triton_choice.passes_check(fake(cuda.int8_linear), "int8_linear", torch.device("cpu")) is is_fast


@pytest.mark.parametrize("takes", [True, False])
def test_plain_torch_takes_what_the_kernel_does_not(takes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = torch.full((1, 2), 7.0)
    monkeypatch.setattr(triton_choice, "find", lambda op: fake(lambda *arguments: marker, takes))
    weight, x = torch.ones(2, 4, dtype=torch.int8), torch.ones(1, 4)

    result: Tensor = triton_choice.implementation("int8_linear")(x, weight, torch.ones(2, 1), None)

    assert torch.equal(result, marker if takes else torch.full((1, 2), 4.0))


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has CUDA; no choice made before or here is kept."""
    triton_choice.find.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", None)
    error = type("TritonError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(errors=SimpleNamespace(TritonError=error)))


@pytest.fixture(autouse=True)
def _forget_choices() -> Any:
    yield
    getattr(triton_choice.find, "cache_clear", lambda: None)()


@pytest.mark.usefixtures("on_cuda")
def test_machine_without_triton_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)

    assert triton_choice.find("int4_linear") is None
    assert "triton is not installed" in caplog.text


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("kind", ["compiler", "triton"])
def test_kernel_that_cannot_be_built_is_logged(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError if kind == "compiler" else sys.modules["triton"].errors.TritonError

    def fail(*arguments: Any) -> bool:
        raise error("Failed to find C compiler")

    monkeypatch.setattr(triton_choice.importlib, "import_module", lambda name: fake(None))
    monkeypatch.setattr(triton_choice, "passes_check", fail)

    assert triton_choice.find("int4_linear") is None
    assert "Failed to find C compiler" in caplog.text


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("passes", [True, False])
def test_check_decides_once(passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    kernel = fake(None)
    monkeypatch.setattr(triton_choice.importlib, "import_module", lambda name: kernel)
    monkeypatch.setattr(triton_choice, "passes_check", lambda *arguments: asked.append(arguments) or passes)

    found = [triton_choice.find("int4_linear") for _ in range(3)]

    assert found == [kernel if passes else None] * 3
    assert len(asked) == 1


def test_ops_without_kernel_are_not_looked_for() -> None:
    assert triton_choice.find("grid_linear") is None


def test_scaled_product_is_for_cuda_only() -> None:
    values = torch.zeros(16, 32).to(torch.float8_e4m3fn)

    assert not cuda.takes_scaled(torch.zeros(1, 32, dtype=torch.bfloat16), values, 0)
