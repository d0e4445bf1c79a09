"""Log probabilities in OpenAI's two shapes."""

from typing import Any, Final

from app.core.text_offsets import TextOffsets
from app.core.token_strings import TokenStrings
from workers.protocol.messages import TokenLogprob

# JSON has no -inf; clients compare with < and take this for "never".
NEVER: Final = -9999.0


def chat_logprobs(entries: list[TokenLogprob], num_top: int, strings: TokenStrings) -> dict[str, Any]:
    """`choices[].logprobs` of a chat: one item per token, each with its bytes."""
    return {
        "content": [
            {
                **_chat_token(entry.token_id, entry.logprob, strings),
                "top_logprobs": [_chat_token(token_id, logprob, strings) for token_id, logprob in entry.top[:num_top]],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def _chat_token(token_id: int, logprob: float, strings: TokenStrings) -> dict[str, Any]:
    return {"token": strings.text(token_id), "logprob": _finite(logprob), "bytes": list(strings.utf8(token_id))}


class CompletionLogprobs:
    """`choices[].logprobs` of a completion: parallel lists. Offsets count the characters of `text` over several chunks.

    shows_special: `text` has generated special tokens in it.
    """

    def __init__(self, num_top: int, strings: TokenStrings, *, shows_special: bool = False) -> None:
        self._num_top = num_top
        self._strings = strings
        self._offsets = TextOffsets(strings, shows_special=shows_special)

    def lists(
        self,
        token_ids: list[int],
        entries: list[TokenLogprob] | list[TokenLogprob | None],
        text: str = "",
        *,
        num_echoed: int = 0,
    ) -> dict[str, Any]:
        """The lists of these tokens. An entry is None for a prompt's first token, which nothing precedes.

        text: of these tokens, as the client gets it. num_echoed: so many of them are the prompt's.
        """
        echoed, generated = token_ids[:num_echoed], token_ids[num_echoed:]
        offsets = self._offsets.add_prompt(echoed, text) if echoed else []
        offsets += self._offsets.add(generated, "" if echoed else text)
        return {
            "tokens": [self._strings.text(token_id) for token_id in token_ids],
            "token_logprobs": [None if entry is None else _finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """By token text, most likely first. The token itself is always there; of two equal texts the likelier stays."""
        top: dict[str, float] = {}
        for token_id, logprob in [*entry.top[: self._num_top], (entry.token_id, entry.logprob)]:
            top.setdefault(self._strings.text(token_id), _finite(logprob))
        return top


def prompt_logprobs(
    entries: list[TokenLogprob | None], strings: TokenStrings
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's shape: per prompt token its alternatives and itself, by token id."""
    return [
        None
        if entry is None
        else {
            str(token_id): {"logprob": _finite(logprob), "decoded_token": strings.text(token_id)}
            for token_id, logprob in [*entry.top, (entry.token_id, entry.logprob)]
        }
        for entry in entries
    ]


def _finite(logprob: float) -> float:
    return max(logprob, NEVER)
