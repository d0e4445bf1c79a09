"""The whole answer of a request, for those who do not want it as a stream."""

from dataclasses import dataclass, field

from app.core.generation import Run
from workers.protocol.messages import FinishReason, TokenLogprob


@dataclass(slots=True)
class Collected:
    """Everything that one choice said."""

    text: str = ""
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
            whole.token_ids += delta.token_ids
            whole.logprobs += delta.logprobs
            whole.finish_reason = delta.finish_reason
    for whole, texts in zip(collected, pieces, strict=True):
        whole.text = "".join(texts)
    return collected
