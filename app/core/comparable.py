"""Which measurements may stand side by side: of one text in the same windows, of one workload on one machine.

Anything else makes a table of numbers that look alike and mean different things. Pure functions of reports.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from app.core.variants import Speed
from app.schemas.reports import Neighbour
from workers.protocol.messages import MeasureResult

Report = TypeVar("Report", MeasureResult, Speed)


def of_text(result: MeasureResult) -> Hashable:
    """What a perplexity and a distance are of: the text, how much of it, and how much of it is read at once."""
    return result.text_sha256, result.num_tokens, result.window, result.stride


def of_workload(speed: Speed) -> Hashable:
    """What times are of: the length of prompts and answers, and the machine as far as it is known."""
    report, where = speed.report, speed.environment
    return report.prompt_tokens, report.new_tokens, where.device_name, where.num_cpus, where.num_threads


def common(histories: Iterable[Sequence[Report]], setting: Callable[[Report], Hashable]) -> list[list[Report]]:
    """Of each variant's measurements, oldest first, those made in the setting in which most variants were measured.

    Of settings that equally many variants share it is the one that comes later.
    """
    kept = [list(history) for history in histories]
    num_variants: dict[Hashable, int] = {}
    for history in kept:
        for key in {setting(one): None for one in history}:
            # put back behind the others: of equals the last wins
            num_variants[key] = num_variants.pop(key, 0) + 1
    chosen = max(reversed(num_variants), key=lambda key: num_variants[key], default=None)
    return [[one for one in history if setting(one) == chosen] for history in kept]


def newest_with_distance(results: Sequence[MeasureResult]) -> MeasureResult | None:
    """The newest that was also held against the base, else the newest; None of none."""
    with_distance = [one for one in results if one.kl_mean is not None]
    return next(reversed(with_distance or list(results)), None)


def merged(speeds: Sequence[Speed]) -> Speed | None:
    """One report of several by the same software, oldest first: the newest, with the levels that only others have.

    So measuring at 8 streams adds a level and takes none away. peak_bytes is the largest, and whoever was busy during
    one of them is a neighbour. None of none.
    """
    if not speeds:
        return None
    newest = speeds[-1]
    alike = [one for one in speeds if _software(one) == _software(newest)]
    levels = {level.streams: level for one in alike for level in one.report.levels}
    used = [one for one in alike if any(levels[level.streams] is level for level in one.report.levels)]
    neighbours: dict[str, Neighbour] = {found.variant: found for one in used for found in one.report.neighbours}
    floors = [one.report.x_of_floor for one in used if one.report.x_of_floor is not None]
    report = msgspec.structs.replace(
        newest.report,
        levels=[levels[streams] for streams in sorted(levels)],
        peak_bytes=max(one.report.peak_bytes for one in used),
        neighbours=[neighbours[name] for name in sorted(neighbours)],
        x_of_floor=floors[-1] if floors else None,
    )
    return replace(newest, report=report)


def _software(speed: Speed) -> tuple[str | None, dict[str, str]]:
    return speed.environment.commit, speed.environment.software
