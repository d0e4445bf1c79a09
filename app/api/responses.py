"""POST /v1/responses: OpenAI's newer shape over the same path as chat, without memory."""

from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.as_chat import chat_body, own_name
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.chat import to_request
from app.api.response_object import ResponseObject
from app.api.sse import Ending, EventStream, named_event
from app.core.choice import Delta
from app.core.collected import collect
from app.core.generation import Generation, Run
from app.core.request import GenerationRequest
from app.errors import ApiError
from app.schemas.responses import ResponsesRequest
from workers.protocol.messages import FinishReason, TokenLogprob

router = APIRouter()

_OWN_NAMES: Final = {"response_format.json_schema": "text.format", "response_format": "text.format"}


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
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += [{"role": item.role, "content": item.parts()} for item in body.input]
    effort = body.reasoning.effort if body.reasoning is not None else None
    fields = {
        "model": body.model,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs,
        "response_format": _response_format(body),
        "chat_template_kwargs": None if effort is None else {"reasoning_effort": effort},
    }
    wanted = to_request(chat_body(fields, _OWN_NAMES))
    return replace(
        wanted,
        prompt_param="input",
        max_tokens_param="max_output_tokens",
        grammar_param=own_name(wanted.grammar_param, _OWN_NAMES),
    )


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    """Chat has the schema's fields one level deeper."""
    chosen = body.text.format if body.text is not None else None
    if chosen is None or chosen.get("type") != "json_schema":
        return chosen
    return {"type": "json_schema", "json_schema": {name: value for name, value in chosen.items() if name != "type"}}


async def _answer(generation: Generation, wanted: GenerationRequest, body: ResponsesRequest) -> Response:
    async with generation.run(wanted) as run:
        choice = (await collect(run, generation.wait_s))[0]
        answer = ResponseObject(body, run)
        logprobs = answer.logprobs(choice.logprobs)
        return json_answer(answer.ended(choice.text, logprobs, choice.finish_reason))


class ResponseChunks:
    """The events of a streamed response, numbered: it begins, its text comes piece by piece, each part is closed."""

    def __init__(self, body: ResponsesRequest) -> None:
        self._body = body
        self._number = 0
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason | None = None

    def begin(self, run: Run) -> None:
        """Fix ids and time of every event."""
        self._answer = ResponseObject(self._body, run)

    def chunk(self, delta: Delta) -> str:
        """The pieces of text; before the first one the parts that hold it are opened."""
        events = "" if self._number else self._opened()
        self._logprobs += delta.logprobs
        self._finish_reason = delta.finish_reason
        if not delta.text:
            return events
        self._texts.append(delta.text)
        logprobs = self._answer.logprobs(delta.logprobs)
        return events + self._of_text("response.output_text.delta", delta=delta.text, logprobs=logprobs)

    def end(self) -> str:
        """Everything that was opened is closed, and the whole response told."""
        text, logprobs = "".join(self._texts), self._answer.logprobs(self._logprobs)
        part = self._answer.part(text, logprobs)
        whole = self._answer.ended(text, logprobs, self._finish_reason)
        return (
            self._of_text("response.output_text.done", text=text, logprobs=logprobs)
            + self._of_text("response.content_part.done", part=part)
            + self._event("response.output_item.done", output_index=0, item=whole["output"][0])
            + self._event(f"response.{whole['status']}", response=whole)
        )

    def error(self, error: ApiError) -> bytes:
        """An error event; `error` inside is what OpenAI's own client raises for."""
        fields = error.body()["error"]
        event = self._event("error", **{name: fields[name] for name in ("code", "message", "param")}, error=fields)
        return event.encode()

    def _opened(self) -> str:
        begun = self._answer.begun()
        return (
            self._event("response.created", response=begun)
            + self._event("response.in_progress", response=begun)
            + self._event("response.output_item.added", output_index=0, item=self._answer.item("in_progress", []))
            + self._of_text("response.content_part.added", part=self._answer.part("", []))
        )

    def _of_text(self, kind: str, **fields: Any) -> str:
        place = {"item_id": self._answer.item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(kind, data)
