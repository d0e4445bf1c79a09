"""create_app: routers, error handlers, lifespan; nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.api import (
    bases,
    chat,
    compare,
    completions,
    embeddings,
    export,
    generate,
    jobs,
    load,
    messages,
    metrics,
    model_router,
    models,
    operations,
    page,
    quantize,
    reports,
    responses,
    tokenize,
    variants,
)
from app.api.guard import Guard
from app.api.handlers import install_handlers
from app.api.openapi import describe_routes
from app.api.page import PageFiles
from app.api.variant_prefix import VariantPrefix
from app.core.generation import Generation
from app.core.renderer import Renderer
from app.core.server import Server
from app.core.structured import GrammarChecker
from app.core.text import TextModels
from app.metrics.job_counts import JobCounts
from app.metrics.live import LiveMetrics
from app.settings import Settings

ROUTERS = (
    *(chat.router, completions.router, responses.router, messages.router, embeddings.router, generate.router),
    *(models.router, model_router.router),
    *(load.router, quantize.router, jobs.router, reports.router, variants.router, export.router, bases.router),
    *(tokenize.router, operations.router, metrics.router, compare.router, page.router),
)


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; its processes start and stop with its lifespan."""
    app = FastAPI(
        title="slimserve",
        version=__version__,
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.add_middleware(VariantPrefix)
    app.add_middleware(Guard, settings=settings)
    install_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/page", PageFiles())
    describe_routes(app, [route for router in ROUTERS for route in router.routes])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    state = app.state
    state.server = Server(settings)
    state.metrics = state.server.metrics
    state.texts = TextModels()
    state.renderer = Renderer()
    state.grammars = GrammarChecker()
    state.generation = Generation(state.server, state.texts, state.renderer, state.grammars, state.metrics)
    live = LiveMetrics(state.server.catalog.compared, state.server.jobs.running, state.generation.admission.admitted)
    state.job_counts = JobCounts()
    state.metrics.add_collector(live)
    state.metrics.add_collector(state.job_counts)
    state.server.supervisor.observe_readiness(state.metrics.expect)
    state.server.supervisor.observe_readiness(live.observe_ready)
    state.server.supervisor.observe_steps(live.observe_step)
    state.server.supervisor.observe_ends(live.forget_worker)
    await state.server.start()
    try:
        yield
    finally:
        await state.server.stop()
        await state.renderer.stop()
        await state.grammars.stop()
