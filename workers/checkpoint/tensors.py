"""Reading single tensors of a checkpoint by their checked headers, and tensors as bytes for writing."""

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.checkpoint.headers import TensorHeader
from workers.protocol.errors import WorkerError, WorkerErrorCode

_CHUNK_BYTES = 16 * 2**20

TORCH_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I8": torch.int8,
    "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_tensor(header: TensorHeader) -> Tensor:
    """One tensor in memory of its own, on the CPU, in its stored dtype."""
    buffer = bytearray(header.num_bytes)
    with header.file.open("rb", buffering=0) as stream:
        stream.seek(header.start)
        view = memoryview(buffer)
        while view and (count := stream.readinto(view)):
            view = view[count:]
    if view:
        raise _cut_short(header)
    flat = torch.frombuffer(buffer, dtype=TORCH_DTYPES[header.dtype]) if buffer else torch.empty(0)
    return flat.to(TORCH_DTYPES[header.dtype]).reshape(header.shape)


def raw_chunks(header: TensorHeader) -> Iterator[bytes]:
    """The stored bytes of a tensor, in pieces of a few MiB: for copying without understanding."""
    remaining = header.num_bytes
    with header.file.open("rb") as stream:
        stream.seek(header.start)
        while remaining:
            chunk = stream.read(min(_CHUNK_BYTES, remaining))
            if not chunk:
                raise _cut_short(header)
            remaining -= len(chunk)
            yield chunk


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor as safetensors stores them (row-major, little-endian)."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def _cut_short(header: TensorHeader) -> WorkerError:
    return WorkerError(
        WorkerErrorCode.VARIANT_CORRUPT, f"{header.file.name} ends inside tensor {header.name!r}; fetch it again"
    )
