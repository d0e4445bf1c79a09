"""What every command shares about the terminal: where to write, how to fail, how to spell a number."""

import json
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

# Exit statuses, documented in docs/settings.md.
BAD_SETTINGS = 2
DATA_DIR_IN_USE = 3
ADDRESS_NOT_AVAILABLE = 4

# A pipe or a log has no width of its own.
_WIDTH_WITHOUT_TERMINAL = 140


class CommandFailed(Exception):
    """A command gives up: the sentence for its user, and the exit status."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def console(*, stderr: bool = False) -> Console:
    """A console on the standard output, or on the standard error for what is not the command's result."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal:
        return Console(stderr=stderr, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    return found


def say(text: str = "") -> None:
    """One line of a command's result, exactly as it is: never wrapped, never read as markup."""
    console().print(text, markup=False, soft_wrap=True)


def say_table(table: Table) -> None:
    """A table as wide as what it says: a narrow terminal breaks its lines, but no cell is cut or left out."""
    out = console()
    out.width = max(out.width, Measurement.get(out, out.options.update(max_width=10_000), table).maximum)
    out.print(table)


def note(text: str) -> None:
    """One line beside the result, on the standard error."""
    console(stderr=True).print(text, markup=False, soft_wrap=True)


def write_json(value: Any) -> None:
    """The value as indented JSON on the standard output, for programs."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def in_bytes(count: float | None) -> str:
    """A size with its unit, decimal as disks are sold: 12.3 MB."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_ms(seconds: float | None) -> str:
    """A duration in milliseconds, two decimals below ten."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"


def in_digits(value: float | None, decimals: int) -> str:
    """A plain number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{decimals}f}"
