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
