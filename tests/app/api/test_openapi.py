"""/openapi.json: every route that takes a body says which."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.openapi import body_model
from app.main import ROUTERS, create_app
from app.settings import Settings

WITHOUT_BODY = {"/v1/jobs/{job_id}/cancel"}
MODELS = {
    route.path_format: body_model(route)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "POST" in (route.methods or ())
}


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))


def test_every_post_route_has_the_schema_of_its_body(application: FastAPI) -> None:
    document = application.openapi()

    posts = {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}
    assert {path for path, post in posts.items() if "requestBody" not in post} == WITHOUT_BODY
    assert "/v1/chat/completions" in posts
    for path in set(posts) - WITHOUT_BODY:
        reference = posts[path]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.removeprefix("#/components/schemas/")]
        model = MODELS[path]
        assert model is not None
        assert set(schema["properties"]) == set(model.model_fields)


def test_every_reference_leads_somewhere(application: FastAPI) -> None:
    document = application.openapi()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    assert set(_references(document)) <= known


def _references(part: object) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in _references(value)]
    if isinstance(part, list):
        return [found for value in part for found in _references(value)]
    return []


def test_every_operation_tells_how_it_can_fail(application: FastAPI) -> None:
    document = application.openapi()

    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert all({"400", "401", "403", "429", "500"} <= set(operation["responses"]) for operation in operations)
    assert not any("422" in operation["responses"] for operation in operations)
    assert "202" in document["paths"]["/v1/quantize"]["post"]["responses"]
    assert {"404", "409", "413", "415", "503", "507"} <= set(document["paths"]["/v1/load"]["post"]["responses"])


def test_document_is_made_once(application: FastAPI, tmp_path: Path) -> None:
    assert application.openapi() is application.openapi()
