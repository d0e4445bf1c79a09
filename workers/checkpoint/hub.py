"""Fetching a model from the Hugging Face hub: weights as safetensors, configs, tokenizer and template, nothing else."""

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from workers.checkpoint.save import disk_full
from workers.protocol.errors import WorkerError, WorkerErrorCode

# A refused connection is no HfHubHTTPError but an error of the HTTP client below it, and which client that is changes
# between versions of the hub's library: so take the bases of its own error.
_CLIENT_ERRORS = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)

_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
# Second copies of the weights under names that slimserve does not read.
_UNWANTED = ("consolidated*.safetensors", "*/*", "adapter_*")


def download(
    hub_id: str,
    revision: str | None,
    target_dir: Path,
    on_progress: Callable[[int, int], None],
    *,
    endpoint: str | None = None,
) -> Path:
    """Fetch a model into `target_dir`; on_progress gets (bytes done, bytes in all). Finished files are kept.

    Raises WorkerError: base_not_found (unknown or private), hub_unreachable, unsafe_checkpoint, disk_full.
    """
    try:
        info = HfApi(endpoint=endpoint).model_info(hub_id, revision=revision, files_metadata=True)
        files = _wanted_files(hub_id, info)
        total = sum(files.values())
        target_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target_dir).free
        present = sum(file.stat().st_size for file in target_dir.rglob("*") if file.is_file())
        if total - present > free:
            raise disk_full(total - present, free)
        done = 0
        for name, size in files.items():
            hf_hub_download(
                hub_id,
                name,
                # The commit, not the branch: all files come from the same one.
                revision=info.sha,
                local_dir=target_dir,
                endpoint=endpoint,
                tqdm_class=_progress_class(done, total, on_progress),
            )
            done += size
            on_progress(done, total)
    except WorkerError:
        raise
    except GatedRepoError as error:
        raise _not_found(hub_id, "is gated: accept its terms on the hub and start the server with HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise _not_found(hub_id, f"has no revision {revision!r}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _not_found(hub_id, "is not on the hub, or is private; check the spelling") from error
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise _unreachable(hub_id) from error
    except _CLIENT_ERRORS as error:
        # among the bases is OSError, whose instances with an errno come from the disk
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _unreachable(hub_id) from error
    return target_dir


def _wanted_files(hub_id: str, info: ModelInfo) -> dict[str, int]:
    """Name -> bytes of the files to fetch, small ones first so that a bad config is seen before the weights."""
    siblings = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    names = [name for name in siblings if _matches(name, _WANTED) and not _matches(name, _UNWANTED)]
    if not _matches_any(names, "*.safetensors"):
        raise WorkerError(
            WorkerErrorCode.UNSAFE_CHECKPOINT,
            f"{hub_id} has no safetensors; slimserve reads safetensors only: look for a converted copy on the hub",
        )
    return {name: siblings[name] for name in sorted(names, key=lambda name: (siblings[name], name))}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _matches_any(names: list[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _progress_class(done: int, total: int, on_progress: Callable[[int, int], None]) -> type:
    """What the hub's client takes for a progress bar; it reports bytes in place of drawing."""

    class ByteProgress:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.n = initial
            self.total = total

        def update(self, count: float | None = 1) -> None:
            self.n += int(count or 0)
            on_progress(min(done + self.n, total), total)

        def __enter__(self) -> "ByteProgress":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def __getattr__(self, name: str) -> Callable[..., None]:
            # Everything else a bar can do is drawing.
            return lambda *_, **__: None

    return ByteProgress


def _not_found(hub_id: str, problem: str) -> WorkerError:
    return WorkerError(WorkerErrorCode.BASE_NOT_FOUND, f"model {hub_id!r} {problem}")


def _unreachable(hub_id: str) -> WorkerError:
    return WorkerError(
        WorkerErrorCode.HUB_UNREACHABLE,
        f"model {hub_id!r} could not be fetched: the hub is not reachable from here; try again, or download it "
        "elsewhere and load its folder",
    )
