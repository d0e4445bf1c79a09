"""Rules for JSON Schemas beyond what the grammar library checks: nothing is ignored, and every value has an end.

The library refuses the keywords of JSON Schema that it knows and does not enforce, and ignores all others, its own
`x-guidance` excepted, by which a schema could switch that off.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

MAX_DEPTH: Final = 32

_IN_OBJECT: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_IN_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_ALONE: Final = frozenset({"items", "additionalProperties", "additionalItems"})
_ENFORCED: Final = (
    _IN_OBJECT
    | _IN_LIST
    | _ALONE
    | {"$ref", "type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems"}
    | {"minLength", "maxLength", "pattern", "format", "multipleOf"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
# They tell people something and constrain nothing; what `discriminator` says, `oneOf` says as well.
_ANNOTATIONS: Final = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
    | {"$schema", "contentMediaType", "contentEncoding", "discriminator"}
)
_FORMATS: Final = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
)


class SchemaRefused(Exception):
    """The schema breaks a rule; the text names rule and place."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What must have an end so that a value of a schema has one: all of `needed`, and one of each of `choices`."""

    needed: list[str]
    choices: list[list[str]]


def check_schema(text: str) -> None:
    """Raises SchemaRefused for the first rule that the schema breaks."""
    try:
        schema = json.loads(text)
        if _depth(schema) > MAX_DEPTH:
            raise SchemaRefused(f"it is nested more than {MAX_DEPTH} levels deep")
    except RecursionError as error:
        raise SchemaRefused(f"it is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise SchemaRefused("it is not JSON") from error
    if schema is False:
        raise SchemaRefused("no value matches false")
    found = dict(_walk(schema, "#"))
    for place, one in found.items():
        if isinstance(one, dict):
            _check_keywords(one, place)
            _check_reference(one, place, found)
    _check_ends(found)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _walk(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The schema and every schema in it, by JSON pointer."""
    if not isinstance(schema, dict | bool):
        raise SchemaRefused(f"{place} must be an object or a boolean")
    yield place, schema
    if isinstance(schema, bool):
        return
    for keyword, value in schema.items():
        for child, name in _children(keyword, value, f"{place}/{keyword}"):
            yield from _walk(child, name)


def _children(keyword: str, value: Any, place: str) -> Iterator[tuple[Any, str]]:
    is_list = keyword in _IN_LIST or (keyword == "items" and isinstance(value, list))
    if (keyword in _IN_OBJECT and not isinstance(value, dict)) or (is_list and not isinstance(value, list)):
        raise SchemaRefused(f"{place} must be {'an array' if is_list else 'an object'} of schemas")
    if keyword in _IN_OBJECT:
        for name, child in value.items():
            yield child, _below(place, name)
    elif is_list:
        for index, child in enumerate(value):
            yield child, f"{place}/{index}"
    elif keyword in _ALONE:
        yield value, place


def _check_keywords(schema: dict[str, Any], place: str) -> None:
    for keyword in schema:
        if keyword in _ENFORCED or keyword in _ANNOTATIONS:
            continue
        if (keyword == "$id" and place == "#") or (keyword.startswith("x-") and keyword != "x-guidance"):
            continue
        raise SchemaRefused(f"the keyword '{keyword}' at {place} is not supported; leave it out")
    form = schema.get("format", "date")
    if not isinstance(form, str) or form not in _FORMATS:
        raise SchemaRefused(f"the format at {place} is none of {', '.join(sorted(_FORMATS))}; write a 'pattern'")


def _check_reference(schema: dict[str, Any], place: str, found: dict[str, Any]) -> None:
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str):
        raise SchemaRefused(f"'$ref' at {place} must be a string")
    if not reference.startswith("#"):
        raise SchemaRefused(f"'$ref' at {place} leads out of the schema; copy what it names into '$defs'")
    if unquote(reference) not in found:
        raise SchemaRefused(f"'$ref' at {place} leads to no schema of this schema")


def _check_ends(found: dict[str, Any]) -> None:
    """Refuse schemas whose values cannot end, because a `$ref` leads back to where it stands on every way.

    The least fixed point of: a value has an end if everything that it must contain has one.
    """
    parts = {place: _parts(schema, place) for place, schema in found.items()}
    ending: set[str] = set()
    is_growing = True
    while is_growing:
        num_before = len(ending)
        # children stand behind their parents, so that one round is enough where nothing refers backwards
        for place in reversed(parts):
            part = parts[place]
            if ending.issuperset(part.needed) and not any(ending.isdisjoint(choice) for choice in part.choices):
                ending.add(place)
        is_growing = len(ending) > num_before
    for place in parts:
        if place not in ending:
            raise SchemaRefused(f"a value of {place} would have no end, because '$ref' leads back to it")


def _parts(schema: Any, place: str) -> _Parts:
    if isinstance(schema, bool):
        return _Parts([], [])
    needed = [unquote(schema["$ref"])] if "$ref" in schema else []
    needed += [f"{place}/allOf/{index}" for index in range(len(schema.get("allOf", ())))]
    # without a type the value may be of another, and end
    if schema.get("type") == "object":
        needed += _required_members(schema, place)
    if schema.get("type") == "array":
        needed += _required_items(schema, place)
    choices = [
        [f"{place}/{keyword}/{index}" for index in range(len(schema[keyword]))]
        for keyword in ("anyOf", "oneOf")
        if schema.get(keyword)
    ]
    return _Parts(needed, choices)


def _required_members(schema: dict[str, Any], place: str) -> Iterator[str]:
    names = schema.get("required")
    for name in names if isinstance(names, list) else ():
        if not isinstance(name, str):
            raise SchemaRefused(f"'required' at {place} must be a list of names")
        if name in schema.get("properties", {}):
            yield _below(f"{place}/properties", name)
        elif "additionalProperties" in schema:
            yield f"{place}/additionalProperties"


def _required_items(schema: dict[str, Any], place: str) -> Iterator[str]:
    least = schema.get("minItems")
    if not isinstance(least, int):
        return
    leading = "items" if isinstance(schema.get("items"), list) else "prefixItems"
    num_leading = len(schema.get(leading, ()))
    yield from (f"{place}/{leading}/{index}" for index in range(min(least, num_leading)))
    if least > num_leading and leading != "items" and "items" in schema:
        yield f"{place}/items"


def _below(place: str, name: str) -> str:
    """The JSON pointer (RFC 6901) of a member."""
    return f"{place}/{str(name).replace('~', '~0').replace('/', '~1')}"
