"""Body of POST /v1/embeddings."""

from typing import Any

from app.schemas.body import OpenAIBody


class EmbeddingsRequest(OpenAIBody):
    """What clients send; the answer is always a refusal, so only the model is looked at."""

    model: str
    input: Any
    dimensions: Any = None
    encoding_format: Any = None
    user: Any = None
