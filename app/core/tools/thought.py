"""Thinking in a grammar: free up to its end, and then the answer."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.core.structured import in_lark
from app.core.tools.markers import BLANKS, TEXT, MarkerRules, lazy, regex
from workers.protocol.specs import Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """The markers around the thinking before the answer. is_open: the prompt has ended with the first one already."""

    markers: tuple[str, str]
    is_open: bool


def behind_thinking(grammar: Grammar, thought: Thought, special_tokens: Mapping[int, str]) -> Grammar:
    """Thinking if the model wants to, and then an output of this grammar. special_tokens: by id."""
    lines = [
        TEXT,
        *thinking_rules(MarkerRules(special_tokens), thought, must_answer=True),
        f"answer: {in_lark(grammar)}",
    ]
    return Grammar(kind="lark", text="\n".join(lines))


def thinking_rules(markers: MarkerRules, thought: Thought, *, others: str = "", must_answer: bool = False) -> list[str]:
    """`start`: `answer`, and the thinking before it. Calls in thinking are thoughts.

    others: special tokens that may stand before the thinking. must_answer: the output cannot end in the thinking, and
    what surrounds it is no part of the answer: no blanks before, few behind.
    """
    begin, end = thought.markers
    blanks = "" if must_answer else BLANKS
    lines = [
        f"thought: {markers.free(end)}",
        f"thought_end: thought {markers.marker(end, 'thought_end_text')}",
        lazy("thought_end_text", f"(?s:.*){regex(end)}"),
        "thinking: thought_end BREAK answer" if must_answer else "thinking: thought | thought_end answer",
        *(["BREAK: /\\n{0,2}/"] if must_answer else []),
    ]
    if thought.is_open:
        return ["start: thinking", *lines]
    begins = markers.marker(begin, "thought_begin_text", before=f"/{blanks}/ " if blanks else "")
    return [
        f"start: answer | {others}({begins}) thinking",
        lazy("thought_begin_text", f"{blanks}{regex(begin)}"),
        *lines,
    ]
