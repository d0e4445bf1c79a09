"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's shape over the same path as chat.

The headers anthropic-version and anthropic-beta may be there and change nothing.
"""

import secrets
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.as_chat import chat_body, own_name
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.chat import to_conversation, to_request
from app.api.error_shapes import shaped
from app.api.sse import Ending, EventStream, named_event
from app.api.tools import to_tool_use
from app.core.chat_template import render_conversation
from app.core.choice import Choice, Delta
from app.core.collected import collect
from app.core.generation import Generation, Run
from app.core.renderer import Renderer
from app.core.request import GenerationRequest
from app.core.text import TextModels
from app.core.variants import Variant
from app.errors import ApiError
from app.schemas.chat import ChatRequest
from app.schemas.messages import CountTokensRequest, MessagesRequest
from workers.protocol.messages import FinishReason

router = APIRouter()

_OWN_NAMES: Final = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
}


@router.post("/v1/messages")
async def messages(request: Request, body: Annotated[MessagesRequest, Depends(json_body(MessagesRequest))]) -> Response:
    """Answer a conversation, as Anthropic does."""
    generation: Generation = request.app.state.generation
    wanted = to_request(_chat(body))
    wanted = replace(wanted, grammar_param=own_name(wanted.grammar_param, _OWN_NAMES))
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
    chat = _chat(body)
    prompt = await render_conversation(renderer, text_model, to_conversation(chat, to_tool_use(chat)))
    ids = await text_model.encode(prompt, adds_special_tokens=False)
    return json_answer({"input_tokens": len(ids)})


def _chat(body: CountTokensRequest) -> ChatRequest:
    """The body as chat's. An answer whose beginning is given, as the last message, goes on from there."""
    fields: dict[str, Any] = {"model": body.model, "messages": body.chat_messages()}
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
        choice = (await collect(run, generation.wait_s))[0]
        content = {
            **_message(run),
            "content": [{"type": "text", "text": choice.text}],
            **_stop(run.choices[0]),
            "usage": _usage(run),
        }
    return json_answer(content)


class MessageChunks:
    """The events of a streamed message: it begins, its one block of text comes piece by piece, both are closed."""

    _has_begun = False

    def begin(self, run: Run) -> None:
        """Remember whose message this is."""
        self._run = run

    def chunk(self, delta: Delta) -> str:
        """The text; before the first one the message and its block are opened."""
        events = "" if self._has_begun else self._opened()
        self._has_begun = True
        if delta.text:
            events += _event("content_block_delta", index=0, delta={"type": "text_delta", "text": delta.text})
        return events

    def end(self) -> str:
        """The block and the message are closed; the reason and the usage stand between."""
        return (
            _event("content_block_stop", index=0)
            + _event("message_delta", delta=_stop(self._run.choices[0]), usage=_usage(self._run))
            + _event("message_stop")
        )

    def _opened(self) -> str:
        message = {**_message(self._run), "content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**message, "usage": _usage(self._run)}) + _event(
            "content_block_start", index=0, content_block={"type": "text", "text": ""}
        )


def _event(kind: str, **fields: Any) -> str:
    return named_event(kind, {"type": kind, **fields})


def _error_event(error: ApiError, request: Request) -> bytes:
    return named_event("error", shaped(error.body()["error"], error.status, request.scope)).encode()


def _message(run: Run) -> dict[str, Any]:
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": run.variant.id}


def _stop(choice: Choice) -> dict[str, str | None]:
    if choice.finish_reason is FinishReason.LENGTH:
        reason = "max_tokens"
    else:
        reason = "end_turn" if choice.matched_stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": choice.matched_stop}


def _usage(run: Run) -> dict[str, int]:
    """Prompt tokens that were found in the cache are counted apart."""
    return {
        "input_tokens": run.num_prompt_tokens - run.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": run.num_cached_tokens,
        "output_tokens": run.num_completion_tokens,
    }
