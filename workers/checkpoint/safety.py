"""What a model folder must not contain, checked before any library opens it.

The rule behind every line: opening a checkpoint must not run code that came with it, nor read or write outside its
folder. So there are no pickles, no Python, no keys that make transformers import something, and no links out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.checkpoint.config import quantization_config, read_json
from workers.protocol.errors import WorkerError, WorkerErrorCode

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".dll", ".dylib")
_SCANNED = ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json")
# transformers_weights and fusion_config redirect which files are read and which code is patched in; auto_map and
# trust_remote_code import Python from the folder or the hub.
_FORBIDDEN_KEYS = frozenset({"auto_map", "trust_remote_code", "transformers_weights", "fusion_config"})
_KNOWN_QUANT_METHODS = frozenset({"compressed-tensors", "gptq", "awq", "bitsandbytes", "fp8", "mxfp4"})


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not plain data. Raises WorkerError (unsafe_checkpoint) that names what is wrong.

    A folder with safetensors may hold pickles beside them: they are never opened.
    """
    files = list(_files_of(folder))
    for file in files:
        if file.suffix.lower() in _CODE_SUFFIXES:
            raise _unsafe(f"{folder.name} contains the program {file.name}; slimserve loads models without code only")
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = next((file for file in files if file.suffix.lower() in _PICKLE_SUFFIXES), None)
        if pickled is not None:
            raise _unsafe(
                f"{folder.name} has its weights as {pickled.name}, a format that can run code when it is opened; "
                "slimserve reads safetensors only: save the model with save_pretrained and try again"
            )
    if (folder / "adapter_config.json").exists():
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL,
            f"{folder.name} holds an adapter; merge it into its base model (merge_and_unload) and save that",
        )
    for name in _SCANNED:
        if (folder / name).exists():
            check_config(name, read_json(folder / name))


def check_config(file_name: str, config: dict[str, Any]) -> None:
    """Scan a config at any depth for keys that make transformers run or fetch something.

    Raises WorkerError (unsafe_checkpoint) for those, and for a quant_method that nobody here knows.
    """
    for key, value in _walk(config):
        is_internal = key.startswith("_") and key.endswith("_internal")
        if (key in _FORBIDDEN_KEYS or is_internal) and value not in (None, False):
            raise _unsafe(f"{file_name} sets {key!r}, which would load code; slimserve loads models without code only")
        # "kernels-community/name" as an implementation fetches a compiled kernel from the hub.
        if key.endswith("_implementation") and isinstance(value, str) and not value.replace("_", "").isalnum():
            raise _unsafe(f"{file_name} sets {key!r} to {value!r}, which would fetch code")
    quantization = quantization_config(config)
    if quantization is not None and quantization.get("quant_method") not in _KNOWN_QUANT_METHODS:
        raise _unsafe(
            f"{file_name} has the unknown quant_method {quantization.get('quant_method')!r}; "
            f"known are {', '.join(sorted(_KNOWN_QUANT_METHODS))}"
        )


def _files_of(folder: Path) -> Iterator[Path]:
    """Every file at any depth, after checking that none leads out of the folder."""
    roots = _allowed_roots(folder)
    pending = [folder]
    while pending:
        for entry in pending.pop().iterdir():
            real = entry.resolve()
            if not any(real == root or root in real.parents for root in roots):
                raise _unsafe(f"{entry.name} in {folder.name} is a link out of the folder; copy the file into it")
            # Links to folders are not followed: a loop of them would have no end.
            if entry.is_dir() and not entry.is_symlink():
                pending.append(entry)
            elif entry.is_file():
                yield entry


def _allowed_roots(folder: Path) -> list[Path]:
    """The folder itself; for a snapshot of the hub's cache also the `blobs` of the same model, where its links go."""
    real = folder.resolve()
    roots = [real]
    if real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--"):
        roots.append(real.parent.parent / "blobs")
    return roots


def _walk(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    pending: list[Any] = [config]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield from node.items()
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _unsafe(message: str) -> WorkerError:
    return WorkerError(WorkerErrorCode.UNSAFE_CHECKPOINT, message)
