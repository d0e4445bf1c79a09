"""What loads would do to memory, without doing it."""

from collections.abc import Sequence
from dataclasses import replace

from app.core import fit, names
from app.core.catalog import Catalog
from app.core.entries import Entry, cast_row
from app.core.load_request import LoadRequest
from app.core.residency import Residency
from app.core.room import Need, Room
from app.core.variants import VariantState
from app.schemas.load import PlannedModel, PlanObject


def plan_loads(requests: Sequence[LoadRequest], catalog: Catalog, residency: Residency) -> PlanObject:
    """Whether these models, on one device, have room side by side, and which idle variants would go for them.

    requests: at least one. Raises ApiError as a load does: unknown, quarantined, loaded with other options, changed.
    """
    found = [_planned(request, catalog, residency, f"models[{index}]") for index, request in enumerate(requests)]
    planned = {one.id: one for one in found}
    device = residency.device(requests[0], catalog.find(requests[0].model))
    needed_bytes = sum(one.needed_bytes for one in planned.values())
    room = _keeping(planned, residency.room(device))
    victims = room.victims(needed_bytes)
    missing = "', '".join(one.id for one in planned.values() if one.source != "loaded")
    need = Need(num_bytes=needed_bytes, is_measured=all(one.source != "estimated" for one in planned.values()))
    return PlanObject(
        fits=victims is not None,
        reason=None if victims is not None else room.refusal(missing, need, may_evict=True).message,
        device=device,
        needed_bytes=needed_bytes,
        free_bytes=room.free_bytes(),
        budget_bytes=room.budget_bytes,
        evicts=[one.variant_id for one in victims or ()],
        busy=[one.variant_id for one in room.residents if one.is_busy and not one.is_planned],
        pinned=[one.variant_id for one in room.residents if one.is_pinned],
        models=[*planned.values()],
    )


def _keeping(planned: dict[str, PlannedModel], room: Room) -> Room:
    """The room in which none of the planned models can be evicted for another of them."""
    residents = [replace(one, is_planned=one.variant_id in planned) for one in room.residents]
    return replace(room, residents=residents)


def _planned(request: LoadRequest, catalog: Catalog, residency: Residency, param: str) -> PlannedModel:
    entry = catalog.find(request.model)
    if entry is None:
        base = catalog.bases.get(request.model.removesuffix("/auto"))
        if base is None:
            raise names.not_found(request.model, [one.row.id for one in catalog.entries()], param)
        dtype, entry = catalog.cast_meant(base, request)
        if entry is None:
            # Its load would make it.
            row = cast_row(base, dtype, base.created)
            return PlannedModel(
                id=row.id,
                state=VariantState.REGISTERED,
                needed_bytes=fit.estimated_bytes(row.weight_bytes, request.kv_cache_bytes),
                source="estimated",
            )
    return _planned_entry(entry, request, catalog, residency)


def _planned_entry(entry: Entry, request: LoadRequest, catalog: Catalog, residency: Residency) -> PlannedModel:
    if not catalog.needs_worker(entry, request):
        return PlannedModel(id=entry.row.id, state=entry.life.state, needed_bytes=0, source="loaded")
    need = residency.need(entry, request)
    return PlannedModel(
        id=entry.row.id,
        state=entry.life.state,
        needed_bytes=need.num_bytes,
        source="measured" if need.is_measured else "estimated",
    )
