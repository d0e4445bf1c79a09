"""What `auto` has chosen for a variant: kept in its manifest and shown in its card."""

from dataclasses import dataclass
from typing import Any

import msgspec

from workers.protocol.messages import AllocationTrial, UnitBits
from workers.protocol.recipes import AutoRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """recipe: as asked for. units: what each got. trials: the allocations compared, the chosen one first."""

    recipe: AutoRecipe
    units: list[UnitBits]
    trials: list[AllocationTrial]

    def as_data(self) -> dict[str, Any]:
        """JSON data."""
        return {"units": msgspec.to_builtins(self.units), "trials": msgspec.to_builtins(self.trials)}

    def as_markdown(self) -> str:
        """Two tables."""
        trials = "\n".join(
            f"| {one.name} | {one.num_bytes:,} | {one.kl_sum:.5f} | {one.kl_mean:.5f} |" for one in self.trials
        )
        units = "\n".join(
            f"| {', '.join(f'`{name}`' for name in one.modules)} | {one.num_bits} | {one.kl:.6f} | {one.num_bytes:,} |"
            for one in self.units
        )
        return (
            "\nBits were chosen by measured sensitivity; KL(base, variant) is in nats per token of held-out text. "
            "Allocations compared, best first:\n\n"
            "| allocation | bytes | sum of the units' KL | KL |\n|---|---|---|---|\n"
            f"{trials}\n\n"
            "What each unit got, and the KL with that unit alone in this form:\n\n"
            f"| unit | bits | KL | bytes |\n|---|---|---|---|\n{units}\n"
        )
