"""What a sequence may still become: a matcher per sequence, and the mask of tokens that it allows.

A mask depends on the sequence's own tokens alone, and a matcher moves only when a token is committed: a step can be
run again, and a preempted sequence goes on where it was.
"""

import json
import logging
import time
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Final

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.grammars import compile_grammar
from workers.protocol.specs import Grammar

logger = logging.getLogger(__name__)

_WORD_BITS = 32
# What a grammar may take of the time of all streams: the library's limits bound the items of a step, and an ambiguous
# grammar takes a time for each that grows with the output (0.4 s a token after 250 tokens of `e: e e e | e e | "a"`).
# Most masks take less than 1 ms; the first ones of a large vocabulary some tens.
MAX_SPENT_S: Final = 2.0
MAX_SPENT_PER_TOKEN_S: Final = 0.02


class Matcher:
    """Where one output stands in its grammar. Raises WorkerError once that is too complex to go on with."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._spent_s = 0.0
        self._num_tokens = 0

    @property
    def may_end(self) -> bool:
        """True if the output is what it has to be, if it ends here."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """True if nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self) -> Tensor:
        """One bit per token that may come next: (words,), int32 on the CPU, the lowest bit first."""
        began_s = time.thread_time()
        bits = bytearray(self._matcher.compute_bitmask())
        self._spend(time.thread_time() - began_s)
        self._check()
        return torch.frombuffer(bits, dtype=torch.int32)

    def accept(self, token_id: int) -> None:
        """Go on by one token of the output."""
        began_s = time.thread_time()
        self._matcher.consume_token(token_id)
        self._num_tokens += 1
        self._spend(time.thread_time() - began_s)
        self._check()

    def _spend(self, seconds: float) -> None:
        self._spent_s += seconds
        if self._spent_s > MAX_SPENT_S + MAX_SPENT_PER_TOKEN_S * self._num_tokens:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"the grammar takes too long to follow: {self._spent_s:.1f} s for {self._num_tokens} tokens; make it "
                "less ambiguous",
            )

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"the grammar cannot be followed any further with this model's tokens: {reason}",
            )


class Grammars:
    """Compiles grammars for the tokens of one model.

    vocab_size: of the logits, which may be wider than the tokenizer. eos_token_ids: what may end an output.
    The tokenizer is read at the first use: 0.4 s and 95 MB for 151,000 tokens, which most servers never need.
    """

    def __init__(self, tokenizer_path: str | None, *, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._path = tokenizer_path
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._tokenizer: LLTokenizer | None = None

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of the output. Raises WorkerError if the grammar does not compile.

        Compiled anew for every sequence, 1 ms for most: copies of one matcher share its lexer's states and their limit,
        so that one sequence could use up what another needs.
        """
        if self._tokenizer is None:
            self._tokenizer = self._read_tokenizer()
        try:
            matcher = compile_grammar(grammar, self._tokenizer)
        except ValueError as error:
            raise WorkerError(WorkerErrorCode.INVALID_REQUEST, f"the grammar is not a {grammar.kind}") from error
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise WorkerError(WorkerErrorCode.INVALID_REQUEST, f"the grammar does not compile: {reason}")
        return Matcher(matcher)

    def _read_tokenizer(self) -> LLTokenizer:
        if self._path is None or not Path(self._path).is_file():
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST, "this model has no tokenizer.json, so its output cannot be constrained"
            )
        text = _as_text_tokens(Path(self._path).read_text(encoding="utf-8"))
        eos_token_ids = sorted(token_id for token_id in self._eos_token_ids if token_id < self._vocab_size) or None
        # Logits are often wider than the tokenizer. Where they are narrower, it must say so itself.
        for num_tokens in (self._vocab_size, None):
            try:
                return LLTokenizer(text, n_vocab=num_tokens, eos_token=eos_token_ids)
            except ValueError as error:
                reason = error
        logger.warning("%s: %s", self._path, reason)
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            "this model's tokenizer is of a kind for which output cannot be constrained",
        )


def _as_text_tokens(tokenizer_json: str) -> str:
    """The tokenizer with added tokens that are not special as plain words of its vocabulary.

    llguidance takes all that look like `<...>` for special, offers them as the text that they are, and then refuses
    them: no answer could hold Qwen's `<tool_call>`.
    """
    content = json.loads(tokenizer_json)
    vocab = content.get("model", {}).get("vocab")
    added = content.get("added_tokens") or []
    plain = [token for token in added if not token["special"]]
    if not plain or not isinstance(vocab, dict):
        return tokenizer_json
    vocab.update({token["content"]: token["id"] for token in plain})
    content["added_tokens"] = [token for token in added if token["special"]]
    return json.dumps(content)


def allowed_tokens(matchers: Many[Matcher], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens may come next: (len(matchers), vocab_size), bool, on the device."""
    words = torch.stack([matcher.mask() for matcher in matchers]).to(device)
    shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=device)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(1)[:, :vocab_size].bool()
