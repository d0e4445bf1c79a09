"""Body of POST /v1/generate, the product's own route."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from app.schemas.body import OwnBody
from app.schemas.sampling import MAX_TOKENS_FIELD, SamplingFields, TokenIds, broken_rule, check_stream_fields
from app.schemas.structured import StructuredField
from workers.protocol.specs import MAX_TOP_LOGPROBS

DEFAULT_MAX_TOKENS: Final = 128


class GenerateRequest(StructuredField, SamplingFields, OwnBody):
    """Exactly one of `prompt` and `prompt_ids`; max_tokens is 128 unless given."""

    model: str
    n: Literal[1] | None = None
    prompt: str | None = None
    prompt_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1, le=MAX_TOKENS_FIELD)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_stream_fields(self, None)
        if self.prompt is None and self.prompt_ids is None:
            raise broken_rule("missing_required_parameter", "Give 'prompt' or 'prompt_ids'", param="prompt")
        if self.prompt is not None and self.prompt_ids is not None:
            raise broken_rule("invalid_value", "Give either 'prompt' or 'prompt_ids', not both", param="prompt_ids")
        return self
