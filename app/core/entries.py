"""One variant in memory: its row, its serving life, its quality; and the snapshot that others see of it."""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from app.core import fit
from app.core.bases import Bases
from app.core.load_request import LoadRequest
from app.core.publish import MANIFEST
from app.core.pulse import Pulse
from app.core.serving import ServingLife
from app.core.variants import AUTO, Quality, Speed, Variant
from app.settings import Settings
from app.store.bases import BaseRow
from app.store.memory import MemoryRow
from app.store.variants import VariantRow
from app.supervisor.supervisor import Supervisor
from workers.protocol.messages import Loading
from workers.protocol.specs import DtypeName, EchoSpec, ServeSpec

ECHO: Final = "echo"
ECHO_MAX_MODEL_LEN: Final = 4096


@dataclass(slots=True, kw_only=True)
class Entry:
    """folder: with config.json and weights. text_folder: with tokenizer.json. echo, and no base: a stand-in.

    group_size: see Variant. speeds: by device, oldest first.
    options: of its newest load, until somebody unloads it by name. measured: memory by device. is_leaving: it is being
    deleted.
    """

    row: VariantRow
    life: ServingLife
    base: BaseRow | None
    folder: Path
    text_folder: Path
    quality: Quality | None = None
    echo: EchoSpec | None = None
    speeds: dict[str, tuple[Speed, ...]] = field(default_factory=dict)
    group_size: int | None = None
    options: LoadRequest | None = None
    measured: dict[str, MemoryRow] = field(default_factory=dict)
    is_leaving: bool = False

    @property
    def is_pinned(self) -> bool:
        """True if it stays until somebody unloads it by name."""
        return self.options is not None and self.options.pin is True

    def adjust(self, request: LoadRequest) -> None:
        """Take over what a load of a variant that is loaded already can change: how long it stays, who reads it."""
        known = self.options or LoadRequest(model=self.row.id)
        self.options = replace(
            known,
            pin=known.pin if request.pin is None else request.pin,
            idle_unload_s=known.idle_unload_s if request.idle_unload_s is None else request.idle_unload_s,
            tool_parser=request.tool_parser or known.tool_parser,
            reasoning_parser=request.reasoning_parser or known.reasoning_parser,
        )

    def measured_bytes(self, request: LoadRequest, device: str) -> int | None:
        """What a load with these options has taken on this device before; None if nobody has tried."""
        row = self.measured.get(device)
        is_alike = row is not None and (row.max_model_len, row.kv_cache_bytes) == (
            request.max_model_len,
            request.kv_cache_bytes,
        )
        return row.process_bytes if row is not None and is_alike else None

    @property
    def is_cast(self) -> bool:
        """True for a base in one dtype: the dtype is its method."""
        return self.echo is None and self.row.kind == "cast"

    def estimated_bytes(self, kv_cache_bytes: int | None = None) -> int:
        """What a load is expected to take."""
        return fit.estimated_bytes(self.row.weight_bytes, kv_cache_bytes)

    def serve_spec(self, request: LoadRequest, dtype: DtypeName, settings: Settings) -> ServeSpec:
        """The order to a worker. dtype: of the variant, never what the request left open.

        Who asks for fp32 by name gets it in every product; a base that is in fp32 anyway may round to be fast.
        """
        return ServeSpec(
            variant=self.row.id,
            path=str(self.folder),
            device=request.device or settings.device,
            dtype=dtype,
            is_unrounded=request.dtype == "fp32",
            max_model_len=request.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_bytes=request.kv_cache_bytes,
            num_threads=settings.num_threads,
            lane=request.lane or "auto",
            verdict_dir=str(settings.data_dir / "verdicts"),
            tokenizer_path=str(self.text_folder / "tokenizer.json"),
            echo=self.echo,
        )

    def snapshot(self) -> Variant:
        """The variant as it is now."""
        life, base, row = self.life, self.base, self.row
        stats = life.worker.stats if life.worker is not None else None
        return Variant(
            id=row.id,
            base=row.base,
            method=row.method,
            kind="echo" if base is None else row.kind,
            created=row.created,
            state=life.state,
            reason=life.reason or _phase(life),
            folder=self.text_folder,
            architecture=base.info.architecture if base is not None else "Echo",
            num_parameters=base.info.num_parameters if base is not None else 0,
            max_model_len=base.info.max_model_len if base is not None else ECHO_MAX_MODEL_LEN,
            format=row.format,
            bits=row.bits,
            bytes_on_disk=row.disk_bytes,
            estimated_bytes=self.estimated_bytes(),
            info=life.info,
            restarts=life.restarts,
            running=stats.num_running if stats is not None else 0,
            waiting=stats.num_waiting if stats is not None else 0,
            process_bytes=life.process_bytes,
            quality=self.quality,
            loading=_loading(life),
            weight_bytes=row.weight_bytes,
            speeds=self.speeds,
            group_size=self.group_size,
            tool_parser=(self.options and self.options.tool_parser) or AUTO,
            reasoning_parser=(self.options and self.options.reasoning_parser) or AUTO,
            is_pinned=self.is_pinned,
            measured_bytes=max((row.process_bytes for row in self.measured.values()), default=None),
        )


