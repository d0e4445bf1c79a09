"""POST /v1/generate: text or ids in; text, ids and timings out."""

import secrets
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.attended import run_attended
from app.api.body import json_body
from app.api.logprobs import CompletionLogprobs, prompt_logprobs
from app.api.sse import EventStream, event
from app.api.usage import milliseconds, usage
from app.core.choice import Delta
from app.core.collected import collect
from app.core.generation import Generation, Run
from app.core.request import GenerationRequest
from app.core.token_strings import TokenStrings
from app.schemas.generate import GenerateRequest

router = APIRouter()
_encode = msgspec.json.Encoder().encode


@router.post("/v1/generate")
async def generate(request: Request, body: Annotated[GenerateRequest, Depends(json_body(GenerateRequest))]) -> Response:
    """Continue one prompt and say how long each part took."""
    generation: Generation = request.app.state.generation
    wanted = to_request(body)
    if body.stream:
        return EventStream(generation, wanted, GenerateChunks(body), request.app.state.settings)
    return await run_attended(request.receive, _answer(generation, wanted, body))


def to_request(body: GenerateRequest) -> GenerationRequest:
    """The body in the core's words."""
    constraint = body.constraint()
    return GenerationRequest(
        model=body.model,
        prompts=[body.prompt if body.prompt is not None else list(body.prompt_ids or ())],
        params=body.sampling_params(
            logprobs=body.logprobs,
            prompt_logprobs=body.prompt_logprobs,
            grammar=None if constraint is None else constraint.grammar,
        ),
        seed=body.seed,
        max_tokens=body.max_tokens,
        stops=body.stop_strings(),
        includes_stop=bool(body.include_stop_str_in_output),
        priority=body.priority or 0,
        skips_special_tokens=body.skip_special_tokens is not False,
        adds_special_tokens=body.add_special_tokens,
        grammar_param="" if constraint is None else constraint.param,
        prompt_param="prompt" if body.prompt is not None else "prompt_ids",
    )


def timings(run: Run) -> dict[str, float | None]:
    """Where the time of this request went, in milliseconds; tokens_per_s counts from the first token on."""
    stamps = run.stamps
    tpot_s = stamps.tpot_s(run.num_completion_tokens)
    return {
        "queue_ms": milliseconds(stamps.queue_s),
        "prefill_ms": milliseconds(stamps.prefill_s),
        "ttft_ms": milliseconds(stamps.ttft_s),
        "tpot_ms": milliseconds(tpot_s),
        "total_ms": milliseconds(stamps.total_s),
        "tokens_per_s": round(1 / tpot_s, 3) if tpot_s else None,
    }


async def _answer(generation: Generation, wanted: GenerationRequest, body: GenerateRequest) -> Response:
    async with generation.run(wanted) as run:
        choice = (await collect(run, generation.wait_s))[0]
        strings = run.text_model.token_strings
        content: dict[str, Any] = {
            "id": f"gen-{secrets.token_hex(12)}",
            "model": run.variant.id,
            "text": choice.text,
            "token_ids": choice.token_ids,
            "finish_reason": choice.finish_reason,
            "usage": usage(run),
            "timings": timings(run),
        }
        if body.return_token_ids:
            content["prompt_ids"] = run.choices[0].prompt_ids
        if body.logprobs is not None:
            lists = _lists_of(body, strings)
            content["logprobs"] = lists.lists(choice.token_ids, choice.logprobs, choice.text)
        if body.prompt_logprobs is not None:
            content["prompt_logprobs"] = prompt_logprobs(run.choices[0].prompt_logprobs, strings)
    return Response(_encode(content), media_type="application/json")


def _lists_of(body: GenerateRequest, strings: TokenStrings) -> CompletionLogprobs:
    return CompletionLogprobs(body.logprobs or 0, strings, shows_special=body.skip_special_tokens is False)


class GenerateChunks:
    """Events {text, token_ids, finish_reason}, then one with usage and timings."""

    def __init__(self, body: GenerateRequest) -> None:
        self._body = body
        self._id = f"gen-{secrets.token_hex(12)}"

    def begin(self, run: Run) -> None:
        """Remember whose usage and timings to tell at the end."""
        self._run = run
        self._lists = _lists_of(self._body, run.text_model.token_strings)

    def chunk(self, delta: Delta) -> str:
        """One event."""
        content: dict[str, Any] = {
            "id": self._id,
            "text": delta.text,
            "token_ids": delta.token_ids,
            "finish_reason": delta.finish_reason,
        }
        if self._body.logprobs is not None:
            content["logprobs"] = self._lists.lists(delta.token_ids, delta.logprobs, delta.text)
        return event(content).decode()

    def end(self) -> str:
        """What the request took."""
        last = {"id": self._id, "model": self._run.variant.id, "usage": usage(self._run), "timings": timings(self._run)}
        return event(last).decode()
