"""From messages to the text that a model was trained on."""

from dataclasses import dataclass, field
from typing import Any

from app.core.renderer import Renderer
from app.core.text import TextModel
from app.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages as templates read them. continues_final: the answer goes on where the last message ends."""

    messages: list[dict[str, Any]]
    adds_generation_prompt: bool = True
    continues_final: bool = False
    switches: dict[str, Any] = field(default_factory=dict)


async def render_conversation(renderer: Renderer, text_model: TextModel, conversation: Conversation) -> str:
    """The prompt. Raises InvalidRequest if the model has no template or the template refuses."""
    if text_model.chat_template is None:
        raise InvalidRequest(
            "This model has no chat template; send the prompt to /v1/completions instead.",
            code="no_chat_template",
            param="messages",
        )
    variables = {
        **text_model.special_tokens,
        **conversation.switches,
        "messages": _known_roles(conversation.messages, text_model.chat_template),
        "tools": None,
        "documents": None,
        "add_generation_prompt": conversation.adds_generation_prompt and not conversation.continues_final,
    }
    prompt = await renderer.render(text_model.chat_template, variables)
    return _cut_after(prompt, conversation.messages[-1]["content"]) if conversation.continues_final else prompt


def _known_roles(messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """Developer messages as system ones for a template that does not know them: most leave unknown roles out."""
    if "developer" in template:
        return messages
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]


def _cut_after(prompt: str, content: str) -> str:
    """The prompt up to the end of the last message's content, so that the model goes on writing that message.

    Templates often strip contents: then the blanks at the end are not in the prompt and stay out of it.
    """
    start = prompt.rfind(content.strip())
    if start < 0:
        raise InvalidRequest(
            "The chat template changes the last message, so it cannot be continued.",
            code="invalid_value",
            param="continue_final_message",
        )
    whole = content.lstrip()
    return prompt[: start + len(whole if prompt.startswith(whole, start) else content.strip())]
