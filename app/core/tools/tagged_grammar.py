"""Calls in tags that keep to a schema, where tags can say what the schema allows.

The text of an argument has no type of its own: `TaggedCallReader` reads it as the schema says. So a parameter is either
JSON that holds no string at its top, or text, free or one of a few.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from app.core.structured import in_lark, json_schema_grammar
from app.core.tools.markers import lazy, regex
from app.core.tools.schema_types import DEFINITIONS, definition, types_of
from app.core.tools.use import Tool
from workers.protocol.specs import JSON_WHITESPACE

_NOTES: Final = frozenset({"title", "description", "default", "example", "examples", "deprecated", "$comment"})
_ROOT: Final = _NOTES | DEFINITIONS | {"$schema", "type", "properties", "required", "additionalProperties"}
_KEY: Final = re.compile(r"[^\s<>=]{1,64}")
_END: Final = r"<\/parameter>"


class _NotInTags(Exception):
    """Tags cannot say what the schema wants."""


def tagged_call(tool: Tool, rule: str) -> list[str] | None:
    """The lines of a Lark rule of this name, and of others that begin so; None if the arguments can only be JSON."""
    name = json.dumps(f"<function={tool.name}>")
    end = r"/\s{0,8}<\/function>/"
    if not tool.strict:
        return [
            f"{rule}: {name} {rule}_any* {end}",
            f"{rule}_any: /\\s{{0,8}}<parameter={_KEY.pattern}>/ {rule}_text",
            lazy(f"{rule}_text", f"(?s:.*){_END}"),
        ]
    schema = tool.forced_schema()
    try:
        return _strict(schema, rule, name, end)
    except _NotInTags:
        return None


def _strict(schema: dict[str, Any], rule: str, name: str, end: str) -> list[str]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not _ROOT.issuperset(schema) or schema.get("additionalProperties") is not False:
        raise _NotInTags
    parts, lines = [], []
    for index, (key, one) in enumerate(properties.items()):
        if not _KEY.fullmatch(key):
            raise _NotInTags
        part = f"{rule}_{index}"
        parts.append(part if key in required else f"{part}?")
        lines += _parameter(part, key, one, schema)
    return [f"{rule}: {name} {' '.join(parts)} {end}", *lines]


def _parameter(rule: str, key: str, schema: Any, root: Mapping[str, Any]) -> list[str]:
    tag = f"/\\s{{0,8}}{regex(f'<parameter={key}>')}/"
    types = types_of(schema, root)
    if types and "string" not in types:
        value = {**schema, **{name: root[name] for name in DEFINITIONS & root.keys()}}
        if not _is_whole(value):
            raise _NotInTags
        white = f"/{JSON_WHITESPACE}/"
        return [f"{rule}: {tag} {white} {in_lark(json_schema_grammar(value))} /{JSON_WHITESPACE}{_END}/"]
    if not types <= {"string", "null"}:
        raise _NotInTags
    texts = _texts(schema, root, set())
    if texts is not None and (not texts or ("null" in texts) != ("null" in types)):
        raise _NotInTags
    if texts is None:
        return [f"{rule}: {tag} {rule}_text", lazy(f"{rule}_text", f"(?s:.*){_END}")]
    choices = "|".join(map(regex, texts))
    return [f"{rule}: {tag} /\\n?({choices})\\n?{_END}/"]


def _texts(schema: Any, root: Mapping[str, Any], followed: set[str]) -> list[str] | None:
    """Which texts the parameter may be; None for any. followed: references, each of them once: they may lead back."""
    if not isinstance(schema, dict):
        raise _NotInTags
    keywords = schema.keys() - _NOTES - {"type"}
    if not keywords:
        return ["null"] if schema.get("type") == "null" else None
    if keywords == {"const"}:
        return [_text(schema["const"])]
    if keywords == {"enum"}:
        return [_text(value) for value in schema["enum"]]
    if "type" in schema:
        raise _NotInTags
    if keywords == {"$ref"} and schema["$ref"] not in followed:
        followed.add(schema["$ref"])
        return _texts(definition(schema["$ref"], root), root, followed)
    if keywords == {"anyOf"}:
        branches = [_texts(branch, root, followed) for branch in schema["anyOf"]]
        return None if None in branches else [text for texts in branches for text in texts or ()]
    raise _NotInTags


def _text(value: Any) -> str:
    """As it stands between tags, where null and its name look the same."""
    if value is None:
        return "null"
    if not isinstance(value, str) or value == "null" or not re.fullmatch(r"[^\s<>]([^\n<>]*[^\s<>])?", value):
        raise _NotInTags
    return value


def _is_whole(value: Any) -> bool:
    """True if every reference leads to a definition, as those are all that is taken along."""
    if isinstance(value, list):
        return all(map(_is_whole, value))
    if not isinstance(value, dict):
        return True
    reference = value.get("$ref", "#/$defs/")
    is_inside = not isinstance(reference, str) or reference.startswith(tuple(f"#/{name}/" for name in DEFINITIONS))
    return is_inside and all(map(_is_whole, value.values()))
