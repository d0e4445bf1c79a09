"""Measurements with numbers that are chosen and not measured."""

from app.schemas.reports import Environment, Neighbour, Percentiles, SpeedLevel, SpeedReport
from workers.protocol.messages import MeasureResult


def quality(text: str, perplexity: float = 5.0, *, kl_mean: float | None = 0.1, window: int = 512) -> MeasureResult:
    """Of 1,000 tokens of a text with this hash."""
    return MeasureResult(
        perplexity=perplexity,
        nll=1.0,
        perplexity_interval=None,
        num_tokens=1000,
        num_windows=2,
        window=window,
        stride=256,
        block_tokens=64,
        base_perplexity=5.0,
        kl_mean=kl_mean,
        text_sha256=text,
    )


def speed(
    *levels: int, tokens_per_s: float = 1.0, peak_bytes: int = 1, new_tokens: int = 64, company: tuple[str, ...] = ()
) -> SpeedReport:
    """At these numbers of streams, all equally fast."""
    one = Percentiles(num_values=1, p50=10.0)
    return SpeedReport(
        prompt_tokens=128,
        new_tokens=new_tokens,
        levels=[
            SpeedLevel(
                streams=n, requests=1, duration_s=1, ttft_ms=one, tpot_ms=one, itl_ms=one, tokens_per_s=tokens_per_s
            )
            for n in levels
        ],
        load_s=1.0,
        weight_bytes=1,
        kv_cache_bytes=1,
        process_bytes=1,
        peak_bytes=peak_bytes,
        bytes_on_disk=1,
        bits_per_weight=8,
        read_bytes_per_s=1e9,
        floor_ms=1,
        x_of_floor=2.0 if 1 in levels else None,
        dtype="bf16",
        lane="packed",
        kernel="",
        was_serving=True,
        neighbours=[Neighbour(variant=name, num_steps=1) for name in company],
    )


def environment(*, num_threads: int = 2, commit: str | None = None) -> Environment:
    """A CPU with two cores."""
    return Environment(
        device="cpu",
        device_name="a CPU",
        num_cpus=2,
        num_threads=num_threads,
        load_average=0,
        commit=commit,
        software={},
    )
