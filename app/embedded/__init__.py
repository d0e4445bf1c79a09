"""The model that ships inside slimserve, so that a first answer needs no download. See slimstory/README.md."""

from pathlib import Path

NAME = "slimstory"
"""The base name under which every server registers it."""

_FOLDER = Path(__file__).parent / "slimstory"


def model_path() -> Path:
    """The embedded model's folder, in Hugging Face layout."""
    return _FOLDER


def heldout_text() -> str:
    """Fifty stories that the model was never trained on, for perplexity; `<|endofstory|>` stands between them."""
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")


def calibration_text() -> str:
    """Stories that the model was trained on, none of the held-out ones: what methods observe activations on."""
    return (_FOLDER / "calibration.txt").read_text(encoding="utf-8")


def stories(text: str) -> list[str]:
    """The single stories of one of these files."""
    return [story.strip() for story in text.split("<|endofstory|>") if story.strip()]
