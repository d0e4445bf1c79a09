"""A comparison as CSV and as Markdown: the same columns for both, one row per variant."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Final

from app.schemas.comparison import ComparisonObject, ComparisonRow, LevelRow

Cell = str | int | float | bool | None
_COLUMNS: Final[tuple[tuple[str, Callable[[ComparisonRow], Cell]], ...]] = (
    ("variant", lambda row: row.variant),
    ("pareto", lambda row: row.is_pareto),
    ("state", lambda row: row.state),
    ("method", lambda row: row.method),
    ("format", lambda row: row.format),
    ("bits", lambda row: row.bits),
    ("bits_per_weight", lambda row: row.bits_per_weight),
    ("weight_bytes", lambda row: row.weight_bytes),
    ("bytes_on_disk", lambda row: row.bytes_on_disk),
    ("peak_bytes", lambda row: row.peak_bytes),
    ("load_s", lambda row: row.load_s),
    ("perplexity", lambda row: row.perplexity),
    ("kl_mean", lambda row: row.kl_mean),
    ("kl_source", lambda row: row.kl_source),
    ("top1_agreement", lambda row: row.top1_agreement),
    ("x_of_floor", lambda row: row.x_of_floor),
)
_OF_LEVEL: Final[tuple[tuple[str, Callable[[LevelRow], Cell]], ...]] = (
    ("tokens_per_s", lambda level: level.tokens_per_s),
    ("ttft_ms", lambda level: level.ttft_ms),
    ("tpot_ms", lambda level: level.tpot_ms),
    ("tokens_per_joule", lambda level: level.tokens_per_joule),
)

# What makes a table too wide for people.
_CSV_ONLY: Final[tuple[tuple[str, Callable[[ComparisonRow], Cell]], ...]] = (
    ("perplexity_low", lambda row: _bound(row.perplexity_interval, 0)),
    ("perplexity_high", lambda row: _bound(row.perplexity_interval, 1)),
    ("kl_mean_low", lambda row: _bound(row.kl_mean_interval, 0)),
    ("kl_mean_high", lambda row: _bound(row.kl_mean_interval, 1)),
    ("measured", lambda row: row.measured),
    ("neighbours", lambda row: " ".join(row.neighbours)),
    ("missing", lambda row: " ".join(row.missing)),
    ("measured_otherwise", lambda row: " ".join(row.measured_otherwise)),
)


def as_csv(found: ComparisonObject) -> str:
    """RFC 4180, with a heading; unknown numbers are empty, lists are joined by blanks."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([*_headings(found), *(name for name, _ in _CSV_ONLY)])
    for row, cells in zip(found.data, _rows(found), strict=True):
        writer.writerow("" if cell is None else cell for cell in (*cells, *(get(row) for _, get in _CSV_ONLY)))
    return stream.getvalue()


def as_markdown(found: ComparisonObject) -> str:
    """A table, numbers to four digits; unknown ones are a dash."""
    headings = _headings(found)
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(_shown(cell) for cell in cells)} |" for cells in _rows(found)]
    return "\n".join(lines) + "\n"


def _bound(interval: tuple[float, float] | None, index: int) -> float | None:
    return None if interval is None else interval[index]


def _levels(found: ComparisonObject) -> list[int]:
    return sorted({level.streams for row in found.data for level in row.levels})


def _headings(found: ComparisonObject) -> list[str]:
    levels = [f"{name}_{streams}" for streams in _levels(found) for name, _ in _OF_LEVEL]
    return [*(name for name, _ in _COLUMNS), *levels]


def _rows(found: ComparisonObject) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for row in found.data:
        by_streams = {level.streams: level for level in row.levels}
        cells = [get(row) for _, get in _COLUMNS]
        for streams in _levels(found):
            level = by_streams.get(streams)
            cells += [None if level is None else read(level) for _, read in _OF_LEVEL]
        rows.append(cells)
    return rows


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
