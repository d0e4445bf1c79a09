"""A worker beside the variants' own: a measurement has started it, and it holds memory until that ends."""

from dataclasses import dataclass

from app.core import fit
from app.core.room import Resident
from app.supervisor.worker import Worker


@dataclass(slots=True, kw_only=True, eq=False)
class Guest:
    """name: what refusals and plans call it. expected_bytes: what it counts for until it says itself what it holds."""

    name: str
    device: str
    expected_bytes: int
    worker: Worker | None = None

    @property
    def is_loading(self) -> bool:
        """True while what it will hold is not taken from the machine yet."""
        return self.worker is None or not self.worker.is_ready

    def resident(self) -> Resident:
        """Its place in a room, from which nobody evicts it."""
        held_bytes = returned_bytes = self.expected_bytes
        if self.worker is not None and self.worker.is_ready:
            held_bytes = self.worker.stats.process_bytes or self.worker.info.process_bytes
            returned_bytes = fit.private_bytes(self.worker.pid) if self.device == "cpu" else held_bytes
        return Resident(
            variant_id=self.name,
            held_bytes=held_bytes,
            returned_bytes=returned_bytes,
            used_at_s=0.0,
            is_busy=True,
            is_pinned=False,
        )
