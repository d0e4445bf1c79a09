"""Fields that every route which generates has in common: how tokens are picked and when to stop."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from workers.protocol.specs import MAX_TOP_LOGPROBS, Grammar, SamplingParams

MAX_SEED: Final = 2**63 - 1
MAX_TOKENS_FIELD: Final = 2**31 - 1
MAX_CHOICES: Final = 16
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_STOP_TOKEN_IDS: Final = 64
MAX_TOKEN_IDS: Final = 2**20
MAX_BIASED_TOKENS: Final = 1024

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
# Without an end at the first bad one, a body of bad ids makes a million errors: seconds of the event loop's time.
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


def broken_rule(code: str, message: str, *, param: str | None = None) -> PydanticCustomError:
    """A rule that pydantic does not have; code and message reach the client as they are.

    message: without a full stop and without braces. param: a field below the one that is being validated.
    """
    return PydanticCustomError(code, message, {"is_code": True, "param": param})


def text_or_list(value: Any) -> str | None:
    """Tag of a union of a string and a list."""
    if isinstance(value, str):
        return "<text>"
    return "<list>" if isinstance(value, list) else None


def _not_too_many(bias: Any) -> Any:
    """The members are looked at one by one, so they are counted before."""
    if isinstance(bias, dict) and len(bias) > MAX_BIASED_TOKENS:
        raise broken_rule("array_above_max_length", f"It may have at most {MAX_BIASED_TOKENS} tokens, not {len(bias)}")
    return bias


def _token_id_keys(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise broken_rule("invalid_value", "Keys must be token ids in decimal digits")
    return bias


Biases = Annotated[
    dict[str, Bias],
    Field(max_length=MAX_BIASED_TOKENS),
    BeforeValidator(_not_too_many),
    AfterValidator(_token_id_keys),
]
StopField = Annotated[
    Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(text_or_list),
]


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(BaseModel):
    """Mixed into the bodies of chat, completions and generate. None means the field's own default."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: Biases | None = None
    seed: int | None = Field(None, ge=-(2**63), le=MAX_SEED)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopField | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_token_ids: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    stream: bool | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were written."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling_params(
        self, *, logprobs: int | None, prompt_logprobs: int | None, grammar: Grammar | None
    ) -> SamplingParams:
        """What the worker needs, but for max_tokens (0 here) and the seed, which depend on prompt and choice."""
        return SamplingParams(
            max_tokens=0,
            min_tokens=self.min_tokens or 0,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(key): bias for key, bias in (self.logit_bias or {}).items()},
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
        )


def check_stream_fields(body: SamplingFields, options: StreamOptions | None) -> None:
    """Rules about `stream` that span fields. Raises a broken rule."""
    if options is not None and not body.stream:
        raise broken_rule("invalid_value", "It is only allowed when 'stream' is true", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise broken_rule("invalid_value", "It is not available when 'stream' is true", param="prompt_logprobs")
