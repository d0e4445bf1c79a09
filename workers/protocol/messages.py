"""Every message between the front end and a child. One tagged struct each; the direction is in the heading."""

from enum import StrEnum

from msgspec import Struct

from workers.protocol.errors import WorkerErrorCode
from workers.protocol.specs import JobSpec, SamplingParams, ServeSpec


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words plus `cancelled` and `error`."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


# ---- front end -> worker ----


class StartServing(Struct, frozen=True, kw_only=True, tag=True):
    """The first frame to a serving worker: load this and answer `Loading`..., then `Ready` or `Failed`."""

    spec: ServeSpec


class Generate(Struct, frozen=True, kw_only=True, tag=True):
    """Continue one prompt. `request_id` is unique among the live sequences of this worker.

    priority: of those that have not begun, a smaller number begins first.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    priority: int = 0


class Cancel(Struct, frozen=True, kw_only=True, tag=True):
    """Forget a sequence, or, sent to a job, stop it. Unknown ids are ignored: it may have just finished.

    A sequence that was alive answers with one last update, finish_reason `cancelled`: its pages are free then.
    """

    request_id: str


class ShareCores(Struct, frozen=True, kw_only=True, tag=True):
    """From the next step on, take one part in num_sharing of the processor: so many processes compute on it now."""

    num_sharing: int


class Stop(Struct, frozen=True, kw_only=True, tag=True):
    """Exit with status 0 now; the front end has drained what it wanted to drain."""


# ---- worker -> front end ----


class Loading(Struct, frozen=True, kw_only=True, tag=True):
    """Progress of a load: `phase` is one of reading, building, proving, allocating; bytes count weights."""

    phase: str
    bytes_done: int
    bytes_total: int


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What a loaded model turned out to be.

    lane: packed, recurrent, compat or echo; lane_reason says why. kernel: the products that compressed layers make,
    `emulated` where they expand their weights each time (right, and no faster than the base); "" without any. memory is
    measured: `weight_bytes` are the tensors of the model, `kv_cache_bytes` the page pool, `process_bytes` resident
    (CPU) or allocated (CUDA) bytes after load.
    """

    architecture: str
    device: str
    device_name: str
    dtype: str
    format: str
    lane: str
    lane_reason: str
    kernel: str = ""
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    num_parameters: int
    weight_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    process_bytes: int
    load_s: float


class Ready(Struct, frozen=True, kw_only=True, tag=True):
    """The worker has proven its lane and accepts `Generate`."""

    info: ModelInfo


class Failed(Struct, frozen=True, kw_only=True, tag=True):
    """The load or the job failed for a reason its user can read; the child exits after this."""

    code: WorkerErrorCode
    message: str


class TokenLogprob(Struct, frozen=True, kw_only=True, array_like=True):
    """One token's natural-log probability and its `top` alternatives, most likely first (may include itself)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = []


class RequestError(Struct, frozen=True, kw_only=True):
    """Why one sequence ended with `finish_reason` error."""

    code: WorkerErrorCode
    message: str


class SequenceUpdate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step did for one sequence.

    token_ids: new tokens (a stop token is included, and then finish_reason is `stop`). logprobs: parallel to
    token_ids. prompt_logprobs: sent once, with the first token or the end: one entry per prompt token, the first
    None. scheduled_at_s: CLOCK_MONOTONIC seconds at which the sequence first entered a step, sent once.
    completes_grammar: nothing can follow the last token; finish_reason is `stop`, and the token is part of the text.
    """

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    num_cached_tokens: int = 0
    scheduled_at_s: float | None = None
    completes_grammar: bool = False


class StepStats(Struct, frozen=True, kw_only=True):
    """The engine after one step; counts are of sequences, `*_tokens` of this step, `*_total` since the start.

    process_bytes, peak_bytes: what the process holds, and the most that it has held, the load included. num_threads:
    that computed the step.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    kv_usage_ratio: float = 0.0
    step_s: float = 0.0
    preemptions_total: int = 0
    prefix_hit_tokens_total: int = 0
    process_bytes: int = 0
    peak_bytes: int = 0
    num_threads: int = 0


class Step(Struct, frozen=True, kw_only=True, tag=True):
    """One engine step: the heartbeat, and every sequence's news. Written by the engine loop itself."""

    step: int
    updates: list[SequenceUpdate]
    stats: StepStats


# ---- front end -> job, job -> front end ----


class StartJob(Struct, frozen=True, kw_only=True, tag=True):
    """The first frame to a job process; it answers `JobProgress`..., then `JobDone` or `Failed`, and exits."""

    spec: JobSpec


