"""NF4 and FP4 against bitsandbytes and against the construction of the QLoRA paper."""

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from workers.compress import codebook
from workers.formats.codes import NestedAbsmax


def weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_nf4_levels_are_normal_quantiles() -> None:
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    upper = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    lower = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    levels = sorted([*upper, 0.0, *lower])

    assert codebook.LEVELS["nf4"] == pytest.approx([level / levels[-1] for level in levels], abs=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_each_weight_gets_the_nearest_level_of_its_block(kind: str) -> None:
    values = weight((7, 45))

    codes = codebook.quantize(values, kind, 64, False)

    levels = torch.tensor(codebook.LEVELS[kind], dtype=torch.float64)
    for start in range(0, values.numel(), 64):
        block = values.reshape(-1)[start : start + 64].double()
        distances = (block[:, None] - levels * block.abs().max()).abs()
        chosen = (block - codes.dequantize().reshape(-1)[start : start + 64].double()).abs()
        torch.testing.assert_close(chosen, distances.amin(1), rtol=0, atol=1e-6)


def test_blocks_of_zeros_come_back_as_zeros() -> None:
    values = weight((2, 128))
    values[0] = 0

    for kind in ("nf4", "fp4"):
        assert codebook.quantize(values, kind, 64, True).dequantize()[0].abs().max() < 0.2
        assert codebook.quantize(values, kind, 64, False).dequantize()[0].abs().max() == 0


@pytest.mark.parametrize("double_quant", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 96), (1030, 64), (33, 70)], ids=["whole", "nested-tail", "tail"])
def test_codes_equal_bitsandbytes(shape: tuple[int, int], kind: str, double_quant: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the oracle")
    values = weight(shape)

    packed, state = functional.quantize_4bit(values, blocksize=64, compress_statistics=double_quant, quant_type=kind)
    ours = codebook.quantize(values, kind, 64, double_quant)

    flat = packed.reshape(-1)
    theirs = torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1)[: values.numel()]
    assert torch.equal(ours.codes.reshape(-1), theirs)
    if double_quant:
        assert isinstance(ours.absmax, NestedAbsmax)
        assert torch.equal(ours.absmax.codes, state.absmax)
        assert torch.equal(ours.absmax.code, state.state2.code)
        assert torch.equal(ours.absmax.absmax, state.state2.absmax)
        assert ours.absmax.offset == float(state.offset)
    else:
        assert torch.equal(ours.absmax, state.absmax)
