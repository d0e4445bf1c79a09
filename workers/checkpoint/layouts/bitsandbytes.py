"""bitsandbytes' files as transformers writes them: NF4 and FP4 with absmax values beside them, and LLM.int8().

4-bit codes run through the flattened weight two a byte, the first in the high half, and so do the blocks that share an
absmax. Where blocks do not divide rows, bitsandbytes 0.50's AVX-512 code misreads its own files as well as ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workers.checkpoint.layouts import kept_modules
from workers.checkpoint.layouts.layout import SchemeGroup, only_scheme
from workers.checkpoint.layouts.quant_state import DTYPE, PREFIX, QUANT_TYPES, QuantState
from workers.checkpoint.layouts.stored import FLOATS, StoredLinear
from workers.formats.codes import CodebookCodes, Codes, NestedAbsmax, OutlierCodes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme

_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
_NESTED_BLOCK = 256
# Rows of int8 one after the other; the other numbers are orders for Turing's and Ampere's tensor cores.
_ROW_MAJOR = 0
_DEFAULT_THRESHOLD = 6.0


class BitsAndBytesLayout:
    """4 bits: weight uint8 (ceil(N * K / 2), 1), weight.absmax, weight.quant_map, weight.quant_state.bitsandbytes__nf4
    and, where absmax values are quantized, weight.nested_absmax, weight.nested_quant_map.

    8 bits: weight int8 (N, K), SCB (N,) fp32 with w = weight * SCB / 127, weight_format.
    """

    name = "bitsandbytes"
    # Of absmax values; there are no grids.
    scale_dtype = torch.float32

    def accepts(self, scheme: Scheme) -> bool:
        """NF4 and FP4 in blocks that bitsandbytes has kernels for, and LLM.int8()."""
        return scheme.kind == "outlier" or (scheme.kind in QUANT_TYPES and scheme.group_size in _BLOCK_SIZES)

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """Every shape has room."""
        if scheme.kind == "outlier":
            return {
                "weight": TensorLayout(dtype=torch.int8, shape=(out_features, in_features)),
                "SCB": TensorLayout(dtype=torch.float32, shape=(out_features,)),
                "weight_format": TensorLayout(dtype=torch.uint8, shape=()),
            }
        state = QuantState(
            quant_type=scheme.kind,
            block_size=scheme.group_size,
            shape=(out_features, in_features),
            nested_block_size=_NESTED_BLOCK if scheme.double_quant else None,
        )
        absmax = torch.uint8 if scheme.double_quant else torch.float32
        tensors = {
            "weight": TensorLayout(dtype=torch.uint8, shape=(-(-out_features * in_features // 2), 1)),
            "weight.absmax": TensorLayout(dtype=absmax, shape=(state.num_blocks,)),
            "weight.quant_map": TensorLayout(dtype=torch.float32, shape=(16,)),
            PREFIX + scheme.kind: TensorLayout(dtype=torch.uint8, shape=(len(state.to_bytes()),)),
        }
        if scheme.double_quant:
            tensors["weight.nested_absmax"] = TensorLayout(dtype=torch.float32, shape=(state.num_nested_blocks,))
            tensors["weight.nested_quant_map"] = TensorLayout(dtype=torch.float32, shape=(256,))
        return tensors

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: NF4, FP4 or LLM.int8()."""
        if isinstance(codes, OutlierCodes):
            absmax = codes.absmax.to(torch.float32)
            return {"weight": codes.codes, "SCB": absmax, "weight_format": torch.tensor(_ROW_MAJOR, dtype=torch.uint8)}
        assert isinstance(codes, CodebookCodes)
        nested = codes.absmax if isinstance(codes.absmax, NestedAbsmax) else None
        flat = codes.codes.reshape(-1)
        pairs = functional.pad(flat, (0, len(flat) % 2)).reshape(-1, 2)
        state = QuantState(
            quant_type=codes.kind,
            block_size=codes.block_size,
            shape=(codes.codes.shape[0], codes.codes.shape[1]),
            nested_block_size=None if nested is None else nested.block_size,
            nested_offset=0.0 if nested is None else nested.offset,
        )
        tensors = {
            "weight": ((pairs[:, :1] << 4) | pairs[:, 1:]).contiguous(),
            "weight.absmax": codes.absmax.codes if isinstance(codes.absmax, NestedAbsmax) else codes.absmax,
            "weight.quant_map": codes.codebook.to(torch.float32),
            PREFIX + codes.kind: state.to_tensor(),
        }
        if nested is not None:
            tensors |= {"weight.nested_absmax": nested.absmax, "weight.nested_quant_map": nested.code}
        return tensors

    def decode(
        self, module: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> Codes:
        """By the tensors that are there: quant_type and block size are each weight's own, whatever the config says."""
        held, shape = StoredLinear(module, stored), (out_features, in_features)
        return _decode_rows(held, config, shape) if "SCB" in stored else _decode_blocks(held, shape)

    def quantization_config(self, groups: Sequence[SchemeGroup], ignore: list[str]) -> dict[str, Any]:
        """As transformers writes its BitsAndBytesConfig."""
        scheme = only_scheme(self.name, groups)
        is_4bit = scheme.kind in QUANT_TYPES
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": is_4bit,
            "load_in_8bit": not is_4bit,
            "bnb_4bit_quant_type": scheme.kind if is_4bit else "fp4",
            "bnb_4bit_use_double_quant": scheme.double_quant,
            "bnb_4bit_compute_dtype": DTYPE,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_threshold": _DEFAULT_THRESHOLD if is_4bit else scheme.threshold,
            "llm_int8_skip_modules": kept_modules.bare(kept_modules.patterns(ignore, groups[0].modules)),
            "llm_int8_has_fp16_weight": False,
            "llm_int8_enable_fp32_cpu_offload": False,
        }

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """Of either kind; early files name no quant_method."""
        is_loaded = any(quantization_config.get(name) is True for name in ("load_in_4bit", "load_in_8bit"))
        return is_loaded and quantization_config.get("quant_method") in (None, "bitsandbytes")

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """True with absmax values of blocks or rows."""
        return "weight.absmax" in stored or "SCB" in stored


