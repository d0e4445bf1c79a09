"""What a child is asked to do: sampling parameters, the model to serve, the job to run.

Plain values only (no tensor, no dtype object, no callable), so that a spec means the same on both sides.
"""

from typing import Literal

from msgspec import Struct

from workers.protocol.recipes import Calibration, Int8Recipe, Override, Recipe

DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
MAX_TOP_LOGPROBS = 20
MAX_GRAMMAR_BYTES = 64 * 2**10
# Between two tokens of JSON: one blank, or a line break and an indent. Unbounded, a small model writes blanks for ever.
JSON_WHITESPACE = r"( |\n {0,20})?"


class Grammar(Struct, frozen=True, kw_only=True):
    """What the output has to be, from its first token to its end.

    text, by kind: a JSON Schema as JSON; nothing (any JSON object); a regular expression that the whole output matches;
    the allowed outputs as a JSON array of strings; a grammar in llguidance's dialect of Lark, in which `%json {...}`
    stands for a JSON Schema.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    text: str = ""


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How one sequence picks its tokens. Every field has been validated by the front end and is again by the worker.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and penalties at their neutral value are off.
    seed: 64-bit; the same seed gives the same text alone, in any batch and after preemption.
    logprobs, prompt_logprobs: how many alternatives to report per token (0 = the chosen one only, None = off).
    grammar: bans every token with which the output could not become what it has to be. None = anything goes.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


class EchoSpec(Struct, frozen=True, kw_only=True):
    """A deterministic stand-in model for load tests: it repeats the prompt's tokens at a settable speed.

    ttft_s, itl_s: seconds slept in the first and in every later step of a sequence. repeats_after: a token id; only
    what follows the last one of it is repeated, so that a prompt can say what the answer is to be. None = everything.
    ends_with: the token id that ends an answer, None = there is none.
    """

    vocab_size: int = 512
    ttft_s: float = 0.0
    itl_s: float = 0.0
    repeats_after: int | None = None
    ends_with: int | None = None


class ServeSpec(Struct, frozen=True, kw_only=True, tag=True):
    """One variant to load and serve.

    path: local folder with safetensors, config.json and tokenizer.json. device: "auto", "cpu", "cuda", "cuda:0".
    dtype: of weights and activations that are not quantized; "auto" takes the checkpoint's, where the device runs
    it fast. is_unrounded: compressed layers multiply in that dtype too, also where a shorter one is faster.
    max_model_len: tokens per sequence, None = the model's own. kv_cache_bytes: None = a share of what is free.
    num_threads: torch intra-op threads, None = torch's own choice. lane: "auto" proves the packed lane at load.
    tokenizer_path: the tokenizer.json that grammars are compiled for, None = outputs cannot be constrained.
    verdict_dir: where lane verdicts are cached, None = not cached. echo: serve the stand-in model and ignore `path`.
    """

    variant: str
    path: str
    device: str = "auto"
    dtype: DtypeName = "auto"
    is_unrounded: bool = False
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    kv_cache_bytes: int | None = None
    num_threads: int | None = None
    lane: Literal["auto", "packed", "compat"] = "auto"
    verdict_dir: str | None = None
    tokenizer_path: str | None = None
    echo: EchoSpec | None = None


class InspectSpec(Struct, frozen=True, kw_only=True, tag=True):
    """Look at a base model before anything is read: safety, size, limits; fetch it from the hub if asked.

    Exactly one of `path` (a local folder) and `hub_id` (with optional `revision`) is set. `target_dir` receives a
    download, and a converted tokenizer.json where the folder has only a slow tokenizer.
    """

    path: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    target_dir: str


class CompressSpec(Struct, frozen=True, kw_only=True, tag=True):
    """One compression: base folder in, complete variant folder out (in staging; the front end publishes it).

    recipe: what `method` names, with its options. layout: of the files, None = the recipe's own. skip: glob patterns
    of module names that stay as they are. overrides: other recipes for the modules that match, first match wins.
    quantize_head: the output head too. seed: of everything random in the job. activation_bytes: hidden states of the
    calibration samples above this go to files beside the layers. memory_bytes: the most that the process may allocate;
    a job that needs more fails. None: no limit.

    output_dir must not exist. Recipes that need calibration keep finished layers in `<output_dir>.layers`: a job with
    the same spec that finds them goes on behind the last one. So whoever starts a job again leaves that folder where it
    is, and whoever gives a job up removes it.
    """

    base_path: str
    output_dir: str
    base: str
    variant: str
    method: str
    recipe: Recipe = Int8Recipe()
    layout: str | None = None
    overrides: tuple[Override, ...] = ()
    calibration: Calibration | None = None
    quantize_head: bool = False
    device: str = "auto"
    skip: tuple[str, ...] = ()
    seed: int = 0
    activation_bytes: int = 2**30
    memory_bytes: int | None = None
    num_threads: int | None = None


class VerifySpec(Struct, frozen=True, kw_only=True, tag=True):
    """Load a staged variant in a fresh process and prove that it works before it is published.

    Checks every file's hash, generates `num_tokens` greedy tokens from `prompt_ids`, requires finite logits and a
    mean KL divergence to the base of at most `max_kl` nats over `text_ids`.
    """

    variant_dir: str
    base_path: str
    text_ids: tuple[int, ...]
    num_tokens: int = 16
    max_kl: float
    device: str = "auto"
    num_threads: int | None = None


class MeasureSpec(Struct, frozen=True, kw_only=True, tag=True):
    """Score a text with a variant, and compare its distributions with its base's.

    variant_dir, dtype: what to load. token_ids_path: safetensors file with `token_ids`, (1, tokens) int32. window,
    stride: tokens; each window scores what no earlier one has. base_path None: no comparison; else base_fingerprint
    and the text name the file below cache_dir that keeps the base's numbers. top_k: tokens compared one by one.
    """

    variant_dir: str
    dtype: DtypeName = "auto"
    token_ids_path: str
    window: int
    stride: int
    base_path: str | None = None
    base_fingerprint: str = ""
    cache_dir: str = ""
    top_k: int = 128
    device: str = "auto"
    num_threads: int | None = None


class ProbeSpec(Struct, frozen=True, kw_only=True, tag=True):
    """Measure how fast a device reads its memory, with as many threads as a worker has."""

    device: str = "auto"
    num_threads: int | None = None


JobSpec = InspectSpec | CompressSpec | VerifySpec | MeasureSpec | ProbeSpec
