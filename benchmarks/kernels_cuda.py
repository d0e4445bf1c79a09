"""Each op's kernel on a CUDA device against what it replaces, at the shapes of an 8B and of a 0.5B model.

For every linear of the model, op and number of rows: our Triton kernel, expanding the weight and cuBLAS, the bf16
linear, and torch's and bitsandbytes' ops where they can be had. Weights are random; each call takes the next of several
copies that together are far larger than the L2 cache. Calls are timed as a captured CUDA graph, as the engine runs
them, by device events; the median of the replays counts. `bandwidth_fraction` is the bytes of the stored weight by the
time and the bandwidth of a copy, measured at the start.

    python benchmarks/kernels_cuda.py --out kernels.json
    python benchmarks/kernels_cuda.py --model 8b --op int4 --rows 1 8
    python benchmarks/kernels_cuda.py --model 8b --op int4 codebook --rows 1 16 --sweep

--sweep also times our kernels with other tiles, warps, stages and splits; it is how their constants are chosen.
"""

import argparse
import importlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe_machine
from torch import Tensor
from torch.nn import functional

# as a script, the folder that holds `workers` is not on the path
sys.path.insert(0, str(Path(__file__).parents[1]))

from workers.kernels import cuda, int4_layout, triton_choice

# (out_features, in_features) of fused q, k and v, of o, of gate and up, of down, and of the head
SHAPES = {
    "8b": {
        "qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336),
        "lm_head": (128256, 4096),
    },
    "0.5b": {
        "qkv": (1152, 896), "o": (896, 896), "gate_up": (9728, 896), "down": (896, 4864), "lm_head": (151936, 896),
    },
}  # fmt: skip
GROUP_SIZE = 128
BLOCK_SIZE = 64
# Buffers that are rotated through: several times the 50 MB (H100) or 60 MB (H200) of L2.
ROTATED_BYTES = 2**29
MAX_COPIES = 32
NUM_REPLAYS = 15
# Constants of the Triton modules that --sweep tries; a module without one of them keeps what it has.
SWEEP: dict[str, tuple[int, ...]] = {
    "_BLOCK_BYTES": (32, 64),
    "_BLOCK_OUTPUTS": (32, 64, 128),
    "_NUM_WARPS": (4, 8),
    "_NUM_STAGES": (3, 4, 6),
    "_PROGRAMS_PER_MULTIPROCESSOR": (1, 2, 3, 4),
}

Call = Callable[[Tensor, int], Tensor]


class Contender:
    """One way to make a product: `call(x, copy)`. num_bytes: of one stored weight."""

    def __init__(self, call: Call, num_bytes: int) -> None:
        self.call = call
        self.num_bytes = num_bytes


