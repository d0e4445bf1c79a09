"""An answer as the stretches that it consists of, in order, for APIs that keep thinking, text and calls apart."""

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from app.core.choice import Delta
from app.core.generation import Run
from app.core.tools.output import CallPiece
from workers.protocol.messages import FinishReason, TokenLogprob

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True, kw_only=True)
class Part:
    """One stretch, as far as it is known. index: its place in the answer. text: of a call, the arguments."""

    kind: Kind
    index: int
    text: str = ""
    call_id: str = ""
    name: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Piece(Struct, frozen=True):
    """What is new of one part; the first piece of a call may be empty. logprobs: of text only."""

    part: Part
    text: str
    logprobs: list[TokenLogprob] = []


class Parts:
    """Divides the deltas of one choice. A part is complete when another one begins, or the answer ends."""

    def __init__(self) -> None:
        self.all: list[Part] = []
        self.finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> list[Piece]:
        """The pieces of this delta, in the order in which the model wrote them."""
        self.finish_reason = delta.finish_reason
        pieces: list[Piece] = []
        if delta.reasoning:
            pieces.append(self._grown("reasoning", delta.reasoning, []))
        # a call that has begun before this delta also goes on before its text
        num_continued = next((place for place, piece in enumerate(delta.calls) if piece.id), len(delta.calls))
        pieces += [self._call(piece) for piece in delta.calls[:num_continued]]
        if delta.text:
            pieces.append(self._grown("text", delta.text, delta.logprobs))
        elif not pieces and not delta.calls and self.all and self.all[-1].kind == "text":
            # tokens without text of their own, such as the one that stopped it
            self.all[-1].logprobs += delta.logprobs
        return pieces + [self._call(piece) for piece in delta.calls[num_continued:]]

    def end(self) -> list[Part]:
        """All parts; an answer without any is one empty text."""
        return self.all or [self._begin("text")]

    def _grown(self, kind: Kind, text: str, logprobs: list[TokenLogprob]) -> Piece:
        part = self.all[-1] if self.all and self.all[-1].kind == kind else self._begin(kind)
        part.text += text
        part.logprobs += logprobs
        return Piece(part, text, logprobs)

    def _call(self, piece: CallPiece) -> Piece:
        if piece.id is not None and piece.name is not None:
            part = self._begin("call", piece.id, piece.name)
        else:
            part = self.all[-1]
        part.text += piece.arguments
        return Piece(part, piece.arguments)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Part:
        part = Part(kind=kind, index=len(self.all), call_id=call_id, name=name)
        self.all.append(part)
        return part


async def collect_parts(run: Run, wait_s: float) -> Parts:
    """The parts of a request's only choice, when it has ended. wait_s: how long to sleep without news, at most."""
    parts = Parts()
    while not run.is_finished:
        for delta in await run.next(wait_s):
            parts.add(delta)
    return parts
