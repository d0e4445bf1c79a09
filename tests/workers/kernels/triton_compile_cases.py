"""The Triton kernels compiled for GPUs that are not here, by the assembler that Triton brings along: no spills.

Run by test_triton.py, in a process of its own.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from workers.kernels import triton_bytes, triton_codebook, triton_int4, triton_split

# Arguments that change from call to call; the others are multiples of 16 in every model, and compiled for that.
_VARYING = {"num_rows", "steps_per_split", "num_splits"}
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

INT4 = {"GROUP_SIZE": 128, "HALF": 32, "BLOCK_BYTES": 64, "STEP": 128, "HAS_PTX": True, "column_stride": 1}
CODEBOOK = {"BLOCK_SIZE": 64, "BLOCK_OUTPUTS": 64, "STEP": 64, "HAS_PTX": True}
BYTES = {"TILE": 0, "BLOCK_OUTPUTS": 64, "STEP": 128}
# kernel, its pointers' types (x: the dtype of x), its constants
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "int4": (triton_int4._int4_sums, {"packed_ptr": "u8", "scale_ptr": "x"}, INT4),
    "codebook": (
        triton_codebook._codebook_sums, {"packed_ptr": "u8", "codebook_ptr": "fp32", "absmax_ptr": "fp32"}, CODEBOOK,
    ),
    "int8": (triton_bytes._byte_sums, {"value_ptr": "i8", "scale_ptr": "fp32"}, BYTES),
    "float8": (triton_bytes._byte_sums, {"value_ptr": "fp8e4nv", "scale_ptr": "fp32"}, BYTES),
    "float8-tile": (triton_bytes._byte_sums, {"value_ptr": "fp8e4nv", "scale_ptr": "fp32"}, {**BYTES, "TILE": 128}),
}  # fmt: skip


def compile_for(capability: int, kernel: Any, pointers: dict[str, str], constants: dict[str, Any]) -> Any:
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = f"*{pointers[name]}" if name in pointers else "i32"
        if name not in _VARYING:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": triton_int4._NUM_WARPS, "num_stages": triton_int4._NUM_STAGES}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("block_rows", triton_split._BLOCK_ROWS)
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp16")])
@pytest.mark.parametrize("name", list(KERNELS))
def test_compiles_to_tensor_core_products_without_spills(
    name: str, capability: int, dtype: str, block_rows: int, tmp_path: Path
) -> None:
    kernel, pointers, constants = KERNELS[name]
    if "float8" in name and capability < 89:
        pytest.skip("no 8-bit floats before sm_89")
    types = {part: dtype if kind == "x" else kind for part, kind in pointers.items()}

    compiled = compile_for(
        capability, kernel, {**types, "x_ptr": dtype, "partial_ptr": "fp32"}, {**constants, "BLOCK_ROWS": block_rows}
    )

    # not wgmma: with other instructions for other numbers of rows, a row's sum could depend on the batch
    assert re.search(r"\bmma\.sync\.aligned\.m16n8k16", compiled.asm["ptx"])
    assert "wgmma" not in compiled.asm["ptx"]
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([_CUOBJDUMP, "-res-usage", binary], capture_output=True, text=True, check=True)
    assert re.search(r"STACK:0\b.*LOCAL:0\b", usage.stdout + usage.stderr), usage.stdout


def test_sum_of_splits_compiles() -> None:
    pointers = {"partial_ptr": "fp32", "bias_ptr": "bf16", "out_ptr": "bf16"}

    compiled = compile_for(90, triton_split._sum_splits, pointers, {"HAS_BIAS": True, "BLOCK": triton_split._SUM_BLOCK})

    assert "atom" not in compiled.asm["ptx"]
