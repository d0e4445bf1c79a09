"""How a grammar is compiled, and within which limits: the same where it is checked and where it is enforced.

The front end has every grammar compiled in a process that may die of it; only what passed there reaches a worker.
Only children import this module: llguidance is native code.

llguidance, not xgrammar: it has no dependencies (xgrammar brings torch, and so cannot be installed for the front end
alone), refuses the keywords of JSON Schema that it does not enforce, and bounds the work of every step.
"""

import json
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from workers.protocol.specs import JSON_WHITESPACE, Grammar

# Of llguidance's own fuel half for compiling, a quarter per step: with all of it `(a{1000}){1000}` took 0.4 s for
# its first token, and every other stream of the worker with it. A tenth of the states, which each sequence keeps for
# itself: 62,500 of them took 50 MB. Twice the items of a row: an object with 500 optional properties has 2,007.
_LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    max_lexer_states=25_000,
    max_items_in_row=4_000,
    verbose_errors=False,
)


def compile_grammar(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of the output; `is_error` tells whether there is one that fits the limits.

    Raises ValueError for a text that is not of the grammar's kind.
    """
    return LLMatcher(tokenizer, _source(grammar), log_level=0, limits=_LIMITS)


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            # options can only be given to an object; true is the schema {}
            schema = "{}" if grammar.text.strip() == "true" else grammar.text
            return _json(schema)
        case "json_object":
            return _json('{"type": "object"}')
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            texts = json.loads(grammar.text)
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in texts))
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _json(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": JSON_WHITESPACE})
