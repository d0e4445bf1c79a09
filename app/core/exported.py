"""A variant's files as they leave the server: as on disk, but for the model card, which tells what was measured since.

The manifest that goes along has the card's own size and SHA-256, so whoever gets both can check them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from app.core.publish import MANIFEST
from app.core.variants import Quality
from workers.protocol.messages import MeasureResult

CARD: Final = "README.md"


def exported_card(folder: Path, quality: Quality | None) -> bytes:
    """The card of a variant's folder with its measured table. Raises OSError."""
    text = (folder / CARD).read_text("utf-8")
    table = _measured(quality)
    return (text + table if table else text).encode()


def exported_manifest(folder: Path, quality: Quality | None) -> bytes:
    """manifest.json with the card's record as `exported_card` makes it. Raises OSError."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if CARD in manifest["files"]:
        card = exported_card(folder, quality)
        manifest["files"][CARD] = {"size": len(card), "sha256": hashlib.sha256(card).hexdigest()}
    return (json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def exported_names(folder: Path) -> set[str]:
    """The files that a variant consists of. Raises OSError."""
    return {MANIFEST, *json.loads((folder / MANIFEST).read_bytes())["files"]}


def _measured(quality: Quality | None) -> str:
    if quality is None:
        return ""
    rows = [("KL(base, variant) before publication, nats per token", quality.kl_mean, ".5f")]
    rows.append(("same first choice before publication", quality.top1_agreement, ".1%"))
    if (measured := quality.measured) is not None:
        rows += _rows_of(measured)
    lines = [f"| {name} | {value:{style}} |" for name, value, style in rows if value is not None]
    return "\n## Measured\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"


def _rows_of(measured: MeasureResult) -> list[tuple[str, float | None, str]]:
    low, high = measured.perplexity_interval or (None, None)
    return [
        ("perplexity", measured.perplexity, ".4f"),
        ("perplexity, 95 % from", low, ".4f"),
        ("perplexity, 95 % to", high, ".4f"),
        ("perplexity of the base", measured.base_perplexity, ".4f"),
        ("tokens scored", measured.num_tokens, ",d"),
        ("window, tokens", measured.window, "d"),
        ("stride, tokens", measured.stride, "d"),
        ("KL(base, variant), nats per token", measured.kl_mean, ".5f"),
        ("KL(base, variant), 99th percentile", measured.kl_p99, ".4f"),
        ("KL(variant, base), nats per token", measured.reverse_kl_mean, ".5f"),
        ("same first choice", measured.top1_agreement, ".1%"),
    ]
