"""Texts as jobs read them: tokenized by the base's own tokenizer, packed, and written to a safetensors file.

Job processes hold torch and no tokenizer settings of ours; the file also freezes the text, so that an interrupted job
goes on with the same tokens whatever has become of their source.
"""

import json
import os
import random
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from app import embedded
from app.errors import InvalidRequest

MIN_TOKENS: Final = 16
# 64 million characters are some 16 million tokens, far more than any method looks at.
MAX_TEXT_CHARS: Final = 64 * 2**20
_HEADER_ALIGNMENT: Final = 8


def documents(text: str | None, path: str | None, default: Callable[[], str]) -> list[str]:
    """The text itself, of a file, or the built-in one, story by story. Raises InvalidRequest for an unreadable file."""
    if text is not None:
        return [text]
    if path is None:
        return embedded.stories(default())
    try:
        with open(path, encoding="utf-8") as stream:
            return [stream.read(MAX_TEXT_CHARS)]
    except OSError as error:
        raise InvalidRequest(f"The text's file cannot be read: {error.strerror}.", param="path") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("The text's file is not UTF-8.", param="path") from error


def encode_documents(tokenizer_file: Path, documents: Sequence[str]) -> list[int]:
    """Tokens of the documents one after another, each begun as the tokenizer begins a text (with its bos, say)."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [token for document in documents for token in tokenizer.encode(document).ids]


def sample_windows(tokens: Sequence[int], num_samples: int, num_tokens: int, seed: int) -> list[list[int]]:
    """num_samples windows of num_tokens from the text, at random places that do not overlap where it is long enough.

    A text with fewer whole windows gives as many as it has; one shorter than a window gives one that is as short.
    Raises InvalidRequest for a text that is no text at all.
    """
    if len(tokens) < MIN_TOKENS:
        raise InvalidRequest(
            f"The text has {len(tokens)} tokens; {MIN_TOKENS} are the least to calibrate or measure on.", param="text"
        )
    num_tokens = min(num_tokens, len(tokens))
    starts = _window_starts(tokens, num_samples, num_tokens, seed)
    return [list(tokens[start : start + num_tokens]) for start in starts]


def split_windows(
    tokens: Sequence[int], num_samples: int, num_heldout: int, num_tokens: int, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Samples as of `sample_windows`, and num_heldout windows as long that share no token with them.

    A text that is too short for both gives a quarter of its windows, rounded up, to those held out. Raises
    InvalidRequest as `sample_windows`, and for a text without two windows.
    """
    if not num_heldout:
        return sample_windows(tokens, num_samples, num_tokens, seed), []
    num_windows = len(tokens) // num_tokens
    if num_windows < 2:
        raise InvalidRequest(
            f"The text has {len(tokens)} tokens, fewer than two windows of {num_tokens}: 'auto' calibrates on one part "
            "and measures on another. Give a longer text or a smaller sequence_length.",
            param="calibration.sequence_length",
        )
    num_heldout = min(num_heldout, max(num_windows - num_samples, -(-num_windows // 4)))
    samples = sample_windows(tokens, min(num_samples, num_windows - num_heldout), num_tokens, seed)
    starts = range(0, num_windows * num_tokens, num_tokens)
    # Windows of one text may be alike; places are not.
    taken = set(_window_starts(tokens, len(samples), num_tokens, seed))
    free = [start for start in starts if start not in taken]
    chosen = sorted(random.Random(seed).sample(free, num_heldout))
    return samples, [list(tokens[start : start + num_tokens]) for start in chosen]


def _window_starts(tokens: Sequence[int], num_samples: int, num_tokens: int, seed: int) -> list[int]:
    starts = range(0, len(tokens) - num_tokens + 1, num_tokens)
    return sorted(random.Random(seed).sample(starts, min(num_samples, len(starts))))


def write_token_ids(file: Path, rows: Sequence[Sequence[int]]) -> None:
    """A safetensors file with one tensor, `token_ids`: (rows, tokens), int32. On disk when this returns."""
    values = array("i", (token for row in rows for token in row))
    assert values.itemsize == 4, "int32 wherever torch runs"
    if sys.byteorder == "big":
        values.byteswap()
    data = values.tobytes()
    entry = {"dtype": "I32", "shape": [len(rows), len(rows[0])], "data_offsets": [0, len(data)]}
    header = json.dumps({"token_ids": entry}).encode()
    header += b" " * (-len(header) % _HEADER_ALIGNMENT)
    partial = file.with_suffix(".tmp")
    with partial.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header + data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
