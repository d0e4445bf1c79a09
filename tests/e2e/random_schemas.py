"""JSON Schemas at random, small enough that a tiny model's answer to each fits into its context."""

import random
from typing import Any

_WORDS = ("cat", "dog", "red ball", "x", "größe", "a-b", "id", "value", 'quote"d', "back\\slash")
_PATTERNS = ("^[a-c]{1,4}$", "^[A-Z][a-z]+$", "^\\d{3}-\\d{2}$", "ab?c", "^(yes|no)$")
_FORMATS = ("date", "uuid", "ipv4", "email")


def random_schema(seed: int) -> dict[str, Any]:
    """An object with one to three properties, the same for the same seed."""
    source = random.Random(seed)
    schema = _object(source, depth=2)
    if source.random() < 0.3:
        schema["$defs"] = {"thing": _scalar(source)}
        schema["properties"]["thing"] = {"$ref": "#/$defs/thing"}
    return schema


def _any(source: random.Random, depth: int) -> dict[str, Any]:
    if depth == 0:
        return _scalar(source)
    return source.choice((_scalar, _scalar, _object, _array, _union))(source, depth - 1)


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(_WORDS, source.randint(1, 3))
    properties = {name: _any(source, depth) for name in names}
    required = [name for name in names if source.random() < 0.7]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    least = source.randint(0, 2)
    if source.random() < 0.3:
        return {"type": "array", "prefixItems": [_scalar(source), _scalar(source)], "items": False, "minItems": 2}
    return {"type": "array", "items": _any(source, depth), "minItems": least, "maxItems": least + source.randint(0, 2)}


def _union(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(source, depth), {"type": "null"}]}


def _scalar(source: random.Random, depth: int = 0) -> dict[str, Any]:
    low = source.randint(-50, 50)
    choices: list[dict[str, Any]] = [
        {"type": "string", "maxLength": source.randint(1, 12)},
        {"type": "string", "minLength": 2, "maxLength": 6},
        {"type": "string", "pattern": source.choice(_PATTERNS), "maxLength": 12},
        {"type": "string", "format": source.choice(_FORMATS), "maxLength": 40},
        {"type": "integer", "minimum": low, "maximum": low + source.randint(0, 200)},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
        {"type": "number", "exclusiveMinimum": low, "maximum": low + 1.5},
        {"type": ["boolean", "null"]},
        {"enum": source.sample([*_WORDS, 1, -2.5, True, None, [1, "a"], {"k": 0}], 3)},
        {"const": source.choice([*_WORDS, 12, None])},
    ]
    return source.choice(choices)
