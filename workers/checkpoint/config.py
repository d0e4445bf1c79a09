"""config.json as data: read with bounds, and the few facts that every other part asks of it. No torch in here."""

import json
from pathlib import Path
from typing import Any

from workers.checkpoint.headers import TensorHeader
from workers.protocol.errors import WorkerError, WorkerErrorCode

_MAX_JSON_BYTES = 64 * 2**20
_LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length",
    "model_max_length", "n_ctx",
)  # fmt: skip
# Recurrent models state no limit; this is where slimserve stops them, so that one request has a bound.
_UNLIMITED_LENGTH = 2**17
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_OLDER_QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_EMBEDDING_SUFFIXES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "embeddings.weight",
)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from disk. Raises WorkerError (variant_corrupt) if the file is missing, huge or something else."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise _corrupt(file, f"is over {_MAX_JSON_BYTES} bytes")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise _corrupt(file, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "is not valid JSON") from error
    if not isinstance(content, dict):
        raise _corrupt(file, "is not a JSON object")
    return content


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the language model; multi-modal configs nest it."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def architecture(config: dict[str, Any]) -> str:
    """The class that the checkpoint was saved from, or the model type where it does not say."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return model_type(config)


def model_type(config: dict[str, Any]) -> str:
    """Transformers' name of the model family. Raises WorkerError (unsupported_model) without one."""
    name = config.get("model_type")
    if not isinstance(name, str) or not name:
        raise WorkerError(WorkerErrorCode.UNSUPPORTED_MODEL, "config.json has no model_type; slimserve cannot tell it")
    return name


def num_layers(config: dict[str, Any]) -> int:
    """Decoder layers, 0 if the config does not say."""
    return _first_int(text_config(config), _LAYER_KEYS) or 0


def max_model_len(config: dict[str, Any]) -> int:
    """Tokens that a sequence may have."""
    return _first_int(text_config(config), _LENGTH_KEYS) or _UNLIMITED_LENGTH


def vocab_size(config: dict[str, Any], tensors: dict[str, TensorHeader]) -> int:
    """Rows of the input embedding, from the config or from the tensor itself.

    Raises WorkerError (unsupported_model) if neither tells.
    """
    if stated := _first_int(text_config(config), ("vocab_size", "n_vocab")):
        return stated
    for name, tensor in tensors.items():
        if name.endswith(_EMBEDDING_SUFFIXES) and len(tensor.shape) == 2:
            return tensor.shape[0]
    raise WorkerError(WorkerErrorCode.UNSUPPORTED_MODEL, "config.json has no vocab_size and no embedding was found")


def read_quantization(folder: Path) -> dict[str, Any] | None:
    """How the weights of a folder are compressed, None for a plain checkpoint.

    Older GPTQ and AWQ files say it in a file of its own. Raises WorkerError (variant_corrupt) for unreadable files.
    """
    if (stated := quantization_config(read_json(folder / "config.json"))) is not None:
        return stated
    for name, method in _OLDER_QUANTIZATION_FILES.items():
        if (folder / name).is_file():
            content = read_json(folder / name)
            return {"quant_method": method, **content} if content.get("quant_method") is None else content
    return None


def quantization_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """What config.json says of compressed weights, None if nothing."""
    for holder in (config, text_config(config)):
        found = holder.get("quantization_config") or holder.get("compression_config")
        if isinstance(found, dict):
            return found
    return None


def _first_int(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        if type(value := config.get(key)) is int and value > 0:
            return value
    return None


def _corrupt(file: Path, problem: str) -> WorkerError:
    return WorkerError(WorkerErrorCode.VARIANT_CORRUPT, f"{file.name} {problem}")
