"""The whole answer of a request, for those who do not want it as a stream."""

from dataclasses import dataclass, field

from app.core.generation import Run
from app.core.tools.output import CallPiece
from workers.protocol.messages import FinishReason, TokenLogprob


@dataclass(slots=True)
class Call:
    """One whole call."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Collected:
    """Everything that one choice said."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


async def collect(run: Run, wait_s: float) -> list[Collected]:
    """Every choice in order, when the last one has ended. wait_s: how long to sleep without news, at most."""
    collected = [Collected() for _ in run.choices]
    pieces: list[list[str]] = [[] for _ in run.choices]
    while not run.is_finished:
        for delta in await run.next(wait_s):
            whole = collected[delta.index]
            pieces[delta.index].append(delta.text)
            whole.reasoning += delta.reasoning
            _add_calls(whole.calls, delta.calls)
            whole.token_ids += delta.token_ids
            whole.logprobs += delta.logprobs
            whole.finish_reason = delta.finish_reason
    for whole, texts in zip(collected, pieces, strict=True):
        whole.text = "".join(texts)
    return collected


def _add_calls(calls: list[Call], pieces: list[CallPiece]) -> None:
    for piece in pieces:
        if piece.id is not None and piece.name is not None:
            calls.append(Call(piece.id, piece.name, piece.arguments))
        else:
            calls[piece.index].arguments += piece.arguments
