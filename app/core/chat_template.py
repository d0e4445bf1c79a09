"""From messages to the text that a model was trained on."""

from dataclasses import dataclass, field
from typing import Any, Final

from app.core.renderer import Renderer
from app.core.template_probe import template_abilities
from app.core.text import TextModel
from app.core.tool_messages import for_template, has_calls, with_described_tools
from app.core.tools.calls import Family
from app.core.tools.use import ToolUse
from app.errors import InvalidRequest

NO_TOOLS: Final = ToolUse()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages as templates read them, but for calls, whose arguments are text here.

    continues_final: the answer goes on where the last message ends.
    """

    messages: list[dict[str, Any]]
    tool_use: ToolUse = NO_TOOLS
    adds_generation_prompt: bool = True
    continues_final: bool = False
    switches: dict[str, Any] = field(default_factory=dict)


async def render_conversation(
    renderer: Renderer, text_model: TextModel, conversation: Conversation, family: Family | None = None
) -> str:
    """The prompt. family: how the model writes calls, where the template says nothing about tools.

    Raises InvalidRequest if the model has no template or the template refuses.
    """
    template = text_model.template(with_tools=bool(conversation.tool_use.tools))
    if template is None:
        raise InvalidRequest(
            "This model has no chat template; send the prompt to /v1/completions instead.",
            code="no_chat_template",
            param="messages",
        )
    messages, tools = conversation.messages, conversation.tool_use.tools
    if tools or has_calls(messages):
        abilities = await template_abilities(renderer, text_model, template)
        messages = for_template(messages, abilities, family)
        if tools and not abilities.shows_tools:
            messages, tools = with_described_tools(messages, conversation.tool_use, family), ()
    variables = {
        **text_model.special_tokens,
        **conversation.switches,
        "messages": _known_roles(messages, template),
        "tools": [tool.for_template() for tool in tools] or None,
        "documents": None,
        "add_generation_prompt": conversation.adds_generation_prompt and not conversation.continues_final,
    }
    prompt = await renderer.render(template, variables)
    return _cut_after(prompt, messages[-1]["content"]) if conversation.continues_final else prompt


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
