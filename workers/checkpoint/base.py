"""What a base model is, from its small files and headers alone: no weight is read and torch is not imported."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from workers.checkpoint import config as configs
from workers.checkpoint.headers import CheckpointHeaders, read_headers
from workers.checkpoint.safety import check_folder
from workers.checkpoint.tokenizer import ensure_fast_tokenizer, has_chat_template
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import BaseInfo

_DTYPE_NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}


def describe_base(folder: Path, target_dir: Path) -> BaseInfo:
    """Check a model folder and tell what it holds. The folder itself stays as it is.

    A folder with only a slow tokenizer gets its tokenizer.json in `target_dir`.
    Raises WorkerError: base_not_found, unsafe_checkpoint, variant_corrupt or unsupported_model.
    """
    if not (folder / "config.json").is_file():
        raise WorkerError(
            WorkerErrorCode.BASE_NOT_FOUND,
            f"{folder.name} is not a folder with a config.json; name the folder that save_pretrained wrote",
        )
    check_folder(folder)
    config = configs.read_json(folder / "config.json")
    headers = read_headers(folder)
    ensure_fast_tokenizer(folder, target_dir)
    quantization = configs.read_quantization(folder)
    return BaseInfo(
        path=str(folder),
        architecture=configs.architecture(config),
        model_type=configs.model_type(config),
        dtype=stored_dtype(headers),
        num_parameters=headers.num_parameters,
        num_layers=configs.num_layers(config),
        weight_bytes=headers.weight_bytes,
        max_model_len=configs.max_model_len(config),
        vocab_size=configs.vocab_size(config, headers.tensors),
        quantization=None if quantization is None else str(quantization.get("quant_method")),
        has_chat_template=has_chat_template(folder),
        files=_files(folder),
        fingerprint=fingerprint(folder, headers),
    )


def stored_dtype(headers: CheckpointHeaders) -> str:
    """The floating dtype that most bytes of the checkpoint are stored in: fp32, bf16, fp16 or fp64."""
    sizes: Counter[str] = Counter()
    for tensor in headers.tensors.values():
        if tensor.dtype in _DTYPE_NAMES:
            sizes[tensor.dtype] += tensor.num_bytes
    return _DTYPE_NAMES[sizes.most_common(1)[0][0]] if sizes else "fp32"


def fingerprint(folder: Path, headers: CheckpointHeaders) -> str:
    """SHA-256 over the weight files' names, sizes and headers and over config.json, as hex."""
    config = json.loads((folder / "config.json").read_bytes())
    names = [(file.name, file.stat().st_size) for file in headers.files]
    content = json.dumps({"files": names, "headers": headers.digest, "config": config}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    stats = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
