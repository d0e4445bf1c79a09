"""How the text of one request becomes an answer: which parsers read it, for which model."""

from dataclasses import dataclass
from typing import Final

from app.core.chat_template import Conversation
from app.core.request import GenerationRequest
from app.core.text import TextModel
from app.core.tools.calls import FAMILIES, CallParser, Family, forced_family
from app.core.tools.output import NamedCallOutput, OutputParser, PlainOutput
from app.core.tools.reasoning import MARKERS, ReasoningParser
from app.core.tools.strict import strict_grammar
from app.core.tools.thought import Thought, behind_thinking
from app.core.tools.use import EnforcedSchema, ToolUse
from app.core.variants import AUTO, Variant
from workers.protocol.specs import Grammar

# A marker is one token of the models that were trained with it; of others, a few.
_TAIL_TOKENS: Final = 16
# Which family's marker a template writes, in the order in which they are looked for; JSON without a marker else.
_TOOL_MARKERS: Final = {
    "<function=": "qwen3_coder",
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "<|python_tag|>": "llama3",
}


# Under which names templates are told whether to think.
_THINKING_SWITCHES: Final = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRules:
    """tool_use: None if the answer is text, and no message. family: how the model writes calls, None if nobody looks.

    thinking: the markers around the model's thinking, None if nobody looks. may_think: False if the client has said so.
    asked: what the output has to be.
    """

    tool_use: ToolUse | None = None
    family: Family | None = None
    thinking: tuple[str, str] | None = None
    may_think: bool = True
    asked: Grammar | None = None

    @property
    def is_constrained(self) -> bool:
        """True if a grammar forms the answer, from behind the thinking on."""
        return self.asked is not None or (self.tool_use is not None and self.tool_use.must_call)

    @property
    def holds_calls(self) -> bool:
        """True if a grammar leaves text free, and holds calls to the schemas of strict functions."""
        return self.family is not None and self.tool_use is not None and self.tool_use.holds_calls(self.asked)

    @property
    def shown_family(self) -> Family | None:
        """In whose syntax calls are to be expected, and the model to be told of it where its template does not."""
        is_forced = self.tool_use is not None and self.tool_use.constrains(self.asked)
        return self._forced_family if is_forced else self.family

    @property
    def _forced_family(self) -> Family:
        return forced_family(self.family, beside_json=self.asked is not None)

    def parser(self, prompt_ids: list[int], text_model: TextModel) -> OutputParser:
        """A parser for one choice behind this prompt."""
        rest = self._call_parser()
        thought = self._thought(prompt_ids, text_model)
        return rest if thought is None else ReasoningParser(thought.markers, rest, is_open=thought.is_open)

    def enforced_schemas(self) -> list[EnforcedSchema]:
        """See ToolUse; none where nobody looks for calls."""
        use = self.tool_use
        return (
            use.enforced_schemas(self.asked)
            if use is not None and (use.constrains(self.asked) or self.holds_calls)
            else []
        )

    def grammar(self, prompt_ids: list[int], text_model: TextModel) -> Grammar | None:
        """What the output behind this prompt has to be, with the calls that it may or must be; None for any text."""
        use, thought = self.tool_use, self._thought(prompt_ids, text_model)
        if use is not None and self.family is not None and self.holds_calls:
            return strict_grammar(use, self.family, text_model.special_token_texts(), thought)
        grammar = self.asked if use is None else use.grammar(self._forced_family, self.asked)
        if grammar is None or thought is None:
            return grammar
        return behind_thinking(grammar, thought, text_model.special_token_texts())

    def closed(self, prompt: str) -> str:
        """The prompt without room for thinking, where there is to be none and a template opens it all the same."""
        if self.thinking is None or self.may_think or not self.is_constrained or not self._is_open(prompt):
            return prompt
        return f"{prompt.rstrip()}\n\n{self.thinking[1]}\n\n"

    def visible_tokens(self, text_model: TextModel) -> dict[int, str]:
        """Special tokens that the parsers look for, by id: their text is not left out."""
        markers = [*(self.thinking or ())]
        if self.family is not None and not self.is_constrained and self.tool_use is not None and self.tool_use.tools:
            markers += self.family.markers()
        return text_model.special_ids(markers) if markers else {}

    def _call_parser(self) -> OutputParser:
        use = self.tool_use
        if use is None or not use.tools:
            return PlainOutput()
        if use.choice == "named":
            return NamedCallOutput(use.named)
        family = self.shown_family
        if family is None:
            return PlainOutput()
        return CallParser(family, use.functions, is_parallel=use.is_parallel, is_held=self.holds_calls)

    def _thought(self, prompt_ids: list[int], text_model: TextModel) -> Thought | None:
        """The thinking that the model may begin with behind this prompt."""
        if self.thinking is None:
            return None
        tail = text_model.decode(prompt_ids[-_TAIL_TOKENS:], skips_special_tokens=False)
        if self.is_constrained and (not self.may_think or tail.rstrip().endswith(self.thinking[1])):
            return None
        return Thought(markers=self.thinking, is_open=self._is_open(tail))

    def _is_open(self, prompt: str) -> bool:
        return self.thinking is not None and prompt.rstrip().endswith(self.thinking[0])


def answer_rules(request: GenerationRequest, variant: Variant, text_model: TextModel) -> AnswerRules:
    """The rules for this request: parsers as the load asked for them, else as the model's template shows."""
    if request.tool_use is None:
        return AnswerRules(asked=request.params.grammar)
    return AnswerRules(
        tool_use=request.tool_use,
        family=family_of(variant.tool_parser, text_model),
        thinking=thinking_of(variant.reasoning_parser, text_model),
        may_think=all(_may_think(prompt) for prompt in request.prompts if isinstance(prompt, Conversation)),
        asked=request.params.grammar,
    )


def _may_think(conversation: Conversation) -> bool:
    return not conversation.continues_final and not any(
        conversation.switches.get(switch) is False for switch in _THINKING_SWITCHES
    )


def family_of(tool_parser: str, text_model: TextModel) -> Family | None:
    """How this model writes calls: what the load asked for, else what its template looks like; None for `none`."""
    if tool_parser != AUTO:
        return FAMILIES.get(tool_parser)
    template = text_model.template(with_tools=True) or ""
    return FAMILIES[next((name for marker, name in _TOOL_MARKERS.items() if marker in template), "json")]


def thinking_of(reasoning_parser: str, text_model: TextModel) -> tuple[str, str] | None:
    """The markers around this model's thinking, chosen likewise."""
    if reasoning_parser != AUTO:
        return MARKERS.get(reasoning_parser)
    template = text_model.chat_template or ""
    return next((markers for markers in MARKERS.values() if markers[0] in template or markers[1] in template), None)
