"""What a client asks for when it loads a model, and whether a running worker is already that."""

from dataclasses import dataclass
from typing import Literal

from app.core.entries import Entry
from app.settings import Settings
from workers.protocol.specs import DtypeName, ServeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """model: a base, a variant, a local folder or a hub id. None means: whatever the server's default is.

    tool_parser, reasoning_parser: names of tools.calls.FAMILIES and tools.reasoning.MARKERS, or `none`, or `auto`.

    is_trusted: the operator asks, at the start, and not a client.
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

    def agrees_with(self, spec: ServeSpec) -> bool:
        """True if a worker that runs this spec is what the request asks for."""
        return (
            self.device in (None, spec.device)
            and self.dtype in ("auto", spec.dtype)
            and self.max_model_len in (None, spec.max_model_len)
            and self.kv_cache_bytes in (None, spec.kv_cache_bytes)
            and self.lane in (None, spec.lane)
        )

    def spec(self, entry: Entry, dtype: DtypeName, settings: Settings) -> ServeSpec:
        """The order to the worker. dtype: of the variant, never what the request left open."""
        return ServeSpec(
            variant=entry.row.id,
            path=str(entry.folder),
            device=self.device or settings.device,
            dtype=dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_bytes=self.kv_cache_bytes,
            num_threads=settings.num_threads,
            lane=self.lane or "auto",
            verdict_dir=str(settings.data_dir / "verdicts"),
            tokenizer_path=str(entry.text_folder / "tokenizer.json"),
            echo=entry.echo,
        )
