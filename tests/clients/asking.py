"""What the clients ask. The model is small: what it fills in is bounded, so that its answers end by themselves."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MODEL = "slimstory"
QUESTION = "Tell me a story about a little dog."
MESSAGES = [{"role": "user", "content": QUESTION}]


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=20)
