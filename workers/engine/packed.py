"""The packed lane: all rows of a step in one forward [1, N], so that they share one read of the weights."""

from collections.abc import Sequence as Many

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.attention import PagedAttention
from workers.engine.cache import PassthroughCache
from workers.engine.kv_pool import PAGE_SIZE, LayerPool
from workers.engine.model_call import ModelCall
from workers.engine.plan import StepPlan
from workers.engine.probe import ModelFacts, register_attention, set_attention
from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Row, Sequence


class PackedRunner:
    """Rows in, logits out, for models whose only memory between steps is keys and values."""

    def __init__(self, model: PreTrainedModel, facts: ModelFacts, num_pages: int) -> None:
        self.vocab_size = facts.vocab_size
        self._is_cpu = model.device.type == "cpu"
        self.geometry = CacheGeometry(num_pages=num_pages, page_size=PAGE_SIZE, prefers_runs=self._is_cpu)
        self._call = ModelCall(model)
        self._cache = PassthroughCache(model.config)
        self._attention = paged_attention(model, facts, num_pages)
        self._mask_dtype = facts.attention_dtype

    @torch.inference_mode()
    def forward(self, rows: Many[Row]) -> list[Tensor]:
        """See `Runner`. Keys and values of the step are written in place; writing them again changes nothing."""
        call = self._call
        plan = StepPlan(rows, call.device, self._mask_dtype, is_cut_at_pages=self._is_cpu)
        self._attention.plan = plan
        token_ids, positions = call.tensor(plan.token_ids), call.tensor(plan.positions)
        kept = None if plan.keeps_all else call.tensor(plan.kept_indices())
        logits = call(token_ids[None], positions[None], self._cache, kept)
        return plan.in_callers_order(logits[0])

    def release(self, sequence: Sequence) -> None:
        """Nothing: pages belong to the scheduler."""


def paged_attention(model: PreTrainedModel, facts: ModelFacts, num_pages: int) -> PagedAttention:
    """Allocate the KV pool of `num_pages` pages and put an attention over it into `model`."""
    pools = {module: LayerPool(shape, num_pages * PAGE_SIZE, model.device) for module, shape in facts.attention.items()}
    attention = PagedAttention(pools, is_batched=model.device.type != "cpu")
    set_attention(model, register_attention(attention))
    return attention
