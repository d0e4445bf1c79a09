"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's shape over the same path as chat.

The headers anthropic-version and anthropic-beta may be there and change nothing.
"""

from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.as_chat import chat_body, in_own_names
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.chat import to_request
from app.api.error_shapes import shaped
from app.api.message_input import chat_messages, chat_switches, chat_tools
from app.api.message_object import block, call_input, new_message, stop, usage
from app.api.sse import Ending, EventStream, named_event
from app.core.answers import answer_rules
from app.core.chat_template import Conversation
from app.core.choice import Delta
from app.core.generation import Generation, Run
from app.core.parts import Part, Parts, collect_parts
from app.core.prompts import rendered
from app.core.renderer import Renderer
from app.core.request import GenerationRequest
from app.core.text import TextModels
from app.core.variants import Variant
from app.errors import ApiError
from app.schemas.chat import ChatRequest
from app.schemas.messages import CountTokensRequest, MessagesRequest

router = APIRouter()

_OWN_NAMES: Final = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    ".function.parameters": ".input_schema",
    ".function.": ".",
}
_FIELDS: Final = {"text": "text", "reasoning": "thinking"}


@router.post("/v1/messages")
async def messages(request: Request, body: Annotated[MessagesRequest, Depends(json_body(MessagesRequest))]) -> Response:
    """Answer a conversation, as Anthropic does."""
    generation: Generation = request.app.state.generation
    wanted = in_own_names(to_request(_chat(body)), _OWN_NAMES)
    if body.stream:
        ending = Ending(done=b"", error=lambda error: _error_event(error, request))
        return EventStream(generation, wanted, MessageChunks(), request.app.state.settings, ending)
    return await run_attended(request.receive, _answer(generation, wanted))


@router.post("/v1/messages/count_tokens")
async def count_tokens(
    request: Request, body: Annotated[CountTokensRequest, Depends(json_body(CountTokensRequest))]
) -> Response:
    """How many tokens a conversation has; the variant need not be loaded."""
    variant: Variant = request.app.state.server.catalog.resolve(body.model)
    texts: TextModels = request.app.state.texts
    renderer: Renderer = request.app.state.renderer
    text_model = await texts.get(variant.folder)
    wanted = to_request(_chat(body))
    (conversation,) = wanted.prompts
    assert isinstance(conversation, Conversation), "a chat has one"
    rules = answer_rules(wanted, variant, text_model)
    prompt = await rendered(conversation, text_model, renderer, rules)
    ids = await text_model.encode(prompt, adds_special_tokens=False)
    return json_answer({"input_tokens": len(ids)})


def _chat(body: CountTokensRequest) -> ChatRequest:
    """The body as chat's. An answer whose beginning is given, as the last message, goes on from there."""
    fields: dict[str, Any] = {"model": body.model, "messages": chat_messages(body), **chat_tools(body)}
    fields["chat_template_kwargs"] = chat_switches(body)
    if fields["messages"][-1]["role"] == "assistant":
        fields["continue_final_message"] = True
    wanted_format = body.output_config.format if body.output_config is not None else None
    if wanted_format is not None:
        schema = {"name": "output", "schema": wanted_format.get("schema"), "strict": True}
        fields["response_format"] = {"type": wanted_format.get("type"), "json_schema": schema}
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
        }
    return chat_body(fields, _OWN_NAMES)


async def _answer(generation: Generation, wanted: GenerationRequest) -> Response:
    async with generation.run(wanted) as run:
        parts = await collect_parts(run, generation.wait_s)
        content = {
            **new_message(run),
            "content": [block(part) for part in parts.end()],
            **stop(run, parts),
            "usage": usage(run),
        }
    return json_answer(content)


class MessageChunks:
    """The events of a streamed message: it begins, its blocks come one after the other, each is closed.

    A call comes as a whole, when it is complete: Anthropic's clients fail on arguments that turn out not to be JSON.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._parts = Parts()
        self._open: Part | None = None

    def begin(self, run: Run) -> None:
        """Remember whose message this is."""
        self._run = run

    def chunk(self, delta: Delta) -> str:
        """The pieces; before the first one of a block the last one is closed, and this one opened."""
        events = "" if self._has_begun else self._begun()
        self._has_begun = True
        for piece in self._parts.add(delta):
            if piece.part is not self._open:
                events += self._closed() + self._opened(piece.part)
            if piece.part.kind != "call":
                kind = _FIELDS[piece.part.kind]
                events += self._delta(piece.part, {"type": f"{kind}_delta", kind: piece.text})
        return events

    def end(self) -> str:
        """The last block and the message are closed; the reason and the usage stand between."""
        last = self._parts.end()[-1]
        events = "" if last is self._open else self._opened(last)
        return (
            events
            + self._closed()
            + _event("message_delta", delta=stop(self._run, self._parts), usage=usage(self._run))
            + _event("message_stop")
        )

    def _begun(self) -> str:
        message = {**new_message(self._run), "content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**message, "usage": usage(self._run)})

    def _opened(self, part: Part) -> str:
        self._open = part
        return "" if part.kind == "call" else self._start(part, block(replace(part, text="")))

    def _closed(self) -> str:
        part = self._open
        if part is None:
            return ""
        events = self._call(part) if part.kind == "call" else ""
        return events + _event("content_block_stop", index=part.index)

    def _call(self, part: Part) -> str:
        whole, arguments = block(part), call_input(part)
        if arguments is None:
            start, delta = {**whole, "text": ""}, {"type": "text_delta", "text": whole["text"]}
        else:
            start, delta = {**whole, "input": {}}, {"type": "input_json_delta", "partial_json": arguments.decode()}
        return self._start(part, start) + self._delta(part, delta)

    def _start(self, part: Part, empty: dict[str, Any]) -> str:
        return _event("content_block_start", index=part.index, content_block=empty)

    def _delta(self, part: Part, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=part.index, delta=delta)


def _event(kind: str, **fields: Any) -> str:
    return named_event(kind, {"type": kind, **fields})


def _error_event(error: ApiError, request: Request) -> bytes:
    return named_event("error", shaped(error.body()["error"], error.status, request.scope)).encode()
