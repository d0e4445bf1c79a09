"""POST /v1/chat/completions."""

import secrets
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import encoded_in_turns
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.chunk_frame import ChunkFrame
from app.api.logprobs import chat_logprobs, prompt_logprobs
from app.api.sse import EventStream, json_string
from app.api.tools import call_delta, call_object, finish_reason, to_tool_use
from app.api.usage import request_metrics, usage
from app.core.chat_template import Conversation
from app.core.choice import Delta
from app.core.collected import Collected, collect
from app.core.generation import Generation, Run
from app.core.request import GenerationRequest
from app.core.tools.use import ToolUse
from app.schemas.chat import ChatRequest

router = APIRouter()
_encode = msgspec.json.Encoder().encode


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: Annotated[ChatRequest, Depends(json_body(ChatRequest))]) -> Response:
    """Answer a conversation, as OpenAI does."""
    generation: Generation = request.app.state.generation
    wanted = to_request(body)
    if body.stream:
        return EventStream(generation, wanted, ChatChunks(body), request.app.state.settings)
    return await run_attended(request.receive, _answer(generation, wanted, body))


def to_request(body: ChatRequest) -> GenerationRequest:
    """The body in the core's words. Without max_tokens the answer may take the rest of the context."""
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    tool_use = to_tool_use(body)
    constraint = body.constraint()
    return GenerationRequest(
        model=body.model,
        prompts=[to_conversation(body, tool_use)],
        params=body.sampling_params(
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
            grammar=None if constraint is None else constraint.grammar,
        ),
        n=body.n or 1,
        seed=body.seed,
        max_tokens=limit,
        stops=body.stop_strings(),
        includes_stop=bool(body.include_stop_str_in_output),
        priority=body.priority or 0,
        skips_special_tokens=body.skip_special_tokens is not False,
        prompt_param="messages",
        grammar_param="" if constraint is None else constraint.param,
        tool_use=tool_use,
        max_tokens_param="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
    )


def to_conversation(body: ChatRequest, tool_use: ToolUse) -> Conversation:
    """The messages as templates read them."""
    switches = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    return Conversation(
        messages=[message.for_template() for message in body.messages],
        tool_use=tool_use,
        adds_generation_prompt=body.add_generation_prompt is not False,
        continues_final=bool(body.continue_final_message),
        switches={**switches, **(body.chat_template_kwargs or {})},
    )


async def _answer(generation: Generation, wanted: GenerationRequest, body: ChatRequest) -> Response:
    async with generation.run(wanted) as run:
        choices = await collect(run, generation.wait_s)
        content: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": run.variant.id,
            "system_fingerprint": None,
            "choices": await encoded_in_turns(
                _choice(index, choice, run, body) for index, choice in enumerate(choices)
            ),
            "usage": usage(run),
            "metrics": request_metrics(run),
        }
        if body.prompt_logprobs is not None:
            content["prompt_logprobs"] = prompt_logprobs(run.choices[0].prompt_logprobs, run.text_model.token_strings)
        if body.return_token_ids:
            content["prompt_token_ids"] = run.choices[0].prompt_ids
    return Response(_encode(content), media_type="application/json")


def _choice(index: int, choice: Collected, run: Run, body: ChatRequest) -> dict[str, Any]:
    logprobs = (
        chat_logprobs(choice.logprobs, body.top_logprobs or 0, run.text_model.token_strings) if body.logprobs else None
    )
    result: dict[str, Any] = {
        "index": index,
        "message": _message(choice),
        "logprobs": logprobs,
        "finish_reason": finish_reason(choice.finish_reason, has_calls=bool(choice.calls)),
    }
    if body.return_token_ids:
        result["token_ids"] = choice.token_ids
    return result


def _message(choice: Collected) -> dict[str, Any]:
    """Thinking and calls are there if there are any; then content may be null."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if not choice.text and (choice.reasoning or choice.calls):
        message["content"] = None
    if choice.reasoning:
        # both names are in use: the second is vLLM's newer one
        message["reasoning_content"] = message["reasoning"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [call_object(call) for call in choice.calls]
    return message


class ChatChunks:
    """Chunks of a streamed chat: the role with the first text, the text, and an empty delta with the reason."""

    def __init__(self, body: ChatRequest) -> None:
        self._body = body
        self._started: set[int] = set()
        self._called: set[int] = set()

    def begin(self, run: Run) -> None:
        """Fix id, model and time of every chunk."""
        self._run = run
        self._frame = ChunkFrame("chatcmpl", "chat.completion.chunk", run, self._body.stream_options)
        self._strings = run.text_model.token_strings

    def chunk(self, delta: Delta) -> str:
        """The role before the first text of a choice, one chunk with text, and one with the reason for the end."""
        events = ""
        if delta.index not in self._started:
            self._started.add(delta.index)
            events += self._first(delta.index)
        # of the chunks of one delta, the first has what belongs to its tokens
        rest = (self._logprobs(delta), delta.token_ids)
        for part in _parts(delta):
            events += self._write(delta.index, part, rest[0], "null", rest[1])
            rest = ("null", [])
        if delta.calls:
            self._called.add(delta.index)
        if delta.finish_reason is not None:
            # tokens that have no text of their own, such as the one that stopped it
            reason = finish_reason(delta.finish_reason, has_calls=delta.index in self._called)
            events += self._write(delta.index, "{}", rest[0], f'"{reason}"', rest[1])
        return events

    def end(self) -> str:
        """The usage, if it was asked for."""
        return self._frame.end()

    def _first(self, index: int) -> str:
        """The role; the first chunk of all also has the prompt's ids, if they were asked for."""
        fields = ""
        if self._body.return_token_ids and len(self._started) == 1:
            fields = f',"prompt_token_ids":{self._run.choices[0].prompt_ids}'
        choice = _choice_json(index, '{"role":"assistant","content":""}', "null", "null")
        return self._frame.around(choice, fields)

    def _write(
        self, index: int, delta: str, logprobs: str, finish_reason: str, token_ids: list[int] | None = None
    ) -> str:
        ids = f',"token_ids":{token_ids}' if self._body.return_token_ids and token_ids is not None else ""
        return self._frame.around(_choice_json(index, delta, logprobs, finish_reason, ids))

    def _logprobs(self, delta: Delta) -> str:
        if not self._body.logprobs or not delta.logprobs:
            return "null"
        return _encode(chat_logprobs(delta.logprobs, self._body.top_logprobs or 0, self._strings)).decode()


def _choice_json(index: int, delta: str, logprobs: str, finish_reason: str, more: str = "") -> str:
    return f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish_reason}{more}}}'


def _parts(delta: Delta) -> list[str]:
    """The `delta` of each chunk, in the order in which models write."""
    parts: list[str] = []
    if delta.reasoning:
        text = json_string(delta.reasoning)
        parts.append(f'{{"reasoning_content":{text},"reasoning":{text}}}')
    if delta.text:
        parts.append(f'{{"content":{json_string(delta.text)}}}')
    return parts + [call_delta(piece) for piece in delta.calls]
