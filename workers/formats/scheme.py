"""What is known of a weight's codes before they exist: enough to choose a layout and to plan its tensors."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["grid", "nf4", "fp4", "float8", "outlier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """group_size: input columns per scale (weights per absmax for nf4 and fp4); -1 is one group per row.

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

    def num_groups(self, in_features: int) -> int:
        """Groups of one row."""
        return 1 if self.group_size == -1 else -(-in_features // self.group_size)
