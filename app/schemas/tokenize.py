"""Bodies of POST /tokenize and POST /detokenize, in vLLM's shape."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from app.schemas.body import OpenAIBody
from app.schemas.chat import MAX_MESSAGES, Message, Switches
from app.schemas.sampling import TokenIds, broken_rule
from app.schemas.tools import MAX_TOOLS, Tool


class TokenizeRequest(OpenAIBody):
    """Exactly one of `prompt` and `messages`; add_special_tokens is true for a prompt, false for messages."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Switches | None = None

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if self.prompt is None and self.messages is None:
            raise broken_rule("missing_required_parameter", "Give 'prompt' or 'messages'", param="prompt")
        if self.prompt is not None and self.messages is not None:
            raise broken_rule("invalid_value", "Give either 'prompt' or 'messages', not both", param="messages")
        return self


class DetokenizeRequest(OpenAIBody):
    """Token ids to turn back into text, special tokens included."""

    model: str
    tokens: TokenIds
