"""POST /v1/load, POST /v1/unload, and POST /v1/models/plan: what a load would do."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.body import json_body
from app.api.variants import variant_object
from app.core.load_request import LoadRequest
from app.core.plan import plan_loads
from app.core.server import Server
from app.core.variants import VariantState
from app.schemas.load import LoadBody, PlanBody, UnloadBody

router = APIRouter()


@router.post("/v1/load")
async def load(request: Request, body: Annotated[LoadBody, Depends(json_body(LoadBody))]) -> Response:
    """Begin to load a model: 202 while it loads, 200 when it is ready."""
    server: Server = request.app.state.server
    wanted = LoadRequest(**body.model_dump(exclude={"wait"}))
    variant = await server.loader.load(wanted, wait=body.wait)
    return json_answer(variant_object(variant), 200 if variant.state is VariantState.READY else 202)


@router.post("/v1/unload")
async def unload(request: Request, body: Annotated[UnloadBody, Depends(json_body(UnloadBody))]) -> Response:
    """Let a variant's requests end and give its memory back: 200 when its process is gone, 202 while it drains."""
    server: Server = request.app.state.server
    variant = await server.catalog.unload(body.model, wait=body.wait, force=body.force)
    return json_answer(variant_object(variant), 202 if variant.state is VariantState.UNLOADING else 200)


@router.post("/v1/models/plan")
async def plan(request: Request, body: Annotated[PlanBody, Depends(json_body(PlanBody))]) -> Response:
    """Whether these models fit, and what would be evicted for them; nothing is done."""
    server: Server = request.app.state.server
    wanted = [LoadRequest(model=model, **body.model_dump(exclude={"models"})) for model in body.models]
    return json_answer(plan_loads(wanted, server.catalog, server.residency))
