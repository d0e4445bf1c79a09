"""GET /v1/compare, POST /v1/compare/generate, POST /v1/recommend, /v1/auto: from measurements to a choice."""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.comparison_text import as_csv, as_markdown
from app.api.generate import timings
from app.api.usage import usage
from app.core import choices
from app.core.chat_template import Conversation
from app.core.choices import SUFFIX, choose, qualified, with_default
from app.core.generation import Generation
from app.core.ranking import Constraints
from app.core.recommendation import recommend
from app.core.request import GenerationRequest
from app.core.server import Server
from app.core.side_by_side import Answer, chosen_variants, generate_side_by_side
from app.errors import NotFound
from app.schemas.comparison import (
    AnswerObject,
    ChoiceObject,
    CompareGenerateBody,
    ConstraintsBody,
    SideBySideObject,
)
from app.store.bases import BaseRow
from workers.protocol.specs import SamplingParams

router = APIRouter()
Form = Literal["json", "csv", "markdown"]
_CSV: Final = "text/csv"
_MARKDOWN: Final = "text/markdown"


@router.get("/v1/compare")
async def compare(
    request: Request,
    base: Annotated[str, Query(min_length=1, max_length=256)],
    device: Annotated[str | None, Query(max_length=64)] = None,
    streams: Annotated[int, Query(ge=1, le=1024)] = 1,
    form: Annotated[Form | None, Query(alias="format")] = None,
) -> Response:
    """The variants of a base side by side: JSON, or CSV or Markdown by `format` or by Accept."""
    server: Server = request.app.state.server
    found = server.catalog.comparison(_base(server, base), device).answer(streams)
    match form or _accepted(request.headers.get("accept", "")):
        case "csv":
            return Response(as_csv(found), media_type=f"{_CSV}; charset=utf-8")
        case "markdown":
            return Response(as_markdown(found), media_type=f"{_MARKDOWN}; charset=utf-8")
    return json_answer(found)


@router.post("/v1/compare/generate")
async def compare_generate(
    request: Request, body: Annotated[CompareGenerateBody, Depends(json_body(CompareGenerateBody))]
) -> Response:
    """One prompt, several variants: texts, where they part, and what the uncompressed model thinks of each token."""
    server: Server = request.app.state.server
    generation: Generation = request.app.state.generation
    variants = chosen_variants(server.catalog, body.base, body.variants)
    work = generate_side_by_side(generation, server.catalog, variants, _to_request(body))
    found = await run_attended(request.receive, work)
    return json_answer(
        SideBySideObject(
            base=variants[0].base,
            parent=found.parent,
            reference=found.reference,
            data=[_answer(one) for one in found.answers],
        )
    )


@router.post("/v1/recommend")
async def recommend_variants(
    request: Request, body: Annotated[ConstraintsBody, Depends(json_body(ConstraintsBody))]
) -> Response:
    """Which measured variants satisfy the constraints, best first, and what to measure or to make next."""
    server: Server = request.app.state.server
    comparison = server.catalog.comparison(_base(server, body.base))
    return json_answer(recommend(comparison, with_default(_constraints(body))))


@router.get("/v1/auto")
async def list_choices(request: Request) -> Response:
    """What `auto` means for each base."""
    server: Server = request.app.state.server
    return json_answer({"object": "list", "data": [_choice(server, base) for base in server.catalog.bases.list()]})


@router.post("/v1/auto")
@router.put("/v1/auto")
async def choose_constraints(
    request: Request, body: Annotated[ConstraintsBody, Depends(json_body(ConstraintsBody))]
) -> Response:
    """Store what `<base>/auto` must satisfy; without any limit the default counts again."""
    server: Server = request.app.state.server
    base = _base(server, body.base)
    await server.catalog.choices.put(base.name, _constraints(body))
    return json_answer(_choice(server, base))


def _base(server: Server, name: str) -> BaseRow:
    found = server.catalog.bases.get(name)
    if found is None:
        raise NotFound(f"No base '{name[:64]}'; GET /v1/bases lists them.", code="base_not_found", param="base")
    return found


def _choice(server: Server, base: BaseRow) -> ChoiceObject:
    catalog = server.catalog
    found = qualified(catalog.comparison(base), catalog.choices.of(base.name))
    chosen = choose(found)
    return ChoiceObject(
        base=base.name,
        model=f"{base.name}{SUFFIX}",
        is_default=catalog.choices.is_default(base.name),
        constraints=choices.limits(catalog.choices.of(base.name)),
        variant=None if chosen is None else chosen.id,
        best=found[0].id if found else None,
    )


def _constraints(body: ConstraintsBody) -> Constraints:
    return Constraints(**body.model_dump(exclude={"base"}))


def _accepted(accept: str) -> str:
    """The first form that the header names; JSON for anything else."""
    for part in accept.lower().split(","):
        media_type = part.partition(";")[0].strip()
        if media_type in (_CSV, _MARKDOWN):
            return media_type.partition("/")[2]
        if media_type == "application/json":
            break
    return "json"


def _to_request(body: CompareGenerateBody) -> GenerationRequest:
    prompt: str | Conversation
    if body.prompt is not None:
        prompt = body.prompt
    else:
        prompt = Conversation(messages=[message.for_template() for message in body.messages or ()])
    return GenerationRequest(
        model="",
        prompts=[prompt],
        params=SamplingParams(
            max_tokens=0,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            ignore_eos=body.ignore_eos,
        ),
        seed=body.seed,
        max_tokens=body.max_tokens,
        stops=tuple(body.stop),
        prompt_param="prompt" if body.prompt is not None else "messages",
    )


def _answer(answer: Answer) -> AnswerObject:
    scores = answer.parent_logprobs
    shown: dict[str, Any] = usage(answer.run)
    return AnswerObject(
        variant=answer.run.variant.id,
        text=answer.collected.text,
        token_ids=answer.collected.token_ids,
        finish_reason=answer.collected.finish_reason,
        first_divergence=answer.first_divergence,
        parent_logprobs=scores,
        parent_logprob_mean=sum(scores) / len(scores) if scores else None,
        usage=shown,
        timings=timings(answer.run),
    )
