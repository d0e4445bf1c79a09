"""What leaves the server: the card tells what was measured, and the manifest agrees with it."""

import hashlib
import json
from pathlib import Path

import pytest

from app.core.exported import CARD, exported_card, exported_manifest, exported_names
from app.core.variants import Quality
from workers.protocol.messages import MeasureResult

MEASURED = MeasureResult(
    perplexity=5.25,
    nll=1.658,
    perplexity_interval=(5.0, 5.5),
    num_tokens=1000,
    num_windows=4,
    window=512,
    stride=256,
    block_tokens=64,
    kl_mean=0.0125,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / CARD).write_text("# tiny/int8\n")
    (tmp_path / "config.json").write_text("{}")
    record = {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    files = {CARD: {"size": 12, "sha256": hashlib.sha256(b"# tiny/int8\n").hexdigest()}, "config.json": record}
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))
    return tmp_path


def test_card_has_every_measured_number_and_no_other(folder: Path) -> None:
    card = exported_card(folder, Quality(kl_mean=0.01, top1_agreement=0.97, history=(MEASURED,))).decode()

    assert card.startswith("# tiny/int8\n\n## Measured\n")
    assert "| perplexity | 5.2500 |" in card
    assert "| window, tokens | 512 |" in card
    assert "| same first choice before publication | 97.0% |" in card
    assert "None" not in card


@pytest.mark.parametrize("quality", [None, Quality(kl_mean=0.01, top1_agreement=0.97)], ids=["none", "verified"])
def test_manifest_agrees_with_the_card(folder: Path, quality: Quality | None) -> None:
    manifest = json.loads(exported_manifest(folder, quality))

    card = exported_card(folder, quality)
    assert manifest["files"][CARD] == {"size": len(card), "sha256": hashlib.sha256(card).hexdigest()}
    assert manifest["files"]["config.json"]["size"] == 2
    assert exported_names(folder) == {"manifest.json", CARD, "config.json"}
