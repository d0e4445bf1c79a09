"""Layouts against slow readings of the formats' definitions, one number at a time."""

import pytest
import torch

from workers.checkpoint.layouts.table import LAYOUTS, recognize
from workers.formats.codes import GridCodes
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError

_N, _K, _GROUP = 64, 96, 32
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def _grid(num_bits: int, *, act_order: bool = False) -> GridCodes:
    random = torch.Generator().manual_seed(num_bits)
    groups = torch.arange(_K, dtype=torch.int32) // _GROUP
    return GridCodes(
        num_bits=num_bits,
        codes=torch.randint(0, 2**num_bits, (_N, _K), generator=random, dtype=torch.uint8),
        scale=torch.rand(_N, _K // _GROUP, generator=random).to(torch.float16),
        zero=torch.randint(1, 2**num_bits, (_N, _K // _GROUP), generator=random, dtype=torch.uint8),
        group_index=groups[torch.randperm(_K, generator=random)] if act_order else None,
    )


def _bits(words: list[int], index: int, num_bits: int) -> int:
    """Value `index` of a stream of bits through int32 words, the lowest bit first."""
    stream = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return (stream >> (index * num_bits)) & (2**num_bits - 1)


@pytest.mark.parametrize("act_order", [False, True], ids=["in-order", "act-order"])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "offset"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_stores_what_its_definition_reads(name: str, offset: int, num_bits: int, act_order: bool) -> None:
    codes = _grid(num_bits, act_order=act_order)
    scheme = Scheme(kind="grid", num_bits=num_bits, group_size=_GROUP, symmetric=False, act_order=act_order)

    stored = LAYOUTS[name].encode(codes)

    planned = LAYOUTS[name].plan(scheme, _N, _K)
    assert {key: (t.dtype, tuple(t.shape)) for key, t in stored.items()} == {
        key: (t.dtype, t.shape) for key, t in planned.items()
    }
    weight = codes.dequantize()
    for n, k in [(0, 0), (1, 10), (7, 21), (13, 31), (63, 95), (30, 43)]:
        group = int(stored["g_idx"][k])
        q = _bits(stored["qweight"][:, n].tolist(), k, num_bits)
        zero = _bits(stored["qzeros"][group].tolist(), n, num_bits) + offset
        assert float(stored["scales"][group, n]) * (q - zero) == pytest.approx(float(weight[n, k]))


def test_awq_stores_what_its_definition_reads() -> None:
    codes = _grid(4)

    stored = LAYOUTS["awq"].encode(codes)

    planned = LAYOUTS["awq"].plan(Scheme(kind="grid", num_bits=4, group_size=_GROUP, symmetric=False), _N, _K)
    assert {key: tuple(t.shape) for key, t in stored.items()} == {key: t.shape for key, t in planned.items()}
    weight = codes.dequantize()
    for n, k in [(0, 0), (1, 10), (7, 21), (13, 31), (63, 95), (30, 43)]:
        place = _AWQ_ORDER.index(n % 8)
        q = _bits([int(stored["qweight"][k, n // 8])], place, 4)
        zero = _bits([int(stored["qzeros"][k // _GROUP, n // 8])], place, 4)
        assert float(stored["scales"][k // _GROUP, n]) * (q - zero) == pytest.approx(float(weight[n, k]))


_GPTQ_CASES = [(n, b, a) for n in ("gptq", "gptq_v2") for b in (2, 3, 4, 8) for a in (False, True)]


@pytest.mark.parametrize(("name", "num_bits", "act_order"), [*_GPTQ_CASES, ("awq", 4, False)])
def test_decode_gives_back_what_was_encoded(name: str, num_bits: int, act_order: bool) -> None:
    layout = LAYOUTS[name]
    scheme = Scheme(kind="grid", num_bits=num_bits, group_size=_GROUP, symmetric=False, act_order=act_order)
    codes = _grid(num_bits, act_order=act_order)
    assert layout.accepts(scheme)

    config = layout.quantization_config(scheme, [])
    back = layout.decode(layout.encode(codes), config, _N, _K)

    assert recognize(config) is layout
    assert isinstance(back, GridCodes)
    assert torch.equal(back.codes, codes.codes)
    assert torch.equal(back.zero, codes.zero)
    assert torch.equal(back.dequantize(), codes.dequantize())


def test_gptq_v1_refuses_a_zero_point_of_zero() -> None:
    codes = _grid(4)
    codes.zero[3, 1] = 0

    with pytest.raises(WorkerError, match="gptq_v2"):
        LAYOUTS["gptq"].encode(codes)


def test_awq_refuses_act_order() -> None:
    assert not LAYOUTS["awq"].accepts(Scheme(kind="grid", num_bits=4, act_order=True))


def test_recognize_names_what_it_cannot_read() -> None:
    with pytest.raises(WorkerError, match="'hqq'"):
        recognize({"quant_method": "hqq"})