def _decode_rows(held: StoredLinear, config: Mapping[str, Any], shape: tuple[int, int]) -> OutlierCodes:
    if "weight_format" in held.tensors and int(held.take("weight_format", (), {torch.uint8})) != _ROW_MAJOR:
        raise held.corrupt("is stored in an order for one kind of GPU, which bitsandbytes has given up")
    threshold = config.get("llm_int8_threshold", _DEFAULT_THRESHOLD)
    if type(threshold) not in (int, float):
        raise held.corrupt(f"cannot be read: llm_int8_threshold is {threshold!r}")
    return OutlierCodes(
        codes=held.take("weight", shape, {torch.int8}),
        absmax=held.take("SCB", (shape[0],), FLOATS).to(torch.float32),
        threshold=float(threshold),
    )


def _decode_blocks(held: StoredLinear, shape: tuple[int, int]) -> CodebookCodes:
    state = QuantState.read(held)
    if state.shape != shape:
        raise held.corrupt(f"is stored as {list(state.shape)}, the model has {list(shape)}")
    num_weights = shape[0] * shape[1]
    # Bytes in any dtype: bnb_4bit_quant_storage changes it for the sake of sharding.
    stored = held.tensors.get("weight")
    packed = None if stored is None else stored.contiguous().reshape(-1).view(torch.uint8)
    if packed is None or len(packed) != -(-num_weights // 2):
        raise held.corrupt(f"has {0 if packed is None else len(packed)} bytes for {num_weights} weights of 4 bits")
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1)[:num_weights]
    return CodebookCodes(
        kind=state.quant_type,
        codes=codes.reshape(shape),
        codebook=held.take("weight.quant_map", (16,), FLOATS).to(torch.float32),
        absmax=_absmax(held, state),
        block_size=state.block_size,
    )


def _absmax(held: StoredLinear, state: QuantState) -> Tensor | NestedAbsmax:
    if state.nested_block_size is None:
        return held.take("weight.absmax", (state.num_blocks,), FLOATS).to(torch.float32)
    return NestedAbsmax(
        codes=held.take("weight.absmax", (state.num_blocks,), {torch.uint8}),
        code=held.take("weight.nested_quant_map", (256,), FLOATS).to(torch.float32),
        absmax=held.take("weight.nested_absmax", (state.num_nested_blocks,), FLOATS).to(torch.float32),
        offset=state.nested_offset,
        block_size=state.nested_block_size,
    )
