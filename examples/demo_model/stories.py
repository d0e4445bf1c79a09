"""Stories as data: clean, split, filter, read and write. No model in here."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

STORY_SEPARATOR = "\n<|endofstory|>\n"
NUM_HELDOUT = 50
HELDOUT_SEED = 2026

_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})
# UTF-8 quotes that were once read as Windows-1252, as some TinyStories are stored
_MOJIBAKE = {
    "\u00e2\u20ac\u02dc": "'",
    "\u00e2\u20ac\u2122": "'",
    "\u00e2\u20ac\u0153": '"',
    "\u00e2\u20ac\u201c": "-",
    "\u00e2\u20ac\u201d": "-",
    "\u00e2\u20ac\u009d": '"',
    "\u00e2\u20ac": '"',
}
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")


def clean(text: str) -> str:
    """Plain quotes, single spaces, one empty line between paragraphs as in TinyStories."""
    for wrong, right in _MOJIBAKE.items():
        text = text.replace(wrong, right)
    lines = (" ".join(line.split()) for line in text.translate(_PLAIN).splitlines())
    return "\n\n".join(line for line in lines if line)


def words(text: str) -> list[str]:
    """Lower-case English words, apostrophes kept (`didn't`)."""
    return [word.lower() for word in _WORD.findall(text)]


def known_words(stories: Iterable[str]) -> frozenset[str]:
    return frozenset(word for story in stories for word in words(story))


def split(path: Path) -> tuple[list[str], list[str]]:
    """(training, held-out) stories of a JSON list of strings; the same fifty are held out every time."""
    loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, list) or len(loaded) <= NUM_HELDOUT:
        raise ValueError(f"{path} must be a JSON list of more than {NUM_HELDOUT} stories")
    stories = list(dict.fromkeys(clean(story) for story in loaded))
    heldout = set(random.Random(HELDOUT_SEED).sample(range(len(stories)), NUM_HELDOUT))
    train = [story for index, story in enumerate(stories) if index not in heldout]
    return train, [stories[index] for index in sorted(heldout)]


class StoryFilter:
    """Keeps a sampled story if it is whole, made of known words, free of loops, and new."""

    def __init__(self, known: frozenset[str], min_words: int = 50, max_words: int = 320) -> None:
        self.known = known
        self.min_words, self.max_words = min_words, max_words
        self.seen: set[str] = set()

    def accepts(self, story: str) -> bool:
        found = words(story)
        sentences = [s.strip() for s in re.split(r"[.!?]", story) if len(s) > 20]
        key = " ".join(found)
        is_good = (
            self.min_words <= len(found) <= self.max_words
            and story[-1] in '.!?"'
            and story.count('"') % 2 == 0
            and story.isascii()
            and len(set(sentences)) == len(sentences)
            and self.known.issuperset(found)
            and key not in self.seen
        )
        self.seen.add(key)
        return is_good


def write_heldout(path: Path, stories: list[str]) -> None:
    path.write_text(STORY_SEPARATOR.join(stories) + "\n", encoding="utf-8")


def read_heldout(path: Path) -> list[str]:
    return [story.strip() for story in path.read_text(encoding="utf-8").split(STORY_SEPARATOR)]


def read_corpus(folder: Path) -> tuple[list[str], list[str]]:
    """(real, synthetic) stories of a folder that prepare.py wrote, without doubles among the synthetic."""
    real = json.loads((folder / "real.json").read_text(encoding="utf-8"))
    files = sorted(folder.glob("synthetic-*.jsonl"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return real, list(dict.fromkeys(json.loads(line) for line in lines))
