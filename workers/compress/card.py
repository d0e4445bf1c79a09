"""README.md of a variant: what it is, how it was made, how to load it. The same job writes the same bytes."""

from collections import Counter

from workers.compress.allocation import Allocation
from workers.compress.calibrated import LayerResults
from workers.compress.layer_inputs import family
from workers.compress.plan import CompressionPlan
from workers.protocol.recipe_names import method_of, variant_suffix
from workers.protocol.recipes import CastRecipe, SmoothQuantRecipe
from workers.protocol.specs import CompressSpec

_TEXT = """\
---
library_name: transformers
tags: [{layout}, {method}]
---

# {variant}

`{base}` compressed by slimserve with `{recipe}`, stored as `{layout}`.

| | |
|---|---|
| weights | {weight_bytes:,} bytes, {ratio:.0%} of the base's {base_bytes:,} |
| compressed linears | {num_compressed} |
| mean relative error | {mean_error:.2%} |

Kept as they were:

{kept}
{folds}{allocation}
Load it with `slimserve load`, or with {readers}.
`manifest.json` has the SHA-256 of every file.
"""
_CAST_TEXT = """\
---
library_name: transformers
---

# {variant}

`{base}` with its weights in {dtype}: {weight_bytes:,} bytes, {ratio:.0%} of the base's {base_bytes:,}.

It is a plain checkpoint. `manifest.json` has the SHA-256 of every file.
"""
_GPTQMODEL = "transformers where `gptqmodel` is installed"
_COMPRESSED_TENSORS = "transformers where `compressed-tensors` is installed"


def model_card(
    spec: CompressSpec,
    plan: CompressionPlan,
    layers: LayerResults,
    *,
    layout: str,
    base_bytes: int,
    weight_bytes: int,
    mean_error: float,
    allocation: Allocation | None = None,
) -> str:
    """The card as Markdown. mean_error: see `CompressResult`. allocation: what `auto` has chosen."""
    asked = spec.recipe if allocation is None else allocation.recipe
    reasons = Counter(plan.kept.values())
    kept = "\n".join(f"- {count} x {reason}" for reason, count in sorted(reasons.items())) or "- nothing"
    return _TEXT.format(
        variant=spec.variant,
        base=spec.base,
        method=method_of(asked),
        recipe=variant_suffix(asked),
        layout=layout,
        readers=_readers(layout, spec),
        weight_bytes=weight_bytes,
        base_bytes=base_bytes,
        ratio=weight_bytes / base_bytes,
        num_compressed=len(plan.targets),
        mean_error=mean_error,
        kept=kept,
        folds=_folds(layers),
        allocation="" if allocation is None else allocation.as_markdown(),
    )


def _readers(layout: str, spec: CompressSpec) -> str:
    """Who else reads these files: docs/formats.md tells how that was tried."""
    is_symmetric = getattr(spec.recipe, "symmetric", True)
    match layout:
        case "gptq" | "awq":
            return f"{_GPTQMODEL}, and vLLM"
        case "gptq_v2":
            return f"{_GPTQMODEL}, and vLLM" if is_symmetric else _GPTQMODEL
        case "bitsandbytes":
            return "transformers where `bitsandbytes` is installed"
        case "fp8":
            return "transformers on a GPU, and vLLM"
        case "pack-quantized" if not is_symmetric:
            return "vLLM"
        case "int-quantized" if not isinstance(spec.recipe, SmoothQuantRecipe):
            return _COMPRESSED_TENSORS
        case _:
            return _COMPRESSED_TENSORS if spec.quantize_head else f"{_COMPRESSED_TENSORS}, and vLLM"


def _folds(layers: LayerResults) -> str:
    """What was divided by which linears' scales; the same in many layers is one line. Nothing for other methods."""
    if not layers.folds and not layers.unfolded:
        return ""
    alike = Counter(
        (family(module), ", ".join(f"`{name}`" for name in sorted(set(map(family, readers)))))
        for module, readers in layers.folds.items()
    )
    lines = [f"- {count} x `{module}`, for {readers}" for (module, readers), count in alike.items()]
    reasons = Counter(layers.unfolded.values())
    lines += [f"- {count} x no scales: {reason}" for reason, count in sorted(reasons.items())]
    return "\nDivided by the scales of the linears that read them:\n\n" + "\n".join(lines) + "\n"


def cast_card(spec: CompressSpec, *, base_bytes: int, weight_bytes: int) -> str:
    """The card of a base in another dtype."""
    assert isinstance(spec.recipe, CastRecipe)
    return _CAST_TEXT.format(
        variant=spec.variant,
        base=spec.base,
        dtype=spec.recipe.dtype,
        weight_bytes=weight_bytes,
        base_bytes=base_bytes,
        ratio=weight_bytes / base_bytes,
    )
