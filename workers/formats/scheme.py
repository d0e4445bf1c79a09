"""What is known of a weight's codes before they exist: enough to choose a layout and to plan its tensors."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["grid", "nf4", "fp4", "float8", "outlier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """group_size: input columns per scale (weights per absmax for nf4 and fp4, rows and columns of a square tile for
    float8); -1 is one group per row.

    activation_bits: None keeps activations as they are. threshold: of LLM.int8(), absolute activation value.
    """

    kind: Kind
    num_bits: int
    group_size: int = -1
    symmetric: bool = True
    act_order: bool = False
    activation_bits: int | None = None
    double_quant: bool = False
    threshold: float = 0.0

    @property
    def format(self) -> str:
        """The short name of codes like these: int4, w8a8, nf4, fp8, llm_int8."""
        if self.kind == "grid":
            return grid_format(self.num_bits, self.activation_bits)
        return {"float8": "fp8", "outlier": "llm_int8"}.get(self.kind, self.kind)

    def num_groups(self, in_features: int) -> int:
        """Groups of one row."""
        return 1 if self.group_size == -1 else -(-in_features // self.group_size)


def grid_format(num_bits: int, activation_bits: int | None) -> str:
    """The short name of a uniform grid: int4, or w8a8 where activations are rounded too."""
    return f"w{num_bits}a{activation_bits}" if activation_bits else f"int{num_bits}"
