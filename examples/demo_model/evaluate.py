"""Measure a demo model on the held-out stories, and check that what it writes is English and ends by itself.

python examples/demo_model/evaluate.py --model app/embedded/slimstory --stories tinystories.json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import torch
from stories import known_words, split, words
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

REQUESTS = (
    "Tell me a story about a little dog.",
    "Tell me a story.",
    "Write a short story about a girl and a boat.",
    "Hi, who are you?",
)
BEGINNINGS = ("Once upon a time", "One day, a little boy named Tim")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--stories", type=Path, required=True, help="the real stories, whose words count as English")
    parser.add_argument("--skip-perplexity", action="store_true", help="only write and check answers")
    parser.add_argument("--max-tokens", type=int, default=480, help="an answer longer than this did not end (480)")
    parser.add_argument("--num-samples", type=int, default=4, help="sampled answers to each prompt (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (default 0)")
    return parser.parse_args()


@torch.inference_mode()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stories: list[str]) -> dict[str, float]:
    """Per token (eos included), per word, and bits per byte, over stories scored one by one from bos.

    A story longer than the context is scored up to its end; only the text that was scored is counted.
    """
    nats, num_tokens, num_words, num_bytes = 0.0, 0, 0, 0
    for story in stories:
        ids = [*tokenizer(story).input_ids, tokenizer.eos_token_id][: model.config.max_position_embeddings]
        tensor = torch.tensor([ids], device=model.device)
        nats += float(model(tensor, labels=tensor).loss) * (len(ids) - 1)
        scored = tokenizer.decode(ids, skip_special_tokens=True)
        num_tokens, num_words = num_tokens + len(ids) - 1, num_words + len(words(scored))
        num_bytes += len(scored.encode())
    return {
        "tokens": num_tokens,
        "nats_per_token": nats / num_tokens,
        "perplexity_per_token": math.exp(nats / num_tokens),
        "perplexity_per_word": math.exp(nats / num_words),
        "bits_per_byte": nats / math.log(2) / num_bytes,
    }


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], is_greedy: bool, max_tokens: int
) -> list[tuple[str, bool]]:
    """(text, did it end by itself) for each prompt, all in one batch; sampled at temperature 0.7 if not greedy."""
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    length = batch["input_ids"].shape[1]
    limit = min(max_tokens, model.config.max_position_embeddings - length)
    how = {"do_sample": False} if is_greedy else {"do_sample": True, "temperature": 0.7}
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    written = model.generate(**inputs, max_new_tokens=limit, **how)[:, length:]
    ends = torch.tensor(model.generation_config.eos_token_id, device=model.device)
    has_ended = torch.isin(written, ends).any(dim=1).tolist()
    return list(zip(tokenizer.batch_decode(written, skip_special_tokens=True), has_ended, strict=True))


def prompts_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """What is asked, and the text that the model continues for it."""
    prompts = {text: tokenizer.bos_token + text for text in BEGINNINGS}
    for text in REQUESTS:
        messages = [{"role": "user", "content": text}]
        prompts[text] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return prompts


def report_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, known: frozenset[str], args: argparse.Namespace
) -> None:
    """Show every answer, then the share of words that real stories use and the number that ended."""
    prompts = prompts_of(tokenizer)
    found: list[str] = []
    num_ended, num_answers = 0, 0
    for index in range(1 + args.num_samples):
        written = answers(model, tokenizer, list(prompts.values()), index == 0, args.max_tokens)
        for asked, (text, has_ended) in zip(prompts, written, strict=True):
            # a beginning's last word may go on in the answer ("Tim" + "my"), so both count together
            found += words(asked + text if asked in BEGINNINGS else text)
            num_answers, num_ended = num_answers + 1, num_ended + has_ended
            logger.info(
                "[%s, %s] %s\n%s\n", "sampled" if index else "greedy", asked, "" if has_ended else "NO END", text
            )
    share = sum(word in known for word in found) / len(found)
    logger.info("%d words, known: %.4f, ended: %d of %d", len(found), share, num_ended, num_answers)


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    train, heldout = split(args.stories)
    if not args.skip_perplexity:
        logger.info(json.dumps(perplexity(model, tokenizer, heldout), indent=2))
    report_answers(model, tokenizer, known_words(train + heldout), args)


if __name__ == "__main__":
    main()