class JobProgress(Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """One step forward of a job. `done` of `total`: layers, bytes, tokens or requests, as the phase counts.

    module: what was just compressed, in `seconds`, or the tensor that was just copied. layer: of the `num_layers` that
    the decoder has, the one that the module is in, counted from 0. error_after: relative error that the module was left
    with, of its outputs on the calibration data where there is some, else of its weight. error_before: what plain
    rounding to the same grid would have left, where the method does more. rss_bytes: of the job's process.
    """

    phase: str
    done: int
    total: int
    module: str = ""
    layer: int | None = None
    num_layers: int | None = None
    error_before: float | None = None
    error_after: float | None = None
    seconds: float = 0.0
    eta_s: float | None = None
    rss_bytes: int = 0


class BaseInfo(Struct, frozen=True, kw_only=True):
    """Result of an `InspectSpec`: what the files say, before any weight is read.

    weight_bytes: sum over the safetensors headers. quantization: `quant_method` of config.json or None.
    files: name -> (bytes, mtime in ns). fingerprint: SHA-256 over names, sizes, headers and config.
    """

    path: str
    architecture: str
    model_type: str
    dtype: str
    num_parameters: int
    num_layers: int
    weight_bytes: int
    max_model_len: int
    vocab_size: int
    quantization: str | None
    has_chat_template: bool
    files: dict[str, tuple[int, int]]
    fingerprint: str


class UnitBits(Struct, frozen=True, kw_only=True):
    """What `auto` chose for linears that share their input. modules: names, or globs of names (all experts of a layer).

    num_bits: 16 as they were. kl: KL(base || base with these linears alone in that form), mean nats per token.
    kl_by_bits: the same for each of the candidates. num_bytes: of their weights in the files.
    """

    modules: list[str]
    num_bits: int
    kl: float
    num_bytes: int
    kl_by_bits: dict[int, float]


class AllocationTrial(Struct, frozen=True, kw_only=True):
    """A whole allocation that `auto` has made and measured. kl_mean: KL(base || it), nats per token of held-out text.

    kl_sum: of its linears' own. num_bytes: of all weights in the files.
    """

    name: str
    num_bytes: int
    kl_sum: float
    kl_mean: float


class CompressResult(Struct, frozen=True, kw_only=True):
    """Result of a `CompressSpec`: bytes on disk, which modules were compressed, which were kept and why.

    mean_error: relative, over the compressed modules: of their outputs on the calibration data where there is some, of
    their weights else. Calibrated methods only: num_tokens, of that data, per module; fallbacks, modules that saw too
    few and were rounded to nearest, with the reason; folds, module that was divided by the scales of awq or smoothquant
    -> the linears that were multiplied by them; unfolded, linears that got no scales, with the reason. Of `auto` only:
    allocation, what each unit got; trials, the allocations that were compared, the chosen one first.
    """

    weight_bytes: int
    disk_bytes: int
    num_compressed: int
    kept: dict[str, str]
    bits: int
    format: str
    layout: str
    mean_error: float
    num_tokens: dict[str, int] = {}
    fallbacks: dict[str, str] = {}
    folds: dict[str, list[str]] = {}
    unfolded: dict[str, str] = {}
    allocation: list[UnitBits] = []
    trials: list[AllocationTrial] = []


class VerifyResult(Struct, frozen=True, kw_only=True):
    """Result of a `VerifySpec`: KL(base || variant) in nats per token and the greedy top-1 agreement in 0..1."""

    kl_mean: float
    kl_max: float
    top1_agreement: float
    num_tokens: int


class MeasureResult(Struct, frozen=True, kw_only=True):
    """Result of a `MeasureSpec`. nll: nats per token; perplexity = exp(nll). num_tokens were scored in num_windows.

    *_interval: 95 %, from resampled blocks of `block_tokens` neighbouring tokens; None with fewer than two blocks.
    kl_*: KL(base || variant), reverse_kl_*: KL(variant || base), nats per token, None where the base was not asked
    for. top_k: the base's likeliest tokens that are compared one by one, all others as one sum: both are lower bounds
    of the full divergences, and equal to them if `is_exact` (the vocabulary has no more tokens). reference_bytes: the
    base's numbers on disk; reference_cached: they were there before.
    """

    perplexity: float
    nll: float
    perplexity_interval: tuple[float, float] | None
    num_tokens: int
    num_windows: int
    window: int
    stride: int
    block_tokens: int
    base_perplexity: float | None = None
    kl_mean: float | None = None
    kl_mean_interval: tuple[float, float] | None = None
    kl_p99: float | None = None
    reverse_kl_mean: float | None = None
    reverse_kl_p99: float | None = None
    top1_agreement: float | None = None
    top1_agreement_interval: tuple[float, float] | None = None
    top_k: int | None = None
    is_exact: bool | None = None
    reference_bytes: int | None = None
    reference_cached: bool | None = None
    text_sha256: str = ""
    device: str = ""
    device_name: str = ""
    kernel: str = ""


class ProbeResult(Struct, frozen=True, kw_only=True):
    """Result of a `ProbeSpec`. read_bytes_per_s: of a sum over a buffer larger than the caches. uuid, cuda: of a GPU,
    as the driver names it, and the CUDA version that torch was built for; empty on a CPU.
    """

    device: str
    device_name: str
    read_bytes_per_s: float
    num_threads: int
    uuid: str = ""
    cuda: str = ""


class JobDone(Struct, frozen=True, kw_only=True, tag=True):
    """The job has finished; exactly one field is set, the one that belongs to the spec's kind."""

    base: BaseInfo | None = None
    compressed: CompressResult | None = None
    verified: VerifyResult | None = None
    measured: MeasureResult | None = None
    probed: ProbeResult | None = None


ToWorker = StartServing | Generate | Cancel | ShareCores | Stop
FromWorker = Loading | Ready | Failed | Step
ToJob = StartJob | Cancel | Stop
FromJob = JobProgress | JobDone | Failed
