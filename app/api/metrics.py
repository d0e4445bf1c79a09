"""GET /metrics, for Prometheus."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from app.metrics.serving import ServingMetrics

router = APIRouter()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Every metric of this server."""
    state = request.app.state
    serving: ServingMetrics = state.metrics
    state.job_counts.update(await state.server.count_jobs())
    return Response(serving.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})