def _loading(life: ServingLife) -> Loading | None:
    """What the worker last said of its load; None when there is none going on."""
    return life.worker.loading if life.worker is not None and life.info is None else None


def _phase(life: ServingLife) -> str | None:
    """How far a load is."""
    loading = _loading(life)
    return None if loading is None else f"{loading.phase}: {loading.bytes_done:,} of {loading.bytes_total:,} bytes"


def cast_row(base: BaseRow, dtype: str, created: int) -> VariantRow:
    """The row of a base in one dtype, which has no files of its own."""
    info = base.info
    is_plain = info.quantization is None
    return VariantRow(
        id=f"{base.name}/{dtype}",
        base=base.name,
        method=dtype,
        kind="cast",
        dir=None,
        format=dtype if info.quantization is None else info.quantization,
        bits=8 * fit.DTYPE_BYTES[dtype],
        weight_bytes=fit.cast_bytes(info.weight_bytes, info.dtype, dtype) if is_plain else info.weight_bytes,
        disk_bytes=0,
        created=created,
    )


def entry_of(row: VariantRow, life: ServingLife, bases: Bases, data_dir: Path) -> Entry:
    """The entry of a stored row."""
    base = bases.get(row.base)
    assert base is not None, "the foreign key promises it"
    kept_in = "variants" if row.quarantine_reason is None else "quarantine"
    folder = Path(base.info.path) if row.dir is None else data_dir / kept_in / row.dir
    text_folder = bases.text_folder(base) if row.dir is None else folder
    group_size = None if row.dir is None else _group_size(folder / MANIFEST)
    return Entry(row=row, life=life, base=base, folder=folder, text_folder=text_folder, group_size=group_size)


def _group_size(manifest: Path) -> int | None:
    """What the recipe in a variant's manifest says of it; a folder that lost the file is found out by a load."""
    try:
        recipe = json.loads(manifest.read_bytes())["recipe"]
    except (OSError, ValueError, KeyError):
        return None
    size = recipe.get("group_size", recipe.get("block_size"))
    return size if isinstance(size, int) else None


def echo_entry(name: str, supervisor: Supervisor, pulse: Pulse, text_folder: Path, spec: EchoSpec) -> Entry:
    """The stand-in `echo/<name>`: no files, a real tokenizer, a worker that repeats the prompt."""
    row = VariantRow(
        id=f"{ECHO}/{name}",
        base=ECHO,
        method=ECHO,
        kind="cast",
        dir=None,
        format="fp32",
        bits=32,
        weight_bytes=0,
        disk_bytes=0,
        created=int(time.time()),
    )
    life = ServingLife(row.id, supervisor, pulse)
    return Entry(row=row, life=life, base=None, folder=text_folder, text_folder=text_folder, echo=spec)
