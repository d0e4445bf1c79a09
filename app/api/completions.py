"""POST /v1/completions."""

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
from app.api.logprobs import CompletionLogprobs, prompt_logprobs
from app.api.sse import EventStream, json_string
from app.api.usage import request_metrics, usage
from app.core.choice import Delta
from app.core.collected import Collected, collect
from app.core.generation import Generation, Run
from app.core.request import GenerationRequest
from app.core.token_strings import TokenStrings
from app.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest

router = APIRouter()
_encode = msgspec.json.Encoder().encode


@router.post("/v1/completions")
async def completions(
    request: Request, body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))]
) -> Response:
    """Continue one or several prompts, as OpenAI does; with `echo` and `logprobs` also score them."""
    generation: Generation = request.app.state.generation
    wanted = to_request(body)
    if body.stream:
        return EventStream(generation, wanted, CompletionChunks(body), request.app.state.settings)
    return await run_attended(request.receive, _answer(generation, wanted, body))


def to_request(body: CompletionRequest) -> GenerationRequest:
    """The body in the core's words. Echoed prompts are scored as well when logprobs are asked for."""
    echoed = body.logprobs if body.echo else None
    constraint = body.constraint()
    return GenerationRequest(
        model=body.model,
        prompts=list(body.prompts()),
        params=body.sampling_params(
            logprobs=body.logprobs,
            prompt_logprobs=max((top for top in (echoed, body.prompt_logprobs) if top is not None), default=None),
            grammar=None if constraint is None else constraint.grammar,
        ),
        n=body.n or 1,
        seed=body.seed,
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        stops=body.stop_strings(),
        includes_stop=bool(body.include_stop_str_in_output),
        priority=body.priority or 0,
        skips_special_tokens=body.skip_special_tokens is not False,
        adds_special_tokens=body.add_special_tokens is not False,
        grammar_param="" if constraint is None else constraint.param,
    )


async def _answer(generation: Generation, wanted: GenerationRequest, body: CompletionRequest) -> Response:
    async with generation.run(wanted) as run:
        choices = await collect(run, generation.wait_s)
        content = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": run.variant.id,
            "system_fingerprint": None,
            "choices": await encoded_in_turns(
                _choice(index, choice, run, body) for index, choice in enumerate(choices)
            ),
            "usage": usage(run),
            "metrics": request_metrics(run),
        }
    return Response(_encode(content), media_type="application/json")


def _lists_of(body: CompletionRequest, strings: TokenStrings) -> CompletionLogprobs:
    return CompletionLogprobs(body.logprobs or 0, strings, shows_special=body.skip_special_tokens is False)


def _choice(index: int, choice: Collected, run: Run, body: CompletionRequest) -> dict[str, Any]:
    state = run.choices[index]
    strings = run.text_model.token_strings
    token_ids, entries, text = list(choice.token_ids), list[Any](choice.logprobs), choice.text
    if body.echo:
        token_ids, entries = state.prompt_ids + token_ids, state.prompt_logprobs + entries
        text = echoed_prompt(run, index, body) + text
    num_echoed = len(state.prompt_ids) if body.echo else 0
    lists = _lists_of(body, strings)
    result: dict[str, Any] = {
        "index": index,
        "text": text,
        "logprobs": None if body.logprobs is None else lists.lists(token_ids, entries, text, num_echoed=num_echoed),
        "finish_reason": choice.finish_reason,
    }
    if body.prompt_logprobs is not None:
        result["prompt_logprobs"] = prompt_logprobs(state.prompt_logprobs, strings)
    if body.return_token_ids:
        result.update(token_ids=choice.token_ids, prompt_token_ids=state.prompt_ids)
    return result


def echoed_prompt(run: Run, index: int, body: CompletionRequest) -> str:
    """The prompt of a choice as text: as it was sent, or decoded if it was sent as ids."""
    prompt = body.prompts()[index // (body.n or 1)]
    return prompt if isinstance(prompt, str) else run.text_model.decode(prompt, skips_special_tokens=False)


class CompletionChunks:
    """Chunks of a streamed completion: text, and the reason with the last text."""

    def __init__(self, body: CompletionRequest) -> None:
        self._body = body
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._started: set[int] = set()

    def begin(self, run: Run) -> None:
        """Fix id, model and time of every chunk."""
        self._run = run
        self._frame = ChunkFrame("cmpl", "text_completion", run, self._body.stream_options)

    def chunk(self, delta: Delta) -> str:
        """One chunk per delta; the first one of a choice begins with the prompt if that is echoed."""
        text, token_ids, entries = delta.text, delta.token_ids, list[Any](delta.logprobs)
        choice = self._run.choices[delta.index]
        is_first = delta.index not in self._started
        self._started.add(delta.index)
        num_echoed = len(choice.prompt_ids) if self._body.echo and is_first else 0
        if num_echoed:
            text = echoed_prompt(self._run, delta.index, self._body) + text
            token_ids, entries = choice.prompt_ids + token_ids, choice.prompt_logprobs + entries
        reason = "null" if delta.finish_reason is None else f'"{delta.finish_reason}"'
        lists = self._lists(delta.index, token_ids, entries, text, num_echoed)
        ids = f',"token_ids":{delta.token_ids}' if self._body.return_token_ids else ""
        if ids and is_first:
            ids += f',"prompt_token_ids":{choice.prompt_ids}'
        return self._frame.around(
            f'{{"index":{delta.index},"text":{json_string(text)},"logprobs":{lists},"finish_reason":{reason}{ids}}}'
        )

    def end(self) -> str:
        """The usage, if it was asked for."""
        return self._frame.end()

    def _lists(self, index: int, token_ids: list[int], entries: list[Any], text: str, num_echoed: int) -> str:
        if self._body.logprobs is None:
            return "null"
        if index not in self._logprobs:
            self._logprobs[index] = _lists_of(self._body, self._run.text_model.token_strings)
        return _encode(self._logprobs[index].lists(token_ids, entries, text, num_echoed=num_echoed)).decode()
