"""What a client asks for when it loads a model, and whether a running worker is already that."""

from dataclasses import dataclass
from typing import Literal

from workers.protocol.specs import DtypeName, ServeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """model: a base, a variant, a local folder or a hub id. None means: whatever the server's default is.

    is_trusted: the operator asks, at the start, and not a client. pin: never evict it, and do not unload it when idle.
    idle_unload_s: seconds without requests after which it is unloaded, 0 means never. evict: may unload idle others to
    make room. tool_parser, reasoning_parser: names of tools.calls.FAMILIES and tools.reasoning.MARKERS, `none`, `auto`.
    """

    model: str
    name: str | None = None
    revision: str | None = None
    dtype: DtypeName = "auto"
    device: str | None = None
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    lane: Literal["auto", "packed", "compat"] | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    is_trusted: bool = False
    pin: bool | None = None
    idle_unload_s: float | None = None
    evict: bool | None = None

    def agrees_with(self, spec: ServeSpec) -> bool:
        """True if a worker that runs this spec is what the request asks for."""
        return (
            self.device in (None, spec.device)
            and self.dtype in ("auto", spec.dtype)
            and self.max_model_len in (None, spec.max_model_len)
            and self.kv_cache_bytes in (None, spec.kv_cache_bytes)
            and self.lane in (None, spec.lane)
        )
