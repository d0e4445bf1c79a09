"""POST /v1/recommend: which variants of a base satisfy some constraints, and what to make or measure next."""

from app.core import fit
from app.core.choices import limits
from app.core.comparison import Comparison
from app.core.ranking import Candidate, Constraints, Verdict, better_than, judge, rank, trade_offs
from app.core.suggestions import Situation, suggest
from app.schemas.comparison import (
    RankedObject,
    RecommendationObject,
    RejectedObject,
    SuggestionObject,
    UnmeasuredObject,
)


def recommend(comparison: Comparison, constraints: Constraints) -> RecommendationObject:
    """The answer, for constraints that limit something."""
    candidates = comparison.candidates()
    better = better_than(trade_offs(candidates, constraints.streams))
    members = {name: None if others is None else not others for name, others in better.items()}
    ranked = rank(candidates, constraints)
    rest = [verdict for one in candidates if not (verdict := judge(one, constraints)).qualifies]
    states = {one.id: one.state for one in comparison.variants}
    return RecommendationObject(
        base=comparison.base.name,
        device=comparison.device,
        constraints=limits(constraints),
        ranked=[
            RankedObject(
                variant=verdict.candidate.variant,
                rank=position,
                is_pareto=members[verdict.candidate.variant],
                state=states[verdict.candidate.variant],
                reasons=[
                    *verdict.kept,
                    *_standing(verdict.candidate, ranked, constraints, better[verdict.candidate.variant] or []),
                ],
            )
            for position, verdict in enumerate(ranked, start=1)
        ],
        rejected=[
            RejectedObject(variant=verdict.candidate.variant, reasons=list(verdict.broken))
            for verdict in rest
            if verdict.broken
        ],
        unmeasured=[
            UnmeasuredObject(variant=verdict.candidate.variant, missing=list(verdict.unknown))
            for verdict in rest
            if not verdict.broken
        ],
        pareto=[name for name, is_member in members.items() if is_member],
        suggestions=_suggestions(comparison, candidates, constraints),
    )


def _standing(candidate: Candidate, ranked: list[Verdict], constraints: Constraints, better: list[str]) -> list[str]:
    """What speaks for or against one that qualifies, beside the others that do. better: those that dominate it."""
    qualified = [verdict.candidate for verdict in ranked]
    speeds = {one.variant: one.speeds[constraints.streams] for one in qualified if constraints.streams in one.speeds}
    said = []
    if candidate.weight_bytes == min(one.weight_bytes for one in qualified):
        said.append(f"smallest of those that qualify, {candidate.weight_bytes:,} bytes of weights")
    if candidate.kl is not None and candidate.kl == min(one.kl for one in qualified if one.kl is not None):
        said.append(f"nearest to the base of those that qualify, KL {candidate.kl:.5f}")
    own = speeds.get(candidate.variant)
    if own is not None and own.tokens_per_s == max(speed.tokens_per_s for speed in speeds.values()):
        said.append(f"fastest of those that qualify, {own.tokens_per_s:.1f} tokens/s")
    if better:
        said.append(f"{better[0]} is at least as good in everything and better in something")
    return said


def _suggestions(
    comparison: Comparison, candidates: list[Candidate], constraints: Constraints
) -> list[SuggestionObject]:
    kinds = {one.id: one for one in comparison.variants}
    casts = [one for one in candidates if kinds[one.variant].kind == "cast"]
    if not casts:
        return []
    reference = min(casts, key=lambda one: not comparison.is_reference(kinds[one.variant]))
    situation = Situation(
        base=reference,
        made=[one for one in candidates if kinds[one.variant].kind == "compressed"],
        constraints=constraints,
        is_cuda=fit.is_cuda(comparison.device),
        quarantined=[comparison.candidate(one) for one in comparison.quarantined],
    )
    return [SuggestionObject(method=one.method, reason=one.reason) for one in suggest(situation)]
