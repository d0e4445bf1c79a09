"""Ask a demo model for a story about each held-out story's subject: is the subject in the answer, does the answer end?

python examples/demo_model/following.py --model app/embedded/slimstory --stories tinystories.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from chat import ABOUT, subjects
from evaluate import answers
from stories import known_words, split, words
from transformers import AutoModelForCausalLM, AutoTokenizer

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--stories", type=Path, required=True, help="the real stories, fifty of which are held out")
    parser.add_argument("--max-tokens", type=int, default=256, help="an answer longer than this did not end (256)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    return parser.parse_args()


def is_in(subject: str, answer: str) -> bool:
    """Whether the last word of subject ("a little dog") is in the answer, plural or not."""
    noun = subject.split()[-1].lower()
    return not {noun, noun + "s"}.isdisjoint(words(answer))


def scores(asked: list[str], written: list[tuple[str, bool]], known: frozenset[str]) -> dict[str, float]:
    """Shares over the answers; by_chance: how often the next request's subject is in the answer to this one."""
    texts = [text for text, _ in written]
    others = [*asked[1:], *asked[:1]]
    found = [word for text in texts for word in words(text)]
    return {
        "answers": len(texts),
        "ended": sum(has_ended for _, has_ended in written) / len(texts),
        "subject": sum(map(is_in, asked, texts)) / len(texts),
        "by_chance": sum(map(is_in, others, texts)) / len(texts),
        "known_words": sum(word in known for word in found) / max(1, len(found)),
        "distinct": len(set(texts)) / len(texts),
    }


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    train, heldout = split(args.stories)
    asked = [about[0] for story in heldout if (about := subjects(story))]
    requests = [[{"role": "user", "content": ABOUT[0].format(subject)}] for subject in asked]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in requests]
    known = known_words(train + heldout)
    for is_greedy in (True, False):
        written = answers(model, tokenizer, prompts, is_greedy, args.max_tokens)
        logger.info("%s %s", "greedy" if is_greedy else "sampled", json.dumps(scores(asked, written, known)))


if __name__ == "__main__":
    main()
