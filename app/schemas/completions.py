"""Body of POST /v1/completions."""

from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Discriminator, Field, Tag, model_validator

from app.schemas.body import UNSUPPORTED_SAMPLING, HarmlessFields, OpenAIBody
from app.schemas.sampling import (
    MAX_TOKENS_FIELD,
    SamplingFields,
    StreamOptions,
    TokenIds,
    broken_rule,
    check_stream_fields,
)
from app.schemas.structured import StructuredFields
from workers.protocol.specs import MAX_TOP_LOGPROBS

MAX_PROMPTS: Final = 64
DEFAULT_MAX_TOKENS: Final = 16


def prompt_kind(value: Any) -> str | None:
    """Which of OpenAI's four forms a prompt has; the first element decides for lists."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    if value and isinstance(value[0], str):
        return "<texts>"
    return "<id_lists>" if value and isinstance(value[0], list) else "<ids>"


PromptIds = Annotated[TokenIds, Field(min_length=1)]
PromptField = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag("<texts>")]
    | Annotated[PromptIds, Tag("<ids>")]
    | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_PROMPTS), Tag("<id_lists>")],
    Discriminator(prompt_kind),
]


class CompletionRequest(HarmlessFields, StructuredFields, SamplingFields, OpenAIBody):
    """POST /v1/completions; `max_tokens: 0` with `echo` scores the prompt and generates nothing."""

    unsupported: ClassVar[dict[str, str]] = {
        **UNSUPPORTED_SAMPLING,
        "suffix": "this server does not fill in the middle",
    }

    model: str
    prompt: PromptField
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS_FIELD)
    best_of: int | None = Field(None, ge=1, le=16)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    add_special_tokens: bool | None = None
    stream_options: StreamOptions | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one, whichever form they came in."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_stream_fields(self, self.stream_options)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise broken_rule("unsupported_parameter", "It must be equal to 'n'", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise broken_rule("integer_below_min_value", "It can be 0 only with 'echo'", param="max_tokens")
        return self
