"""What /openapi.json says of request bodies: routes read their bytes themselves, so FastAPI cannot know the schemas.

What it says of statuses: statuses.py.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from app.api.body import JsonBody
from app.api.statuses import add_statuses

_REF = "#/components/schemas/{model}"


def describe_routes(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Give the application's OpenAPI document the schema of every body that these routes read, and their statuses."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        # FastAPI keeps the first document and gives the same one again.
        if app.openapi_schema is None:
            document = generate()
            _add_bodies(document, routes)
            add_statuses(document)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def body_model(route: APIRoute) -> type[BaseModel] | None:
    """The model of a route's body; None for a route without one."""
    calls = (dependency.call for dependency in route.dependant.dependencies)
    return next((call.model for call in calls if isinstance(call, JsonBody)), None)


def _add_bodies(document: dict[str, Any], routes: Sequence[BaseRoute]) -> None:
    found = [(route, body_model(route)) for route in routes if isinstance(route, APIRoute)]
    bodies = [(route, model) for route, model in found if model is not None]
    models = [(model, "validation") for model in dict.fromkeys(model for _, model in bodies)]
    references, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions.get("$defs", {}))
    for route, model in bodies:
        for method in route.methods or ():
            document["paths"][route.path_format][method.lower()]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": references[model, "validation"]}},
            }
