"""Whether a load fits beside what is loaded, and which idle variants would have to go for it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.errors import DoesNotFit, NoRoomNow


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a load takes: measured when the variant was loaded before, else estimated."""

    num_bytes: int
    is_measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A variant that holds memory of a device, or will in a moment.

    held_bytes: counts against the budget, measured once it is loaded. returned_bytes: what the machine gets back when
    it goes. used_at_s: CLOCK_MONOTONIC seconds. is_busy: it has requests, or is not in a state to be asked to go.
    """

    variant_id: str
    held_bytes: int
    returned_bytes: int
    used_at_s: float
    is_busy: bool
    is_pinned: bool
    is_planned: bool = False

    @property
    def stays(self) -> bool:
        """True if it must not be evicted, busy or not: pinned, or one of those that are to be loaded."""
        return self.is_pinned or self.is_planned

    @property
    def may_go(self) -> bool:
        """True if it may be evicted now."""
        return not self.is_busy and not self.stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory of one device.

    budget_bytes: what the operator allows, None for no limit. available_bytes: what the machine has left beside loads
    under way, None where only the worker can know.
    """

    budget_bytes: int | None
    available_bytes: int | None
    residents: Sequence[Resident]

    def free_bytes(self, without: Collection[Resident] = ()) -> int | None:
        """What a load can have once these are gone; None if nobody here knows a limit."""
        limits: list[int] = []
        if self.budget_bytes is not None:
            limits.append(self.budget_bytes - sum(one.held_bytes for one in self.residents if one not in without))
        if self.available_bytes is not None:
            limits.append(self.available_bytes + sum(one.returned_bytes for one in without))
        return min(limits, default=None)

    def fits(self, needed_bytes: int, without: Collection[Resident] = ()) -> bool:
        """True if a load of this many bytes has room once these are gone."""
        free_bytes = self.free_bytes(without)
        return free_bytes is None or needed_bytes <= free_bytes

    def victims(self, needed_bytes: int) -> list[Resident] | None:
        """Who must go for a load to fit: least recently used first, and nobody whose going is not needed.

        None if it does not fit even without all that may go.
        """
        chosen: list[Resident] = []
        for one in sorted((one for one in self.residents if one.may_go), key=lambda one: one.used_at_s):
            if self.fits(needed_bytes, chosen):
                break
            chosen.append(one)
        if not self.fits(needed_bytes, chosen):
            return None
        # A large one that came last may have made smaller ones before it needless: the one used last stays first.
        for one in reversed(chosen):
            rest = [other for other in chosen if other is not one]
            if self.fits(needed_bytes, rest):
                chosen = rest
        return chosen

    def refusal(self, name: str, need: Need, *, may_evict: bool) -> DoesNotFit:
        """The error for a load of `name` that has no room: needed and free bytes, and who is in the way."""
        about = "" if need.is_measured else "about "
        free_bytes = max(self.free_bytes() or 0, 0)
        message = (
            f"No room for '{name}': {about}{need.num_bytes:,} bytes of memory are needed and {free_bytes:,} are free"
        )
        for word, names in (
            ("busy", [one.variant_id for one in self.residents if one.is_busy]),
            ("pinned", [one.variant_id for one in self.residents if one.is_pinned and not one.is_busy]),
            ("idle", [one.variant_id for one in self.residents if one.may_go]),
        ):
            if names:
                message += f"; {word}: {', '.join(repr(one) for one in names)}"
        idle = [one for one in self.residents if one.may_go]
        if not may_evict and self.fits(need.num_bytes, idle):
            return DoesNotFit(f'{message}. Load it with "evict": true to unload idle variants, or unload one by name.')
        if self.fits(need.num_bytes, [one for one in self.residents if not one.stays]):
            return NoRoomNow(f"{message}. Try again when a busy one is idle, or unload it.")
        return DoesNotFit(f"{message}. Unload another variant, or load a smaller one.")
