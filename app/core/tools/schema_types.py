"""Which JSON types a schema allows, as far as it says so at once: behind references and in its branches."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

DEFINITIONS: Final = frozenset({"$defs", "definitions"})
_BRANCHES: Final = ("anyOf", "oneOf", "allOf")
_NAMES: Final = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    dict: "object",
    list: "array",
}


def types_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The names of the types; none if the schema does not tell. root: the schema in which references lead."""
    types: set[str] = set()
    seen: set[str] = set()
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        reference = one.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            waiting.append(definition(reference, root))
        branches = [branch for keyword in _BRANCHES for branch in _list(one.get(keyword))]
        waiting += branches
        types |= _own_types(one)
    return types


def definition(reference: str, root: Mapping[str, Any]) -> Any:
    """The schema that a `$ref` to one of the root's definitions leads to; None if it leads elsewhere."""
    start, _, path = reference.partition("/")
    place, _, name = path.partition("/")
    definitions = root.get(place) if start == "#" and place in DEFINITIONS else None
    return definitions.get(unquote(name)) if isinstance(definitions, dict) else None


def _own_types(schema: dict[str, Any]) -> set[str]:
    named = schema.get("type")
    if named is not None:
        return {named} if isinstance(named, str) else {one for one in _list(named) if isinstance(one, str)}
    values = [schema["const"]] if "const" in schema else _list(schema.get("enum"))
    return {_NAMES[type(value)] for value in values}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
