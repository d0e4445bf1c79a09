"""What a client asked for, after its body was understood and before a model was looked at."""

from dataclasses import dataclass
from typing import TypeAlias

from app.core.chat_template import Conversation
from app.core.tools.use import ToolUse
from workers.protocol.specs import SamplingParams

Prompt: TypeAlias = str | list[int] | Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One HTTP request: `n` choices for each prompt.

    params: without max_tokens and seed, which depend on prompt and choice. max_tokens: None means default_max_tokens
    where the context has room for it; both None mean the rest of the context. seed: None means a random one. tool_use:
    None if the answer is text, and no message with calls and thinking. max_tokens_param, prompt_param, grammar_param:
    what the client called these, for error messages. priority: a smaller number begins first.
    """

    model: str
    prompts: list[Prompt]
    params: SamplingParams
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    includes_stop: bool = False
    skips_special_tokens: bool = True
    adds_special_tokens: bool = True
    tool_use: ToolUse | None = None
    prompt_param: str = "prompt"
    max_tokens_param: str = "max_tokens"
    priority: int = 0
    grammar_param: str = ""
