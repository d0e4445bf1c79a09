"""The tokenizer of a model folder: which files belong to it, and a fast one where there is only a slow one."""

from pathlib import Path

from workers.checkpoint.config import read_json
from workers.protocol.errors import WorkerError, WorkerErrorCode

FAST_TOKENIZER = "tokenizer.json"
_SLOW_FILES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tokenizer.tiktoken",
    "tiktoken.model", "tekken.json",
)  # fmt: skip
# Everything a variant takes over from its base beside weights and config.json. Plain names only: a checkpoint cannot
# make slimserve write a file that is not in this list.
COPIED_FILES = (
    FAST_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


def ensure_fast_tokenizer(folder: Path, target_dir: Path) -> Path:
    """The tokenizer.json of a model: the folder's own, else one converted once from its slow tokenizer.

    A converted one is written to `target_dir`. Raises WorkerError (unsupported_model) if there is no tokenizer, or one
    that transformers cannot convert.
    """
    for place in (folder, target_dir):
        if (place / FAST_TOKENIZER).is_file():
            return place / FAST_TOKENIZER
    slow = next((name for name in _SLOW_FILES if (folder / name).is_file()), None)
    if slow is None:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL,
            f"{folder.name} has no tokenizer; put the {FAST_TOKENIZER} of the model into the folder",
        )
    return _convert(folder, slow, target_dir)


def has_chat_template(folder: Path) -> bool:
    """True if the model says how a conversation becomes a prompt."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))


def _convert(folder: Path, slow: str, target_dir: Path) -> Path:
    # Imported here: inspecting a model that has its tokenizer.json must not wait 3 s for transformers.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
    except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL,
            f"the tokenizer of {folder.name} ({slow}) cannot be converted ({type(error).__name__}); "
            f"put a {FAST_TOKENIZER} into the folder",
        ) from error
    target_dir.mkdir(parents=True, exist_ok=True)
    backend.save(str(target_dir / FAST_TOKENIZER))
    return target_dir / FAST_TOKENIZER
