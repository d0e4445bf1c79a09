"""One prompt, several variants of a base: what each says, where they part, and what the base thinks of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.catalog import Catalog
from app.core.collected import Collected, collect
from app.core.generation import Generation, Run
from app.core.request import GenerationRequest
from app.core.variants import Variant, VariantState
from app.errors import InvalidRequest, NotFound, Unavailable
from workers.protocol.messages import TokenLogprob
from workers.protocol.specs import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one variant said. parent_logprobs: of each of its tokens, None where the parent is not loaded.

    first_divergence: number of the first token that is not the reference's, None if all are.
    """

    run: Run
    collected: Collected
    parent_logprobs: list[float] | None
    first_divergence: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """The answers. parent: the uncompressed variant that scored them; reference: whose answer they are held against."""

    parent: str | None
    reference: str
    answers: list[Answer]


def chosen_variants(catalog: Catalog, base: str | None, variants: Sequence[str] | None) -> list[Variant]:
    """The variants that a request means: those named, which share a base, or all of a base that are loaded.

    Raises ModelNotFound, NotFound, InvalidRequest for variants of two bases, Unavailable if none is loaded.
    """
    if variants is not None:
        found = [catalog.model(name) for name in dict.fromkeys(variants)]
        others = [one.id for one in found if one.base != found[0].base]
        if others:
            raise InvalidRequest(
                f"'{others[0]}' is of another base than '{found[0].id}', and so are its tokens.", param="variants"
            )
        return found
    assert base is not None, "the body has one of the two"
    known = [one for one in catalog.models() if one.base == base]
    if not known:
        raise NotFound(f"No base '{base[:64]}'; GET /v1/bases lists them.", code="base_not_found", param="base")
    ready = [one for one in known if one.state is VariantState.READY]
    if not ready:
        raise Unavailable(
            f"No variant of '{base}' is loaded; load some, or name them in 'variants'.",
            retry_after_s=5,
            code="model_not_loaded",
        )
    return ready


async def generate_side_by_side(
    generation: Generation, catalog: Catalog, variants: Sequence[Variant], request: GenerationRequest
) -> SideBySide:
    """Run the request on one variant after the other, so that none slows another down, and then score all answers.

    A variant that is not loaded is loaded first, and the load is no part of its times.
    Raises ApiError as a request to any of them does.
    """
    said = []
    for one in variants:
        async with generation.serving(one.id):
            said.append(await _run(generation, replace(request, model=one.id)))
    parent = _parent(catalog, variants[0].base)
    names = [run.variant.id for run, _ in said]
    reference = parent if parent in names else names[0]
    expected = said[names.index(reference)][1].token_ids
    answers = [
        Answer(
            run=run,
            collected=collected,
            parent_logprobs=None
            if parent is None
            else await _score(generation, parent, run.choices[0].prompt_ids, collected.token_ids),
            first_divergence=first_divergence(expected, collected.token_ids),
        )
        for run, collected in said
    ]
    return SideBySide(parent=parent, reference=reference, answers=answers)


def first_divergence(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two sequences differ, the end of the shorter one included; None if they are equal."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


async def _run(generation: Generation, request: GenerationRequest) -> tuple[Run, Collected]:
    async with generation.run(request) as run:
        return run, (await collect(run, generation.wait_s))[0]


async def _score(generation: Generation, parent: str, prompt_ids: list[int], token_ids: list[int]) -> list[float]:
    """Natural-log probabilities of the tokens behind the prompt, each given all before it."""
    request = GenerationRequest(
        model=parent,
        prompts=[[*prompt_ids, *token_ids]],
        params=SamplingParams(max_tokens=0, temperature=0.0, prompt_logprobs=0),
        max_tokens=0,
    )
    run, _ = await _run(generation, request)
    scored: list[TokenLogprob | None] = run.choices[0].prompt_logprobs[len(prompt_ids) :]
    return [entry.logprob for entry in scored if entry is not None]


def _parent(catalog: Catalog, base: str) -> str | None:
    """The uncompressed variant, if it is loaded."""
    entry = catalog.of_base(base)
    return entry.row.id if entry is not None and entry.life.is_serving else None
