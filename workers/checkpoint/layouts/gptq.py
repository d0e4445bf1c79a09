"""GPTQ files: codes packed along the input columns, one group index per column.

Version 1 (AutoGPTQ) stores each zero point less one; version 2 (GPTQModel) stores it as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.layouts import kept_modules
from workers.checkpoint.layouts.layout import SchemeGroup, only_scheme
from workers.checkpoint.layouts.packing import fills_words, pack, packed_length, unpack
from workers.checkpoint.layouts.stored import FLOATS, StoredLinear, group_index
from workers.formats.codes import Codes, GridCodes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme

_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class GptqLayout:
    """qweight (K * b / 32, N), qzeros (G, N * b / 32), scales (G, N) fp16, g_idx (K,)."""

    name: str
    zero_offset: int
    scale_dtype: torch.dtype = torch.float16

    def accepts(self, scheme: Scheme) -> bool:
        """Grids of 2, 3, 4 or 8 bits with activations as they are; version 1 symmetric ones.

        A zero point of 0 less one would wrap around, and readers of version 1 disagree on what it means then.
        """
        is_plain = scheme.kind == "grid" and scheme.num_bits in _BITS and scheme.activation_bits is None
        return is_plain and (scheme.symmetric or self.zero_offset == 0)

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """The four tensors. Raises WorkerError (invalid_request) if N or K do not fill words."""
        groups, bits = scheme.num_groups(in_features), scheme.num_bits
        return {
            "qweight": TensorLayout(dtype=torch.int32, shape=(packed_length(in_features, bits), out_features)),
            "qzeros": TensorLayout(dtype=torch.int32, shape=(groups, packed_length(out_features, bits))),
            "scales": TensorLayout(dtype=torch.float16, shape=(groups, out_features)),
            "g_idx": TensorLayout(dtype=torch.int32, shape=(in_features,)),
        }

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: a grid that the layout accepts."""
        assert isinstance(codes, GridCodes)
        zero = codes.zero.to(torch.int64) - self.zero_offset
        return {
            "qweight": pack(codes.codes, codes.num_bits).T.contiguous(),
            "qzeros": pack(zero.T, codes.num_bits).contiguous(),
            "scales": codes.scale.to(torch.float16).T.contiguous(),
            "g_idx": codes.column_groups().to(torch.int32),
        }

    def decode(
        self, module: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> GridCodes:
        """A grid; the group index is kept only where act-order has mixed the columns."""
        held, bits = StoredLinear(module, stored), int(config["bits"])
        if not (fills_words(in_features, bits) and fills_words(out_features, bits)):
            raise held.corrupt(f"has {out_features} x {in_features} weights, which do not fill words of {bits} bits")
        words = packed_length(in_features, bits)
        qweight = held.take("qweight", (words, out_features), {torch.int32})
        scale = held.take("scales", (None, out_features), FLOATS).T.contiguous()
        qzeros = held.take("qzeros", (scale.shape[1], packed_length(out_features, bits)), {torch.int32})
        zero = (unpack(qzeros, bits).to(torch.int64) + self.zero_offset) % 2**bits
        return GridCodes(
            num_bits=bits,
            codes=unpack(qweight.T, bits),
            scale=scale,
            zero=zero.to(torch.uint8).T.contiguous(),
            group_index=group_index(held, "g_idx", in_features, scale.shape[1]),
        )

    def quantization_config(self, groups: Sequence[SchemeGroup], ignore: list[str]) -> dict[str, Any]:
        """As AutoGPTQ and GPTQModel write it.

        Kept modules inside the layers are told twice: transformers reads the names of what is compressed, GPTQModel
        patterns of what is not. Either would make something of tensors that are not there.
        """
        scheme, compressed = only_scheme(self.name, groups), groups[0].modules
        kept = kept_modules.inside_layers(ignore)
        told: dict[str, Any] = {}
        if kept:
            told["modules_in_block_to_quantize"] = [kept_modules.endings(compressed, kept)]
            patterns = kept_modules.bare(kept_modules.patterns(kept, compressed))
            told["dynamic"] = {f"-:{pattern}": {} for pattern in patterns}
        return {
            "quant_method": "gptq",
            "bits": scheme.num_bits,
            "group_size": scheme.group_size,
            "sym": scheme.symmetric,
            "desc_act": scheme.act_order,
            "checkpoint_format": self.name,
            "lm_head": False,
            **told,
        }

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """By quant_method and checkpoint_format; without one it is version 1."""
        dynamic = quantization_config.get("dynamic") or {}
        # "-:" names modules that are not compressed; anything else gives some of them other bits.
        is_uniform = isinstance(dynamic, Mapping) and all(str(key).startswith("-:") for key in dynamic)
        if quantization_config.get("quant_method") != "gptq" or not is_uniform:
            return False
        return (
            quantization_config.get("bits") in _BITS
            and (quantization_config.get("checkpoint_format") or "gptq") == self.name
        )

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """True with qweight, qzeros and scales."""
        return {"qweight", "qzeros", "scales"} <= stored.keys()
