"""POST /v1/embeddings: a clear no.

A language model's last hidden state was trained to predict the next token. Its mean, or its last token, makes a vector
and a poor one: texts that mean the same are hardly nearer than others. Numbers that mislead are worse than none.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.body import json_body
from app.core.variants import Variant
from app.errors import InvalidRequest
from app.schemas.embeddings import EmbeddingsRequest

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(
    request: Request, body: Annotated[EmbeddingsRequest, Depends(json_body(EmbeddingsRequest))]
) -> Response:
    """400 for every model that exists."""
    variant: Variant = request.app.state.server.catalog.model(body.model)
    raise InvalidRequest(
        f"'{variant.id}' generates text; its hidden states are not trained to compare texts, so this server gives no "
        "embeddings of it. Use a server for embedding models.",
        code="unsupported_model",
        param="model",
    )
