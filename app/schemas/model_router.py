"""Body of POST /models/load and POST /models/unload, as llama.cpp's router has it."""

from pydantic import Field

from app.schemas.body import OpenAIBody


class RouterModelRequest(OpenAIBody):
    """The model to load or to unload."""

    model: str = Field(min_length=1, max_length=1024)
