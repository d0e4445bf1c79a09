"""The grammar that a request's output is held to, checked before a worker sees it.

A client that asks for one and cannot have it is told so; functions that are strict by default only are not, where that
cannot be.
"""

from dataclasses import replace

import msgspec

from app.core.answers import AnswerRules
from app.core.request import GenerationRequest
from app.core.structured import GrammarChecker, json_schema_grammar
from app.core.text import TextModel


async def constrained(
    grammars: GrammarChecker,
    request: GenerationRequest,
    rules: AnswerRules,
    text_model: TextModel,
    prompts: list[list[int]],
) -> tuple[GenerationRequest, AnswerRules]:
    """The request with its grammar, its own or that of its calls, and the rules by which the answer is then read.

    Raises InvalidRequest, naming the field, if it asks for what cannot be enforced.
    """
    if rules.asked is not None:
        await grammars.check(rules.asked, text_model, param=request.grammar_param)
    rules, said = await _with_defaults(grammars, rules, text_model)
    for schema in rules.enforced_schemas():
        owner = f" of the function '{schema.function}'"
        await grammars.check(schema.grammar, text_model, param=schema.param, owner=owner)
    grammar = rules.grammar(prompts[0], text_model)
    if said is not rules and grammar is not None and not await grammars.can_enforce(grammar, text_model):
        rules, grammar = said, said.grammar(prompts[0], text_model)
    if grammar == rules.asked:
        return request, rules
    assert grammar is not None
    await grammars.check(grammar, text_model, param=request.grammar_param or "tools")
    return replace(request, params=msgspec.structs.replace(request.params, grammar=grammar)), rules


async def _with_defaults(
    grammars: GrammarChecker, rules: AnswerRules, text_model: TextModel
) -> tuple[AnswerRules, AnswerRules]:
    """The rules with the functions that are strict by default and can be, and those with what the client has said."""
    use = rules.tool_use
    if use is None or not use.is_strict_by_default or use.constrains(rules.asked) or rules.family is None:
        return rules, rules
    if not text_model.token_strings.spell_every_byte:
        return rules, rules
    tools = [
        replace(tool, strict=await grammars.can_enforce(json_schema_grammar(tool.forced_schema()), text_model))
        if tool.strict is None
        else tool
        for tool in use.tools
    ]
    return replace(rules, tool_use=replace(use, tools=tuple(tools))), rules