def num_copies(num_bytes: int) -> int:
    """How many weights of that size to rotate through."""
    return max(2, min(MAX_COPIES, -(-ROTATED_BYTES // num_bytes)))


def stored_bytes(weights: tuple[Tensor, ...]) -> int:
    return sum(part.nbytes for part in weights)


def codes_of(op: str, n: int, k: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """One random weight: the op's arguments between x and bias, and those after it."""
    device = torch.device("cuda")
    if op == "int4":
        num_blocks = -(-n // int4_layout.BLOCK_ROWS)
        shape = (num_blocks, int4_layout.BLOCK_ROWS // 2, k)
        packed = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).transpose(1, 2)
        groups = torch.rand(k // GROUP_SIZE, num_blocks * int4_layout.BLOCK_ROWS, 2, device=device) * 0.01
        return (packed, groups.to(dtype)), (n,)
    if op == "codebook":
        packed = torch.randint(0, 256, (n * k // 2,), dtype=torch.uint8, device=device)
        levels = torch.linspace(-1, 1, 16, device=device)
        return (packed, levels, torch.rand(n * k // BLOCK_SIZE, device=device)), (BLOCK_SIZE, n)
    scale = torch.rand(n, 1, device=device) * 0.01
    if op == "int8":
        return (torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device), scale), ()
    values = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
    return (values, scale), (0, op == "float8_dynamic")


def rotated(op: str, n: int, k: int, dtype: torch.dtype) -> tuple[list[tuple[Tensor, ...]], tuple[Any, ...]]:
    weights, after = codes_of(op, n, k, dtype)
    copies = [weights, *(codes_of(op, n, k, dtype)[0] for _ in range(num_copies(stored_bytes(weights)) - 1))]
    return copies, after


def ours(op: str, n: int, k: int, dtype: torch.dtype) -> dict[str, Contender]:
    """Our kernel, where one is in use for the op, and the expansion that it replaces."""
    copies, after = rotated(op, n, k, dtype)
    name = "float8_linear" if op == "float8_dynamic" else f"{op}_linear"
    expand: Callable[..., Tensor] = getattr(cuda, name)
    num_bytes = stored_bytes(copies[0])
    result = {}
    kernel = triton_choice.find(name)
    if kernel is not None and op != "float8_dynamic":
        product = kernel.product
        result["triton"] = Contender(lambda x, i: product(x, *copies[i % len(copies)], None, *after), num_bytes)
    label = "scaled_mm" if op == "float8_dynamic" and cuda.has_scaled_product() else "expand"
    result[label] = Contender(lambda x, i: expand(x, *copies[i % len(copies)], None, *after), num_bytes)
    return result


def bf16_linear(n: int, k: int, dtype: torch.dtype) -> Contender:
    size = n * k * 2
    weights = [torch.randn(n, k, device="cuda", dtype=dtype) for _ in range(num_copies(size))]
    return Contender(lambda x, i: functional.linear(x, weights[i % len(weights)]), size)


def torch_int4(n: int, k: int, dtype: torch.dtype) -> Contender:
    """torch's tinygemm op; bf16 only."""
    size = n * k // 2
    codes = [
        torch._convert_weight_to_int4pack(torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda"), 8)
        for _ in range(num_copies(size))
    ]
    groups = [torch.rand(k // GROUP_SIZE, n, 2, device="cuda", dtype=dtype) for _ in codes]

    def call(x: Tensor, i: int) -> Tensor:
        return torch._weight_int4pack_mm(x, codes[i % len(codes)], GROUP_SIZE, groups[i % len(codes)])

    return Contender(call, size + groups[0].nbytes)


def torch_int8(n: int, k: int, dtype: torch.dtype) -> Contender:
    size = n * k
    weights = [codes_of("int8", n, k, dtype)[0] for _ in range(num_copies(size))]
    scales = torch.rand(n, device="cuda", dtype=dtype)
    return Contender(lambda x, i: torch._weight_int8pack_mm(x, weights[i % len(weights)][0], scales), size)


def bitsandbytes_nf4(n: int, k: int, dtype: torch.dtype) -> Contender:
    bnb = importlib.import_module("bitsandbytes")
    size = n * k // 2
    pairs = [
        bnb.functional.quantize_4bit(torch.randn(n, k, device="cuda", dtype=dtype), quant_type="nf4")
        for _ in range(num_copies(size))
    ]

    def call(x: Tensor, i: int) -> Tensor:
        packed, state = pairs[i % len(pairs)]
        result: Tensor = bnb.matmul_4bit(x, packed.t(), quant_state=state)
        return result

    return Contender(call, size + n * k // BLOCK_SIZE * 4)


PEERS: dict[str, dict[str, Callable[[int, int, torch.dtype], Contender]]] = {
    "int4": {"torch_int4pack": torch_int4},
    "codebook": {"bitsandbytes": bitsandbytes_nf4},
    "int8": {"torch_int8pack": torch_int8},
    "float8": {},
    "float8_dynamic": {},
}


def seconds_per_call(contender: Contender, x: Tensor) -> float:
    """Median over replays of a graph of calls that go once through all copies."""
    num_calls = num_copies(contender.num_bytes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(2):
            contender.call(x, i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(num_calls):
            contender.call(x, i)
    times = []
    for _ in range(NUM_REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000 / num_calls)
    # the first replay uploads the graph
    return median(times[1:])


def copy_bandwidth_bytes_per_s(num_bytes: int = 2**32) -> float:
    """Bytes read and written per second by a copy on the device, the median of ten."""
    source = torch.randint(0, 2**31 - 1, (num_bytes // 8,), dtype=torch.int64, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * num_bytes / median(times)


def measure(contender: Contender, x: Tensor, bandwidth: float) -> dict[str, Any]:
    try:
        seconds = seconds_per_call(contender, x)
    except (RuntimeError, ValueError, NotImplementedError, *triton_errors()) as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {
        "microseconds": round(seconds * 1e6, 2),
        "bandwidth_fraction": round(contender.num_bytes / seconds / bandwidth, 3),
    }


def triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises for tiles that do not fit, where it is installed."""
    try:
        return (importlib.import_module("triton.errors").TritonError,)
    except ImportError:
        return ()


def settings(op: str) -> Iterator[dict[str, int]]:
    """Every combination of the constants that the op's modules have."""
    modules = swept_modules(op)
    names = [name for name in SWEEP if any(hasattr(module, name) for module in modules)]
    for values in itertools.product(*(SWEEP[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def swept_modules(op: str) -> list[Any]:
    own = {"int8": "triton_bytes", "float8": "triton_bytes"}.get(op, f"triton_{op}")
    return [importlib.import_module(f"workers.kernels.{name}") for name in (own, "triton_split")]


@contextmanager
def constants(op: str, values: dict[str, int]) -> Iterator[None]:
    """The modules' constants changed for a while."""
    places = [(module, name) for module in swept_modules(op) for name in values if hasattr(module, name)]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, values[name])
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def bench_shape(op: str, n: int, k: int, arguments: argparse.Namespace, bandwidth: float) -> Iterator[dict[str, Any]]:
    """One result per number of rows and contender."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[arguments.dtype]
    contenders: dict[str, Contender] = ours(op, n, k, dtype)
    errors: dict[str, str] = {}
    if not arguments.sweep:
        for name, make in {"bf16_linear": bf16_linear, **PEERS[op]}.items():
            try:
                contenders[name] = make(n, k, dtype)
            except (ImportError, AttributeError, RuntimeError, NotImplementedError) as error:
                errors[name] = str(error).splitlines()[0][:200]
    for num_rows in arguments.rows:
        x = torch.randn(num_rows, k, device="cuda").to(dtype)
        head = {"op": op, "n": n, "k": k, "rows": num_rows}
        for name, contender in contenders.items():
            yield {**head, "by": name, **measure(contender, x, bandwidth)}
        for name, error in errors.items():
            yield {**head, "by": name, "error": error}
        if arguments.sweep and "triton" in contenders:
            for values in settings(op):
                with constants(op, values):
                    yield {**head, "by": "triton", "constants": values, **measure(contenders["triton"], x, bandwidth)}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    bandwidth = copy_bandwidth_bytes_per_s()
    results = []
    for model in arguments.model:
        for linear, (n, k) in SHAPES[model].items():
            for op in arguments.op:
                for result in bench_shape(op, n, k, arguments, bandwidth):
                    results.append({"model": model, "linear": linear, **result})
                    # a line each as they come: a run that is cut off has shown what it had
                    print(json.dumps(results[-1]), flush=True)
                torch.cuda.empty_cache()
    return {
        "machine": describe_machine() if shutil.which("git") else {},
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "triton": version_of("triton"),
        "bitsandbytes": version_of("bitsandbytes"),
        "copy_bandwidth_bytes_per_s": round(bandwidth),
        "dtype": arguments.dtype,
        "results": results,
    }


def version_of(package: str) -> str | None:
    try:
        version: str = importlib.import_module(package).__version__
    except ImportError:
        return None
    return version


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times the CUDA kernels; see the docstring of this file.")
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--op", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--dtype", choices=["bf16", "fp16"], default="bf16")
    parser.add_argument("--sweep", action="store_true", help="also time our kernels with other constants")
    parser.add_argument("--out", type=Path, help="also write everything as one JSON file")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("kernels_cuda: torch sees no CUDA device here; run this on a machine with one")
    result = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "results"}))


if __name__ == "__main__":
    main()
