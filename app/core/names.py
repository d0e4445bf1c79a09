"""Names of bases and variants: what they look like, how a source becomes one, what a misspelt one may have meant.

A name is a key and never a path.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Final

from app.errors import InvalidRequest, ModelNotFound

_PART: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_RULE: Final = "1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"
_MAX_PART_CHARS: Final = 64


def check_part(name: str, param: str) -> str:
    """The name itself, if it can be a base's name or a variant's part behind the slash; else InvalidRequest."""
    if not _PART.fullmatch(name):
        raise InvalidRequest(f"'{name[:80]}' is not a name: {_RULE}.", param=param)
    return name


def is_hub_id(model: str) -> bool:
    """True for `organisation/model`."""
    return _HUB_ID.fullmatch(model) is not None


def base_name(source: str) -> str:
    """A base's name for a folder or a hub id: its last part, lowercased, other characters replaced by '-'."""
    last = source.rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", last).lstrip("._-")[:_MAX_PART_CHARS]
    if not name:
        raise InvalidRequest("No name can be made of this source; give one as 'name'.", param="name")
    return name


def not_found(model: str, known: Iterable[str], param: str = "model") -> ModelNotFound:
    """The error for an unknown model, with the nearest names that exist."""
    known = sorted(known)
    nearest = difflib.get_close_matches(model[:160], known, n=3, cutoff=0.5) or known[:3]
    hint = f" Did you mean {' or '.join(repr(name) for name in nearest)}?" if nearest else ""
    return ModelNotFound(
        f"The model '{model[:160]}' does not exist.{hint} GET /v1/variants lists all of them.", param=param
    )
