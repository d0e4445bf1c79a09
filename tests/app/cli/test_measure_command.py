"""What measure prints of a report."""

import msgspec
from made_reports import environment, speed

from app.cli.measure_command import lines


def test_every_cost_is_said_with_where_it_lies() -> None:
    report = msgspec.structs.replace(
        speed(1, peak_bytes=4 * 10**6), weight_bytes=570_176, kv_cache_bytes=2 * 10**6, bytes_on_disk=592_958
    )
    result = {"quality": None, "speed": msgspec.to_builtins(report), "environment": msgspec.to_builtins(environment())}

    assert lines("a/b", result)[-1] == (
        "weights 570.2 kB in memory (8.00 bits each), 2.0 times the time to read them; 2.0 MB of KV cache; "
        "at most 4.0 MB in all; 593.0 kB on disk; loaded in 1.0 s"
    )
