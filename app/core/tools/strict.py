"""The grammar of an answer in which text and thinking are free and calls are not: `strict` tools under `auto`.

Text runs up to what opens a call in the family's syntax; from there on only a known name may follow, and arguments that
keep to the function's schema, or are any object where the function is not strict. The text may end anywhere, a call
only behind its own end.

JSON without a marker may be an answer as well. It is a call from the name of a function on, which must stand before the
arguments; `CallParser` reads no other as a call then. Both see the same, so the blanks are those of `str.isspace`.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from app.core.structured import in_lark, json_schema_grammar
from app.core.tools.calls import Family
from app.core.tools.markers import BLANKS, TEXT, MarkerRules, lazy, regex
from app.core.tools.tagged_grammar import tagged_call
from app.core.tools.thought import Thought, thinking_rules
from app.core.tools.use import Tool, ToolUse
from workers.protocol.specs import JSON_WHITESPACE, Grammar

_KEYS: Final = rf'({BLANKS}"(type|id)"{BLANKS}:{BLANKS}"[^"\\]*"{BLANKS},)*{BLANKS}"name"{BLANKS}:{BLANKS}'
_W: Final = JSON_WHITESPACE
# Named once, as they stand in the rules of every function. Mistral's models repeat the id of a call behind it.
_TERMINALS: Final = (
    TEXT,
    f"WHITE: /{_W}/",
    rf'HEAD: /\{{{_W}("type"{_W}:{_W}"function"{_W},{_W})?"name"{_W}:{_W}/',
    f'TO_ARGUMENTS: /{_W},{_W}"(arguments|parameters)"{_W}:{_W}/',
    rf'TAIL: /{_W}(,{_W}"id"{_W}:{_W}"[A-Za-z0-9_-]{{1,64}}"{_W})?\}}/',
)
_BARE: Final = ("object", "list")
_BARE_TERMINALS: Final = (
    rf"OBJECT: /{BLANKS}\{{{_KEYS}/",
    rf"LIST: /{BLANKS}\[[\s\x1c-\x1f\[\],;]*\{{{_KEYS}/",
)


def strict_grammar(
    use: ToolUse, family: Family, special_tokens: Mapping[int, str], thought: Thought | None = None
) -> Grammar:
    """What the model may write. special_tokens: by id; markers may be among them, or be spelled by other tokens."""
    rules = _Rules(use, family, special_tokens, thought)
    lines = [*_TERMINALS, *rules.thinking(), *rules.answer()]
    for index, tool in enumerate(use.tools):
        lines += rules.function(index, tool)
    return Grammar(kind="lark", text="\n".join(lines))


class _Rules:
    """The lines of the grammar, with what all of them depend on."""

    def __init__(
        self, use: ToolUse, family: Family, special_tokens: Mapping[int, str], thought: Thought | None
    ) -> None:
        self._use = use
        self._family = family
        self._thought = thought
        self._markers = MarkerRules(special_tokens)

    def thinking(self) -> list[str]:
        """`start`: `answer`, and the thinking before it. Calls in thinking are thoughts."""
        if self._thought is None:
            return ["start: answer"]
        return thinking_rules(self._markers, self._thought, others=self._others(self._thought.markers[0]))

    def answer(self) -> list[str]:
        """Text, calls in it or behind it, and bare JSON that is a call as the whole answer."""
        family, several = self._family, self._use.is_parallel
        begin = () if self._thought is None else self._thought.markers[:1]
        free = self._markers.free(*begin, *([family.begin] if family.begin is not None else []))
        lines = [f"free: {free}"]
        forms = ["free"]
        if family.begin is not None:
            lines += [
                f"opened: free {self._markers.marker(family.begin, 'opened_text')}",
                lazy("opened_text", f"(?s:.*){regex(family.begin)}"),
                *self._marked(family.begin),
            ]
            forms = ["(opened marked)* free"] if several and family.end is not None else ["free", "opened marked"]
        if family.is_bare:
            forms += [f"{self._others(*begin)}bare"]
            lines += self._bare()
        calls = " | ".join(f"call_{index}" for index in range(len(self._use.tools)))
        return [*lines, f"answer: {' | '.join(forms)}", f"call: {calls}"]

    def function(self, index: int, tool: Tool) -> list[str]:
        """`call_<index>` and what it consists of."""
        schema = json_schema_grammar(tool.forced_schema()) if tool.strict else Grammar(kind="json_object")
        # a string of the grammar that is a string of JSON
        name = json.dumps(json.dumps(tool.name))
        tags = tagged_call(tool, f"call_{index}") if self._family.is_tagged else None
        lines = [f"arguments_{index}: {in_lark(schema)}"] if tags is None or self._family.is_bare else []
        lines += tags or [f"call_{index}: HEAD {name} TO_ARGUMENTS arguments_{index} TAIL"]
        if self._family.is_bare:
            lines += [f"{kind}_begin_{index}[lazy]: {kind.upper()} {name}" for kind in _BARE]
            lines += [f"{kind}_{index}: {kind}_begin_{index} TO_ARGUMENTS arguments_{index} TAIL" for kind in _BARE]
        if self._family.has_named and re.match(r"\w", tool.name):
            lines += [f"named_{index}: {json.dumps(tool.name)} id? args_mark? WHITE arguments_{index}"]
        return lines

    def _marked(self, begin: str) -> list[str]:
        """What follows the marker: one call or several, up to the end."""
        family, several = self._family, self._use.is_parallel
        if family.end is not None:
            return [f"marked: WHITE call /{_W}{regex(family.end)}/"]
        if not family.has_named:
            return [f"marked: WHITE {self._separated('call', ';')}"]
        again = f" ((/{_W}{regex(begin)}/{self._markers.or_token(begin, before='WHITE ')}) named)*" if several else ""
        names = [index for index, tool in enumerate(self._use.tools) if re.match(r"\w", tool.name)]
        named = " | ".join(f"named_{index}" for index in names)
        lines = [f"marked: WHITE /\\[{_W}/ {self._separated('call', ',')} /{_W}\\]/{' | WHITE calls' if names else ''}"]
        if names:
            args_mark, id_mark = family.inner
            lines += [
                f"calls: named{again}",
                f"named: {named}",
                f"args_mark: {json.dumps(args_mark)}{self._markers.or_token(args_mark)}",
                f"id: ({json.dumps(id_mark)}{self._markers.or_token(id_mark)}) /[A-Za-z0-9_-]{{1,64}}/",
            ]
        return lines

    def _bare(self) -> list[str]:
        indices = range(len(self._use.tools))
        more = self._use.is_parallel
        objects = " | ".join(f"object_{index}" for index in indices)
        lists = " | ".join(f"list_{index}" for index in indices)
        return [
            *_BARE_TERMINALS,
            f"bare: ({objects}){_more('call', ';') if more else ''}",
            f" | ({lists}){_more('call', ',') if more else ''} /{_W}\\]/",
        ]

    def _separated(self, rule: str, separator: str) -> str:
        return f"{rule}{_more(rule, separator) if self._use.is_parallel else ''}"

    def _others(self, *but: str) -> str:
        """Special tokens at the beginning: they have no text, so that what follows is the beginning still."""
        others = self._markers.others(*but, *([] if self._family.begin is None else [self._family.begin]))
        return f"{others}* " if others else ""


def _more(rule: str, separator: str) -> str:
    return f" (/{_W}{separator}{_W}/ {rule})*"
