"""docs/api.md tells everything that a client can meet: routes, the fields of our own bodies, error codes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from app.api import validation
from app.api.openapi import body_model
from app.main import ROUTERS
from app.schemas.body import OwnBody
from workers.protocol.errors import WorkerErrorCode

ROOT = Path(__file__).resolve().parents[3]
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
# by body: /v1/compress is another name of /v1/quantize and has no description of its own
OWN_BODIES = {
    model: [route.path_format for route in ROUTES if body_model(route) is model]
    for model in map(body_model, ROUTES)
    if model is not None and issubclass(model, OwnBody)
}


def page() -> str:
    return (ROOT / "docs" / "api.md").read_text("utf-8")


def listed_codes() -> list[str]:
    """What stands in backticks in the last column of the table of errors, and in the list of jobs' codes below it."""
    section = page().partition("\n## Errors\n")[2]
    rows = [line.split("|")[3] for line in section.splitlines() if line.startswith("| ") and "`" in line]
    jobs = section.partition("\nA job's `error.code`")[2].partition("\n\n")[0]
    return re.findall(r"`([a-z_0-9]+)`", " ".join([*rows, jobs]))


def codes_in(path: Path) -> Iterator[str]:
    """Constants that are handed on as a code: `code=` and `error_code=`, a class's `code`, the first of a broken rule
    and of a job's pair of code and message."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.keyword(arg="code" | "error_code", value=ast.Constant(value=str(code))):
                yield code
            case ast.Call(func=ast.Name(id="broken_rule"), args=[ast.Constant(value=str(code)), *_]):
                yield code
            case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                yield code
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(code))):
                yield code
            case ast.Return(value=ast.Tuple(elts=[ast.Constant(value=str(code)), _])) if path.stem == "jobs":
                yield code


def codes_of_broken_schemas() -> set[str]:
    """What pydantic's own rules become."""
    named = {f"{number}_{suffix}" for _, suffix in validation.BOUNDS.values() for number in ("integer", "decimal")}
    return {*validation.CODES.values(), *named, "empty_array", "array_below_min_length", "invalid_type"}


def test_every_error_code_is_listed_and_no_other() -> None:
    found = {code for path in (ROOT / "app").rglob("*.py") for code in codes_in(path)}

    # a cancelled job says so by its state
    of_workers = {code.value for code in WorkerErrorCode} - {WorkerErrorCode.CANCELLED}
    known = found | codes_of_broken_schemas() | of_workers
    listed = listed_codes()

    assert "variant_busy" in found
    assert "disk_error" in found
    assert sorted(known - set(listed)) == []
    assert sorted(set(listed) - known) == []


def test_every_route_is_listed() -> None:
    missing = [
        f"{method} {route.path_format}"
        for route in ROUTES
        for method in (route.methods or set()) - {"HEAD"}
        if not re.search(rf"`(?:[A-Z]+ )?{re.escape(shown(route.path_format))}[`?]", page())
    ]

    assert missing == []


def shown(path: str) -> str:
    """A path as the page writes it."""
    return re.sub(r"\{\w+\}", "{id}", path)


@pytest.mark.parametrize("body", OWN_BODIES, ids=lambda body: body.__name__)
def test_every_field_of_our_own_bodies_is_told_where_its_route_is_described(body: type[OwnBody]) -> None:
    beginnings = tuple(f"`POST {path}`:" for path in OWN_BODIES[body])
    described = [text for text in page().split("\n\n") if text.startswith(beginnings)]

    told = set(re.findall(r"`([a-z_]+)`", " ".join(described)))

    assert sorted(set(body.model_fields) - told) == []


def test_schemas_are_announced() -> None:
    assert "`GET /openapi.json`" in page()
