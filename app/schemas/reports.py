"""What a measurement found, as it is stored and as clients see it.

Milliseconds, bytes and tokens throughout. The speeds are those of the engine behind its socket, as the front end sees
it: without HTTP, without turning text into tokens and back. `slimserve bench` measures what a client sees.
"""

from typing import Any, Final, Literal

from msgspec import Struct

from workers.protocol.messages import MeasureResult

REPORT_VERSION: Final = 1


class Percentiles(Struct, frozen=True, kw_only=True):
    """Of num_values values, by nearest rank. p90 needs 10 values and p99 100, else they are null."""

    num_values: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


class SpeedLevel(Struct, frozen=True, kw_only=True):
    """`streams` clients in a closed loop: each sends its next request when the last one has ended.

    ttft_ms: from handing a request over to its first token, one value per request. tpot_ms: (last token - first token)
    / (tokens - 1), one per request. itl_ms: gaps between arrivals, pooled. tokens_per_s: of all streams together, over
    the whole of duration_s. cached_prompt_tokens: prompt tokens that were not computed; 0 unless somebody else has just
    sent the same text. tokens_per_joule: by the GPU's own counter of energy; null where there is none.
    """

    streams: int
    requests: int
    duration_s: float
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    itl_ms: Percentiles
    tokens_per_s: float
    cached_prompt_tokens: int = 0
    tokens_per_joule: float | None = None


class Neighbour(Struct, frozen=True, kw_only=True):
    """Another variant that worked during the measurement: steps that it took; is_loading: it was being loaded.

    The measured variant itself is one if it answered requests of others meanwhile.
    """

    variant: str
    num_steps: int
    is_loading: bool = False


class SpeedReport(Struct, frozen=True, kw_only=True):
    """How fast a variant is and what it takes, measured on the worker that serves it, or on one started like it.

    prompt_tokens, new_tokens: of every request. weight_bytes: tensors of the loaded model; kv_cache_bytes: its pool;
    process_bytes, peak_bytes: what the worker held at the end and at most, resident (CPU) or allocated (CUDA);
    device_bytes: of the whole process on the GPU, by its driver. bytes_on_disk: of a cast, those of its base.
    bits_per_weight: 8 weight_bytes / parameters. read_bytes_per_s: of the device's memory, measured just before.
    floor_ms: the time to read weight_bytes once, which no step of one stream can beat unless they fit into a cache.
    x_of_floor: TPOT of one stream / floor_ms. load_s: of this worker. was_serving: it was loaded before.
    """

    prompt_tokens: int
    new_tokens: int
    levels: list[SpeedLevel]
    load_s: float
    weight_bytes: int
    kv_cache_bytes: int
    process_bytes: int
    peak_bytes: int
    bytes_on_disk: int
    bits_per_weight: float
    read_bytes_per_s: float
    floor_ms: float
    x_of_floor: float | None
    dtype: str
    lane: str
    kernel: str
    was_serving: bool
    neighbours: list[Neighbour]
    device_bytes: int | None = None

    def level(self, streams: int) -> SpeedLevel | None:
        """The numbers at this many streams, if they were measured."""
        return next((level for level in self.levels if level.streams == streams), None)


class Environment(Struct, frozen=True, kw_only=True):
    """Where and with what a measurement was made. load_average: processes that wanted a core in the minute before.

    commit: of a source checkout, with "+changes" if it had any; null for an installed package.
    """

    device: str
    device_name: str
    num_cpus: int
    num_threads: int | None
    load_average: float
    commit: str | None
    software: dict[str, str]


class MeasurementObject(Struct, frozen=True, kw_only=True):
    """Result of a measure job: what was asked for, and where it was measured."""

    version: int = REPORT_VERSION
    environment: Environment
    quality: MeasureResult | None = None
    speed: SpeedReport | None = None


class ReportObject(Struct, frozen=True, kw_only=True):
    """Numbers of one kind about one variant on one device; `values` are those of the newest measurement.

    kind: `verification` before it was published (device empty), `measure` for quality, `speed`.
    """

    variant: str
    object: Literal["report"] = "report"
    version: int = REPORT_VERSION
    kind: str
    device: str
    base: str
    method: str
    format: str
    bits: int
    bytes_on_disk: int
    created: float
    environment: dict[str, Any]
    values: dict[str, Any]
