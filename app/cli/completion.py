"""One streamed completion as a client sees it: its text piece by piece, and then its timings.

TTFT: first event that carries text minus the moment before the request. TPOT: (last - first)/(n - 1) over n tokens.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.cli.client import Client
from app.cli.terminal import CommandFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Client-side timings of one request; tpot_s is None below two tokens."""

    num_prompt_tokens: int
    num_completion_tokens: int
    ttft_s: float
    tpot_s: float | None
    total_s: float

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens over the whole duration, the wait for the first one included."""
        return self.num_completion_tokens / self.total_s


class Completion:
    """Iterate over the text of a streamed request; `timing` is there when the iteration has ended."""

    def __init__(self, client: Client, path: str, body: Mapping[str, Any]) -> None:
        self._client = client
        self._path = path
        self._body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._timing: Timing | None = None

    @property
    def timing(self) -> Timing:
        """The timings. Raises CommandFailed if no text came."""
        if self._timing is None:
            raise CommandFailed("the answer had no text, so there is nothing to time")
        return self._timing

    def __iter__(self) -> Iterator[str]:
        start_s = time.perf_counter()
        first_s: float | None = None
        last_s = start_s
        usage: Mapping[str, int] = {}
        is_done = False
        for event in self._client.events("POST", self._path, self._body):
            if event.data == "[DONE]":
                is_done = True
                break
            chunk = event.json()
            if "error" in chunk:
                raise CommandFailed(chunk["error"]["message"])
            usage = chunk.get("usage") or usage
            if text := _text_of(chunk):
                last_s = time.perf_counter()
                first_s = last_s if first_s is None else first_s
                yield text
        if not is_done:
            raise CommandFailed("the stream ended before the answer did")
        if first_s is not None:
            self._timing = _timing(usage, first_s - start_s, last_s - start_s)


def _text_of(chunk: Mapping[str, Any]) -> str:
    if not chunk["choices"]:
        return ""
    choice = chunk["choices"][0]
    return str(choice["delta"].get("content") or "") if "delta" in choice else str(choice["text"])


def _timing(usage: Mapping[str, int], first_s: float, last_s: float) -> Timing:
    num_tokens = usage["completion_tokens"]
    return Timing(
        num_prompt_tokens=usage["prompt_tokens"],
        num_completion_tokens=num_tokens,
        ttft_s=first_s,
        tpot_s=(last_s - first_s) / (num_tokens - 1) if num_tokens > 1 else None,
        total_s=last_s,
    )
