"""The two kinds of request bodies: our own, which refuse what they do not know, and OpenAI's, which name it."""

from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict


class OwnBody(BaseModel):
    """A body of our own design: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class HarmlessFields(BaseModel):
    """Fields of OpenAI's that are accepted and have no effect: they ask for nothing that an answer could lack."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


# Of vLLM's and llama.cpp's, on chat and completions: each changes what comes out.
UNSUPPORTED_SAMPLING: Final = {
    "grammar": "send it as 'structured_outputs.grammar', in Lark",
    "json_schema": "send it as 'response_format'",
    "use_beam_search": "this server samples; leave it out",
    "bad_words": "ban tokens by 'logit_bias'",
    "allowed_token_ids": "say what the output has to be in 'structured_outputs'",
    "logits_processors": "this server runs no code of its clients",
    "truncate_prompt_tokens": "send a prompt that fits; POST /tokenize counts its tokens",
    "prompt_embeds": "send the prompt as text or token ids",
}


class OpenAIBody(BaseModel):
    """A body that OpenAI defines: unknown fields are kept in `model_extra`, to be named to the client.

    unsupported: fields of OpenAI's or vLLM's that we know and do not have; the text tells the way out. They are
    refused by name unless their value asks for nothing (null, false or an empty list).
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, hide_input_in_errors=True)

    unsupported: ClassVar[dict[str, str]] = {}

    @classmethod
    def first_unsupported(cls, raw: dict[str, Any]) -> tuple[str, str] | None:
        """The first field of the raw body that we know but do not have, and what to do instead."""
        for name, way_out in cls.unsupported.items():
            if raw.get(name) not in (None, [], False):
                return name, way_out
        return None

    def unknown_fields(self: Self) -> list[str]:
        """Names that no field of this body has, and that are not among `unsupported` either."""
        return [name for name in self.model_extra or () if name not in self.unsupported]
