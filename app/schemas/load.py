"""Bodies of POST /v1/load, POST /v1/bases and POST /v1/unload."""

from typing import Literal

from pydantic import Field

from app.schemas.body import OwnBody


class _SourceBody(OwnBody):
    """Where a model comes from."""

    model: str = Field(min_length=1, max_length=1024)
    name: str | None = Field(None, min_length=1, max_length=64)
    revision: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")


class LoadBody(_SourceBody):
    """model: a base, a variant, a local folder or a hub id. name: of a base that is new. wait: answer when it is ready.

    kv_cache_bytes, max_model_len, device: what is left open is the server's or the model's own. tool_parser,
    reasoning_parser: what reads calls and thinking in the model's answers; auto goes by its chat template.
    """

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")
    max_model_len: int | None = Field(None, ge=16, le=2**24)
    kv_cache_bytes: int | None = Field(None, ge=2**16, le=2**44)
    lane: Literal["auto", "packed", "compat"] | None = None
    tool_parser: Literal["auto", "none", "hermes", "llama3", "mistral", "json"] | None = None
    reasoning_parser: Literal["auto", "none", "think", "mistral"] | None = None
    wait: bool = False


class RegisterBody(_SourceBody):
    """model: a local folder or a hub id. name: of the new base. wait: answer when a download is there."""

    wait: bool = True


class UnloadBody(OwnBody):
    """wait: answer when the process is gone. force: do not let running requests end."""

    model: str = Field(min_length=1, max_length=256)
    wait: bool = True
    force: bool = False
