"""README.md of a variant: what it is, how it was made, how to load it. The same job writes the same bytes."""

from collections import Counter

from workers.compress.plan import CompressionPlan
from workers.protocol.recipe_names import method_of
from workers.protocol.specs import CompressSpec

_TEXT = """\
---
library_name: transformers
tags: [compressed-tensors, {method}]
---

# {variant}

`{base}` compressed by slimserve with the method `{method}`.

| | |
|---|---|
| weights | {weight_bytes:,} bytes, {ratio:.0%} of the base's {base_bytes:,} |
| compressed linears | {num_compressed} |
| mean relative error of their weights | {mean_error:.2%} |

Kept as they were:

{kept}

Load it with `slimserve load`, or with transformers where `compressed-tensors` is installed.
`manifest.json` has the SHA-256 of every file.
"""


def model_card(
    spec: CompressSpec, plan: CompressionPlan, *, base_bytes: int, weight_bytes: int, mean_error: float
) -> str:
    """The card as Markdown. mean_error: relative Frobenius error, mean over the compressed weights."""
    reasons = Counter(plan.kept.values())
    kept = "\n".join(f"- {count} x {reason}" for reason, count in sorted(reasons.items())) or "- nothing"
    return _TEXT.format(
        variant=spec.variant,
        base=spec.base,
        method=method_of(spec.recipe),
        weight_bytes=weight_bytes,
        base_bytes=base_bytes,
        ratio=weight_bytes / base_bytes,
        num_compressed=len(plan.targets),
        mean_error=mean_error,
        kept=kept,
    )
