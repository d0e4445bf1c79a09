"""Build the corpus of the demo model: real stories, a held-out set, and stories sampled from a teacher.

    python examples/demo_model/prepare.py --stories tinystories.json --teacher stories260K --out /tmp/corpus

The folder gets real.json (training stories), heldout.txt (fifty stories never trained on) and synthetic-<seed>.jsonl,
one line per story, written as they come, so that a run can be stopped at any time. Run it twice with two seeds to use
two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from stories import StoryFilter, clean, known_words, split, write_heldout
from teacher import Sampling, Teacher, sample_batch

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, required=True, help="JSON list of real stories, e.g. TinyStories")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a small Llama model that tells stories")
    parser.add_argument("--out", type=Path, required=True, help="folder for the corpus; keep it out of the repository")
    parser.add_argument("--num-stories", type=int, default=10_000, help="synthetic stories to keep (default 10000)")
    parser.add_argument("--max-minutes", type=float, default=30.0, help="stop sampling after this long (default 30)")
    parser.add_argument("--batch-size", type=int, default=256, help="stories sampled at once (default 256)")
    parser.add_argument("--temperature", type=float, default=0.7, help="below 1 is plainer, fewer wrong words (0.7)")
    parser.add_argument("--top-p", type=float, default=0.9, help="nucleus mass kept at each token (default 0.9)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; steps this small gain nothing from more")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling, and part of the file's name")
    return parser.parse_args()


def write_synthetic(path: Path, batches: Callable[[], list[str]], keep: StoryFilter, num: int, minutes: float) -> None:
    """Append accepted stories to path until there are num of them or the minutes are over."""
    start, num_kept, num_drawn = time.monotonic(), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while num_kept < num and time.monotonic() - start < 60 * minutes:
            drawn = [clean(story) for story in batches()]
            kept = [story for story in drawn if story and keep.accepts(story)]
            num_kept, num_drawn = num_kept + len(kept), num_drawn + len(drawn)
            file.writelines(json.dumps(story) + "\n" for story in kept)
            file.flush()
            logger.info("%d of %d stories kept, %.0f s", num_kept, num_drawn, time.monotonic() - start)


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, heldout = split(args.stories)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "real.json").write_text(json.dumps(train), encoding="utf-8")
    write_heldout(args.out / "heldout.txt", heldout)
    teacher = Teacher(args.teacher, "cuda" if torch.cuda.is_available() else "cpu")
    sampling = Sampling(batch_size=args.batch_size, temperature=args.temperature, top_p=args.top_p)
    keep = StoryFilter(known_words(train))
    write_synthetic(
        args.out / f"synthetic-{args.seed}.jsonl",
        lambda: list(sample_batch(teacher, sampling)),
        keep,
        args.num_stories,
        args.max_minutes,
    )


if __name__ == "__main__":
    main()
