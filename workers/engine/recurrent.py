"""The recurrent lane: models with convolution or state-space layers, alone or beside attention.

Decode rows run as one batch [B, 1] with their states stacked; a prefill row runs by itself [1, L], because modelling
code starts one state per batch entry. Attention layers of hybrid models use the paged pool as in the packed lane.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.cache import PassthroughCache, StateKey
from workers.engine.kv_pool import PAGE_SIZE
from workers.engine.model_call import ModelCall
from workers.engine.packed import paged_attention
from workers.engine.plan import StepPlan
from workers.engine.probe import ModelFacts
from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Row, Sequence


@dataclass(frozen=True, slots=True)
class _Pending:
    """The state of one sequence after its last row: entry `place` of `states`, which stands at position `end`."""

    end: int
    place: int
    states: Mapping[StateKey, Tensor]


class StatePool:
    """One row per slot and state, and the outcomes of rows that are not yet known to count.

    A row may be run again: because its step raised, or because what came after it did. So a new state waits in
    `_pending` until its sequence has moved past it (`num_computed_tokens`); until then the pool holds the one before.
    """

    def __init__(self, facts: ModelFacts, num_slots: int, device: torch.device) -> None:
        self._stores = {
            key: torch.zeros(num_slots, *shape, dtype=dtype, device=device)
            for key, (shape, dtype) in facts.states.items()
        }
        self._device = device
        self._owners: dict[int, tuple[Sequence, int]] = {}
        self._pending: dict[Sequence, _Pending] = {}

    def gather(self, rows: Many[Row]) -> dict[StateKey, Tensor]:
        """Copies of the states before these rows, stacked. All rows start behind position 0."""
        slots = [_slot(row.sequence) for row in rows]
        for slot, row in zip(slots, rows, strict=True):
            if self._owners.get(slot) != (row.sequence, row.start):
                raise RuntimeError(f"slot {slot} does not hold the state before token {row.start} of this sequence")
        index = torch.tensor(slots, device=self._device)
        return {key: store.index_select(0, index) for key, store in self._stores.items()}

    def hold(self, rows: Many[Row], states: Mapping[StateKey, Tensor]) -> None:
        """Keep the states after these rows, (len(rows), ...) each, until it is known whether they count."""
        for place, row in enumerate(rows):
            self._pending[row.sequence] = _Pending(row.end, place, states)

    def settle(self) -> None:
        """Store the states that their sequences have moved past. The others keep waiting."""
        moved: dict[int, list[tuple[Sequence, _Pending]]] = {}
        for sequence, pending in self._pending.items():
            if sequence.num_computed_tokens == pending.end:
                moved.setdefault(id(pending.states), []).append((sequence, pending))
        for members in moved.values():
            states = members[0][1].states
            slots = torch.tensor([_slot(sequence) for sequence, _ in members], device=self._device)
            places = torch.tensor([pending.place for _, pending in members], device=self._device)
            for key, state in states.items():
                self._stores[key].index_copy_(0, slots, state.index_select(0, places))
            for sequence, pending in members:
                self._owners[_slot(sequence)] = (sequence, pending.end)
                del self._pending[sequence]

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence that ended or will start again from its first token."""
        self._pending.pop(sequence, None)
        self._owners = {slot: owner for slot, owner in self._owners.items() if owner[0] is not sequence}


def _slot(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise RuntimeError("a running sequence of a recurrent model needs a slot")
    return sequence.slot


class RecurrentRunner:
    """Rows in, logits out, for models that carry states from step to step."""

    def __init__(
        self, model: PreTrainedModel, facts: ModelFacts, num_pages: int, num_slots: int, *, supports_chunks: bool = True
    ) -> None:
        self.vocab_size = facts.vocab_size
        self.geometry = CacheGeometry(
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            num_slots=num_slots,
            prefers_runs=model.device.type == "cpu",
            supports_prefix_cache=False,
            supports_chunks=supports_chunks,
        )
        self._call = ModelCall(model)
        self._cache = PassthroughCache(model.config)
        self._attention = paged_attention(model, facts, num_pages)
        self._mask_dtype = facts.attention_dtype
        self._states = StatePool(facts, num_slots, model.device)

    @torch.inference_mode()
    def forward(self, rows: Many[Row]) -> list[Tensor]:
        """See `Runner`."""
        self._states.settle()
        decodes = [i for i, row in enumerate(rows) if row.num_tokens == 1 and row.start > 0]
        groups = [[i] for i in range(len(rows)) if i not in decodes]
        result: dict[int, Tensor] = {}
        outcomes = []
        for group in [decodes, *groups] if decodes else groups:
            members = [rows[i] for i in group]
            logits, states = self._forward_group(members)
            outcomes.append((members, states))
            result.update(zip(group, logits, strict=True))
        for members, states in outcomes:
            self._states.hold(members, states)
        return [result[i] for i in range(len(rows))]

    def _forward_group(self, rows: list[Row]) -> tuple[list[Tensor], dict[StateKey, Tensor]]:
        """Rows of one token each, or a single row of any length."""
        call = self._call
        plan = StepPlan(rows, call.device, self._mask_dtype, is_cut_at_pages=False)
        self._attention.plan = plan
        self._cache.load_states(self._states.gather(rows) if rows[0].start > 0 else {})
        shape = (len(rows), -1)
        token_ids, positions = call.tensor(plan.token_ids).view(shape), call.tensor(plan.positions).view(shape)
        wants_all = rows[0].wants_all_logits or len(rows) > 1
        logits = call(token_ids, positions, self._cache, None if wants_all else call.tensor([rows[0].num_tokens - 1]))
        return list(logits), self._cache.states()

    def release(self, sequence: Sequence) -> None:
        """See `Runner`."""
        self._states.forget(sequence)
