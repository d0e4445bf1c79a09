"""POST /v1/responses: OpenAI's newer shape over the same path as chat, without memory."""

from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.as_chat import chat_body, in_own_names
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.chat import to_request
from app.api.response_input import chat_messages, chat_tool_choice, chat_tools
from app.api.response_object import ResponseObject
from app.api.sse import Ending, EventStream, named_event
from app.core.choice import Delta
from app.core.generation import Generation, Run
from app.core.parts import Part, Parts, Piece, collect_parts
from app.core.request import GenerationRequest
from app.errors import ApiError
from app.schemas.responses import ResponsesRequest

router = APIRouter()

_OWN_NAMES: Final = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    ".function.": ".",
    "messages": "input",
}
_STREAMED: Final = {"text": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}


@router.post("/v1/responses")
async def responses(
    request: Request, body: Annotated[ResponsesRequest, Depends(json_body(ResponsesRequest))]
) -> Response:
    """Answer an input; nothing is stored."""
    generation: Generation = request.app.state.generation
    wanted = from_responses(body)
    if body.stream:
        chunks = ResponseChunks(body)
        ending = Ending(done=b"", error=chunks.error)
        return EventStream(generation, wanted, chunks, request.app.state.settings, ending)
    return await run_attended(request.receive, _answer(generation, wanted, body))


def from_responses(body: ResponsesRequest) -> GenerationRequest:
    """The body in the core's words, by way of chat's."""
    effort = body.reasoning.effort if body.reasoning is not None else None
    fields = {
        "model": body.model,
        "messages": chat_messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs,
        "response_format": _response_format(body),
        "tools": chat_tools(body.tools),
        "tool_choice": chat_tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": effort,
    }
    wanted = in_own_names(to_request(chat_body(fields, _OWN_NAMES)), _OWN_NAMES)
    assert wanted.tool_use is not None, "a chat has one"
    # as OpenAI has it: functions are strict here unless they say no, in chat only if they say yes
    tool_use = replace(wanted.tool_use, is_strict_by_default=True)
    return replace(wanted, tool_use=tool_use, prompt_param="input", max_tokens_param="max_output_tokens")


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    """Chat has the schema's fields one level deeper."""
    chosen = body.text.format if body.text is not None else None
    if chosen is None or chosen.get("type") != "json_schema":
        return chosen
    return {"type": "json_schema", "json_schema": {name: value for name, value in chosen.items() if name != "type"}}


async def _answer(generation: Generation, wanted: GenerationRequest, body: ResponsesRequest) -> Response:
    async with generation.run(wanted) as run:
        parts = await collect_parts(run, generation.wait_s)
        return json_answer(ResponseObject(body, run).ended(parts))


class ResponseChunks:
    """The events of a streamed response, numbered: it begins, its items come piece by piece, each is closed."""

    def __init__(self, body: ResponsesRequest) -> None:
        self._body = body
        self._number = 0
        self._parts = Parts()
        self._open: Part | None = None

    def begin(self, run: Run) -> None:
        """Fix ids and time of every event."""
        self._answer = ResponseObject(self._body, run)

    def chunk(self, delta: Delta) -> str:
        """The pieces; before the first one of an item the last one is closed, and this one opened."""
        events = "" if self._number else self._begun()
        for piece in self._parts.add(delta):
            if piece.part is not self._open:
                events += self._closed() + self._opened(piece.part)
            if piece.text:
                events += self._piece(piece)
        return events

    def end(self) -> str:
        """Everything that was opened is closed, and the whole response told."""
        last = self._parts.end()[-1]
        events = "" if last is self._open else self._opened(last)
        whole = self._answer.ended(self._parts)
        return events + self._closed(whole["status"]) + self._event(f"response.{whole['status']}", response=whole)

    def error(self, error: ApiError) -> bytes:
        """An error event; `error` inside is what OpenAI's own client raises for."""
        fields = error.body()["error"]
        event = self._event("error", **{name: fields[name] for name in ("code", "message", "param")}, error=fields)
        return event.encode()

    def _begun(self) -> str:
        begun = self._answer.begun()
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def _opened(self, part: Part) -> str:
        self._open = part
        empty = replace(part, text="", logprobs=[])
        item = self._answer.item(empty, "in_progress")
        if part.kind == "call":
            return self._event("response.output_item.added", output_index=part.index, item=item)
        return self._event(
            "response.output_item.added", output_index=part.index, item={**item, "content": []}
        ) + self._of_item(part, "content_part.added", part=self._answer.content(empty))

    def _piece(self, piece: Piece) -> str:
        fields: dict[str, Any] = {"delta": piece.text}
        if piece.part.kind == "text":
            fields["logprobs"] = self._answer.logprobs(piece.logprobs)
        return self._of_item(piece.part, f"{_STREAMED[piece.part.kind]}.delta", **fields)

    def _closed(self, status: str = "completed") -> str:
        part = self._open
        if part is None:
            return ""
        content = self._answer.content(part)
        whole = {name: content[name] for name in ("text", "logprobs", "arguments", "name") if name in content}
        events = self._of_item(part, f"{_STREAMED[part.kind]}.done", **whole)
        if part.kind != "call":
            events += self._of_item(part, "content_part.done", part=content)
        item = self._answer.item(part, status)
        return events + self._event("response.output_item.done", output_index=part.index, item=item)

    def _of_item(self, owner: Part, kind: str, /, **fields: Any) -> str:
        place: dict[str, Any] = {"item_id": self._answer.item_id(owner), "output_index": owner.index}
        if owner.kind != "call":
            place["content_index"] = 0
        return self._event(f"response.{kind}", **place, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(kind, data)
