"""What a compression job may be asked for: one struct per method, each with the options that method has.

The tag is the method's name on the wire. Ranges are checked on both sides by msgspec's constraints.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

NumBits = Literal[2, 3, 4, 8]
# -1: one group per output channel. 0: one scale for the whole tensor.
GroupSize = Annotated[int, Meta(ge=-1, le=1024)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]


class CastRecipe(Struct, frozen=True, kw_only=True, tag="cast", forbid_unknown_fields=True):
    """Store the weights in another floating-point type."""

    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"


class RtnRecipe(Struct, frozen=True, kw_only=True, tag="rtn", forbid_unknown_fields=True):
    """Round to nearest on a uniform grid: no data, seconds."""

    num_bits: NumBits = 4
    group_size: GroupSize = 128
    symmetric: bool = True


class Int8Recipe(Struct, frozen=True, kw_only=True, tag="int8", forbid_unknown_fields=True):
    """8-bit weights, one symmetric scale per output channel, activations as they are."""


class LlmInt8Recipe(Struct, frozen=True, kw_only=True, tag="llm_int8", forbid_unknown_fields=True):
    """LLM.int8(): vector-wise int8 products, input columns with |x| >= threshold in floating point."""

    threshold: Annotated[float, Meta(ge=0.0, le=1000.0)] = 6.0


class Nf4Recipe(Struct, frozen=True, kw_only=True, tag="nf4", forbid_unknown_fields=True):
    """4-bit NormalFloat of QLoRA; block_size weights share an absmax."""

    block_size: Literal[64, 128, 256, 512] = 64
    double_quant: bool = True


class Fp4Recipe(Struct, frozen=True, kw_only=True, tag="fp4", forbid_unknown_fields=True):
    """bitsandbytes' 4-bit float; block_size weights share an absmax."""

    block_size: Literal[64, 128, 256, 512] = 64
    double_quant: bool = True


class GptqRecipe(Struct, frozen=True, kw_only=True, tag="gptq", forbid_unknown_fields=True):
    """GPTQ: rounding errors are pushed into columns that are still free, by the inverse Hessian of the inputs.

    act_order: columns with the largest Hessian diagonal first. damp_percent: of the mean diagonal, raised by itself
    until the Hessian can be factored. true_sequential: later linears of a layer see the compressed earlier ones.
    search_range: each group's grid covers the part of its range that rounds with the least error, not all of it.
    """

    num_bits: NumBits = 4
    group_size: GroupSize = 128
    symmetric: bool = True
    act_order: bool = True
    damp_percent: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.01
    true_sequential: bool = True
    search_range: bool = True


class AwqRecipe(Struct, frozen=True, kw_only=True, tag="awq", forbid_unknown_fields=True):
    """AWQ: channels that see large activations are scaled up before rounding, the layer before scales them down.

    num_ratios: points of the search over alpha in [0, 1]. clip: also search a smaller absmax per group.
    """

    num_bits: NumBits = 4
    group_size: GroupSize = 128
    symmetric: bool = False
    num_ratios: Annotated[int, Meta(ge=2, le=100)] = 20
    clip: bool = True


class SmoothQuantRecipe(Struct, frozen=True, kw_only=True, tag="smoothquant", forbid_unknown_fields=True):
    """SmoothQuant W8A8: activation outliers move into the weights, then both are int8 (weights per channel,
    activations per token, at run time).
    """

    alpha: Fraction = 0.5


class Fp8Recipe(Struct, frozen=True, kw_only=True, tag="fp8", forbid_unknown_fields=True):
    """E4M3 weights; dynamic_activations rounds activations per token too. block_size: 128 gives each square tile of
    weights a scale, as DeepSeek-V3's files have them; -1 each output channel.
    """

    dynamic_activations: bool = True
    block_size: Literal[-1, 128] = -1


class AutoRecipe(Struct, frozen=True, kw_only=True, tag="auto", forbid_unknown_fields=True):
    """Bits for each linear by measured sensitivity, within a budget: either `bits` or `max_bytes`.

    bits: average per weight of what is compressed, scales included. max_bytes: of all weights in the files.
    candidate_bits: what a linear may get, by GPTQ; 16 leaves it as it is. num_windows: of held-out text that
    sensitivities and allocations are measured on.
    """

    bits: Annotated[float, Meta(ge=1.0, le=32.0)] | None = None
    max_bytes: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    candidate_bits: Annotated[tuple[Literal[2, 3, 4, 8, 16], ...], Meta(min_length=2, max_length=5)] = (2, 3, 4, 8, 16)
    group_size: GroupSize = 128
    symmetric: bool = True
    num_windows: Annotated[int, Meta(ge=1, le=256)] = 8


Recipe = (
    CastRecipe
    | RtnRecipe
    | Int8Recipe
    | LlmInt8Recipe
    | Nf4Recipe
    | Fp4Recipe
    | GptqRecipe
    | AwqRecipe
    | SmoothQuantRecipe
    | Fp8Recipe
    | AutoRecipe
)


class Override(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another recipe for the modules whose names match a glob pattern; None leaves them uncompressed."""

    pattern: Annotated[str, Meta(min_length=1, max_length=256)]
    recipe: Recipe | None = None


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text that activations are observed on, tokenized already.

    token_ids_path: a safetensors file with one tensor `token_ids`, (samples, tokens) int32, written by the front end.
    heldout_ids_path: another, with windows of the same text that are in none of the samples; for `auto`.
    """

    token_ids_path: str
    heldout_ids_path: str | None = None
