"""Safetensors headers, read and checked in plain Python without touching a weight.

A file is 8 bytes of length (u64 little-endian), that many bytes of JSON, then the tensors back to back. Readers trust
the JSON, so everything it says is checked here first: offsets inside the file, no overlap, dtype x shape = bytes.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.protocol.errors import WorkerError, WorkerErrorCode

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The same bound as the safetensors library.
MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_MAX_RANK = 16

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """One tensor: dtype as safetensors spells it, and where its `num_bytes` bytes start in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeaders:
    """All tensors of a folder, in the order in which they lie on disk. digest: SHA-256 over the headers' bytes."""

    tensors: dict[str, TensorHeader]
    files: tuple[Path, ...]
    digest: str

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(tensor.num_elements for tensor in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_headers(folder: Path) -> CheckpointHeaders:
    """Read and check the headers of every weight file of a checkpoint folder.

    Raises WorkerError: unsafe_checkpoint for names that leave the folder and for absurd headers, variant_corrupt for
    files that are missing, cut short or inconsistent.
    """
    files = _weight_files(folder)
    tensors: dict[str, TensorHeader] = {}
    digest = hashlib.sha256()
    for file in files:
        raw, found = read_header(file)
        digest.update(raw)
        for name, tensor in found.items():
            if name in tensors:
                raise _corrupt(file, f"tensor {name!r} is also in {tensors[name].file.name}")
            tensors[name] = tensor
    if (folder / SINGLE_FILE) not in files:
        _check_index(folder, tensors)
    return CheckpointHeaders(tensors=tensors, files=files, digest=digest.hexdigest())


def read_header(file: Path) -> tuple[bytes, dict[str, TensorHeader]]:
    """The header's bytes and the tensors of one file, in order of their offsets. Raises as `read_headers`."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(prefix, "little")
            if len(prefix) == _LENGTH_BYTES and length > MAX_HEADER_BYTES:
                raise WorkerError(
                    WorkerErrorCode.UNSAFE_CHECKPOINT,
                    f"{file.name}: its header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed",
                )
            if len(prefix) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
                raise _corrupt(file, f"the file ends inside its header (it has {size} bytes)")
            raw = stream.read(length)
    except OSError as error:
        raise _corrupt(file, f"cannot be read ({error.strerror})") from error
    return raw, _parse_header(file, raw, data_start=_LENGTH_BYTES + length, data_bytes=size - _LENGTH_BYTES - length)


def _parse_header(file: Path, raw: bytes, *, data_start: int, data_bytes: int) -> dict[str, TensorHeader]:
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "its header is not a JSON object of tensors") from error
    if not isinstance(entries, dict):
        raise _corrupt(file, "its header is not a JSON object of tensors")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _corrupt(file, "its __metadata__ is not an object of strings")
    tensors = [_parse_entry(file, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            problem = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise _corrupt(file, f"tensor {tensor.name!r} {problem}")
        position += tensor.num_bytes
    if position != data_start + data_bytes:
        raise _corrupt(file, f"its header describes {position - data_start} bytes of tensors, it has {data_bytes}")
    return {tensor.name: tensor for tensor in tensors}


def _parse_entry(file: Path, name: str, entry: Any, data_start: int) -> TensorHeader:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _corrupt(file, f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _corrupt(file, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_RANK:
        raise _corrupt(file, f"tensor {name!r} has a shape that is not a short list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(file, f"tensor {name!r} has data_offsets that are not [begin, end]")
    num_bytes = offsets[1] - offsets[0]
    if math.prod(shape) * BITS[dtype] != num_bytes * 8:
        raise _corrupt(file, f"tensor {name!r} of {dtype} {shape} cannot have {num_bytes} bytes")
    return TensorHeader(
        name=name, dtype=dtype, shape=tuple(shape), file=file, start=data_start + offsets[0], num_bytes=num_bytes
    )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights; the single file wins over an index, as in transformers."""
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    if not (folder / INDEX_FILE).is_file():
        raise WorkerError(
            WorkerErrorCode.VARIANT_CORRUPT,
            f"{folder.name} has neither {SINGLE_FILE} nor {INDEX_FILE}; save the model as safetensors",
        )
    names = sorted(set(_weight_map(folder).values()))
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or name.startswith(".") or not name.endswith(".safetensors"):
            raise WorkerError(
                WorkerErrorCode.UNSAFE_CHECKPOINT,
                f"{INDEX_FILE} names the file {name!r}; shards must be plain names of .safetensors files beside it",
            )
        if not (folder / name).is_file():
            raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, f"{name} is named by {INDEX_FILE} and is not there")
    return tuple(folder / name for name in names)


def _weight_map(folder: Path) -> dict[str, str]:
    index = folder / INDEX_FILE
    try:
        if index.stat().st_size > MAX_HEADER_BYTES:
            raise _corrupt(index, f"is over {MAX_HEADER_BYTES} bytes")
        weight_map = json.loads(index.read_bytes()).get("weight_map")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise _corrupt(index, "is not a JSON object") from error
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise _corrupt(index, "has no weight_map from tensor names to file names")
    return weight_map


def _check_index(folder: Path, tensors: dict[str, TensorHeader]) -> None:
    for name, file in _weight_map(folder).items():
        if name not in tensors or tensors[name].file.name != file:
            raise _corrupt(folder / INDEX_FILE, f"places tensor {name!r} in {file}, which does not have it")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _corrupt(file: Path, problem: str) -> WorkerError:
    return WorkerError(WorkerErrorCode.VARIANT_CORRUPT, f"{file.name}: {problem}; fetch or write the model again")
