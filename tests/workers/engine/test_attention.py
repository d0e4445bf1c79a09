"""Paged attention against plain fp64 softmax attention over each sequence by itself."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.workers.engine.driving import Driver
from tests.workers.engine.parity import NUM_TOKENS, serve
from workers.engine.attention import PagedAttention
from workers.engine.kv_pool import PAGE_SIZE, AttentionShape, LayerPool
from workers.engine.plan import StepPlan
from workers.engine.probe import measured_window, register_attention
from workers.engine.refusal import LaneRefusedError
from workers.engine.sequence import Row, Sequence
from workers.protocol.specs import SamplingParams

NUM_HEADS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM = 4, 2, 8, 12
# (tokens already in the pool, new tokens, pages)
RUN, SCATTERED = [4, 5, 6], [9, 2, 7]
LAYOUTS = {
    "decode-run": [(33, 1, RUN)],
    "decode-scattered": [(33, 1, SCATTERED)],
    "first-chunk": [(0, 20, RUN)],
    "later-chunk": [(17, 9, SCATTERED)],
    "mixed": [(20, 5, SCATTERED), (33, 1, RUN), (0, 9, [0]), (7, 1, [1])],
}


def reference(query: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None, **extras: object) -> Tensor:
    """query: (n, heads, key_dim) at positions from `start`; keys, values: (start + n, kv_heads, dim); all fp64."""
    output = torch.empty(*query.shape[:2], values.shape[2], dtype=torch.float64)
    softcap, sinks = extras.get("softcap"), extras.get("sinks")
    for i in range(query.shape[0]):
        position = start + i
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(query.shape[1]):
            group = head // (query.shape[1] // keys.shape[1])
            scores = keys[first : position + 1, group] @ query[i, head] / math.sqrt(query.shape[2])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1].double()])
            weights = scores.softmax(0)[: position + 1 - first]
            output[i, head] = weights @ values[first : position + 1, group]
    return output


@pytest.mark.parametrize("is_batched", [False, True], ids=["one-by-one", "at-once"])
@pytest.mark.parametrize("window", [None, 6], ids=["full", "window"])
@pytest.mark.parametrize("extra", ["plain", "softcap", "sinks"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_matches_reference(layout: str, extra: str, window: int | None, is_batched: bool) -> None:
    torch.manual_seed(0)
    module = nn.Identity()
    shape = AttentionShape(
        num_kv_heads=NUM_KV_HEADS, key_dim=KEY_DIM, value_dim=VALUE_DIM, dtype=torch.float32, window=window
    )
    pool = LayerPool(shape, 10 * PAGE_SIZE, torch.device("cpu"))
    # NaN where nobody has written: whoever reads a foreign slot is found out
    pool.keys.fill_(torch.nan)
    pool.values.fill_(torch.nan)
    rows, keys, values, queries = [], [], [], []
    for start, num_tokens, pages in LAYOUTS[layout]:
        sequence = Sequence(
            request_id="", prompt_ids=[0] * 64, params=SamplingParams(max_tokens=1), num_computed_tokens=start
        )
        sequence.block_table = pages
        rows.append(Row(sequence=sequence, num_tokens=num_tokens))
        keys.append(torch.randn(start + num_tokens, NUM_KV_HEADS, KEY_DIM))
        values.append(torch.randn(start + num_tokens, NUM_KV_HEADS, VALUE_DIM))
        queries.append(torch.randn(num_tokens, NUM_HEADS, KEY_DIM))
        slots = torch.tensor(
            [pages[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(start)], dtype=torch.long
        )
        pool.write(slots, keys[-1][:start], values[-1][:start])
    sinks = torch.randn(NUM_HEADS) if extra == "sinks" else None
    softcap = 1.5 if extra == "softcap" else None
    attention = PagedAttention({module: pool}, is_batched=is_batched)
    plan = attention.plan = StepPlan(rows, torch.device("cpu"), torch.float32, is_cut_at_pages=not is_batched)

    def packed(parts: list[Tensor]) -> Tensor:
        new = [part[-row.num_tokens :] for part, row in zip(parts, rows, strict=True)]
        return torch.cat([new[i] for i in plan.order])[None].transpose(1, 2)

    output, weights = attention(
        module, packed(queries), packed(keys), packed(values), None, softcap=softcap, s_aux=sinks, dropout=0.0
    )

    assert weights is None
    expected = [
        reference(q.double(), k.double(), v.double(), row.start, window, softcap=softcap, sinks=sinks)
        for q, k, v, row in zip(queries, keys, values, rows, strict=True)
    ]
    # fp32 against fp64: a softmax of 34 terms and a weighted sum of values near 1, about 100 roundings of 6e-8
    torch.testing.assert_close(output[0].double(), torch.cat([expected[i] for i in plan.order]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_decoding_all_rows_at_once_equals_generate(name: str) -> None:
    served = serve(name)
    runner = served.choice.runner
    pools = runner._attention._pools
    runner._attention = attention = PagedAttention(pools, is_batched=True)
    runner._call.model.set_attn_implementation(register_attention(attention))

    assert Driver(runner, is_scattered=True).generate(served.prompts, NUM_TOKENS) == served.expected


@pytest.mark.parametrize(
    ("argument", "value"), [("position_bias", torch.zeros(1)), ("is_causal", False), ("indices", [1]), ("unheard", 0)]
)
def test_unknown_argument_is_refused_by_name(argument: str, value: object) -> None:
    attention = PagedAttention({}, is_batched=False)
    tensor = torch.zeros(1, 2, 1, 4)

    with pytest.raises(LaneRefusedError, match=argument):
        attention(nn.Identity(), tensor, tensor, tensor, None, **{argument: value})


def test_a_mask_of_the_models_own_making_is_refused() -> None:
    attention = PagedAttention({}, is_batched=False)
    tensor = torch.zeros(1, 2, 1, 4)

    with pytest.raises(LaneRefusedError, match="mask"):
        attention(nn.Identity(), tensor, tensor, tensor, torch.zeros(1, 1, 1, 1))


def test_window_is_measured_from_the_mask() -> None:
    def sliding(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - 4096)

    assert measured_window(sliding, 32768) == 4096
    assert measured_window(sliding, 4096) is None
    assert measured_window(lambda batch, head, query, key: key <= query, 32768) is None


@pytest.mark.parametrize("kind", ["chunked", "bidirectional"])
def test_other_masks_are_refused(kind: str) -> None:
    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key // 8192 == query // 8192) if kind == "chunked" else key >= 0

    with pytest.raises(LaneRefusedError, match="sliding window"):
        measured_window(mask, 32768)
