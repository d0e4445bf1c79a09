"""Train the demo model from scratch on a corpus that prepare.py built, and export it in Hugging Face layout.

    python examples/demo_model/train.py --corpus /tmp/corpus --out /tmp/slimstory --minutes 30

The learning rate follows the share of --steps or of --minutes that has passed, whichever is further, so that a run on
a busy machine still ends on its cosine's tail. The export is refreshed every --export-every steps.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from export import export
from grow import Sizes, grow, grown_config
from packing import IGNORED, batches
from stories import read_corpus, read_heldout
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from vocabulary import BOS, EOS, PAD, adopt_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long to train and how fast to learn."""

    num_steps: int
    minutes: float
    learning_rate: float
    warmup: float = 0.03
    floor: float = 0.03

    def progress(self, step: int, elapsed_s: float) -> float:
        return min(1.0, max(step / self.num_steps, elapsed_s / (60 * self.minutes)))

    def rate(self, progress: float) -> float:
        """Linear warm-up, then a cosine down to floor times the learning rate."""
        if progress < self.warmup:
            return self.learning_rate * max(progress, 1e-3) / self.warmup
        turn = math.pi * (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(turn)))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model; overwritten")
    parser.add_argument("--steps", type=int, default=2000, help="at most this many optimizer steps (default 2000)")
    parser.add_argument("--minutes", type=float, default=40.0, help="at most this long (default 40)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows in a step (default 16)")
    parser.add_argument("--length", type=int, default=512, help="tokens in a row, and the context declared (512)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the cosine (default 2e-3)")
    parser.add_argument("--vocab-size", type=int, default=2048, help="size of the tokenizer (default 2048)")
    parser.add_argument("--grow-from", type=Path, help="folder of a small Llama to widen (else random weights)")
    parser.add_argument("--head-dim", type=int, default=64, help="numbers in a head (default 64)")
    parser.add_argument("--hidden-size", type=int, default=256, help="keep it a multiple of 128 for int4 groups (256)")
    parser.add_argument("--intermediate-size", type=int, default=640, help="likewise a multiple of 128 (default 640)")
    parser.add_argument("--layers", type=int, default=6, help="number of decoder layers (default 6)")
    parser.add_argument("--real-weight", type=int, default=3, help="times a real story appears per epoch (default 3)")
    parser.add_argument("--export-every", type=int, default=200, help="steps between exports (default 200)")
    parser.add_argument("--log-every", type=int, default=20, help="steps between lines of progress (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and prompts (default 0)")
    return parser.parse_args()


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    named = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return {name: tokenizer.token_to_id(token) for name, token in named.items()}


def new_model(args: argparse.Namespace, stories: list[str]) -> tuple[LlamaForCausalLM, Tokenizer]:
    """A Llama with random weights, two query heads to a kv head, and its own tokenizer."""
    tokenizer = train_tokenizer(stories, args.vocab_size)
    num_heads = args.hidden_size // args.head_dim
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.layers,
        num_attention_heads=num_heads,
        num_key_value_heads=max(1, num_heads // 2),
        head_dim=args.head_dim,
        max_position_embeddings=args.length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    return LlamaForCausalLM(config), tokenizer


def grown_model(args: argparse.Namespace) -> tuple[LlamaForCausalLM, Tokenizer]:
    """The model of --grow-from, widened, with its merges in a byte-level tokenizer."""
    tokenizer, rows = adopt_tokenizer(args.grow_from / "tokenizer.json")
    small = LlamaForCausalLM.from_pretrained(args.grow_from, dtype=torch.float32)
    sizes = Sizes(hidden_size=args.hidden_size, intermediate_size=args.intermediate_size, head_dim=args.head_dim)
    config = grown_config(small.config, sizes, special_ids(tokenizer), tokenizer.get_vocab_size())
    return grow(small, config, rows), tokenizer


def new_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms are gains, and pulling them to zero makes no sense."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Causal attention of query (rows, heads, length, 64) over key and value (rows, kv_heads, length, 64).

    transformers lets SDPA share the kv heads (enable_gqa), which on a CPU takes the slow path, 15 times slower.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


def loss_of(model: LlamaForCausalLM, ids: Tensor, labels: Tensor, is_mixed: bool = False) -> Tensor:
    """Mean cross entropy in nats over the labels that count; ids and labels (rows, length), labels shifted.

    is_mixed: the products in bf16, the rest in fp32.
    """
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=is_mixed):
        logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def is_mixed_faster(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> bool:
    """Time a step of each kind: bf16 wins by far on large products with AMX, fp32 on small ones."""
    seconds = {}
    for is_mixed in (False, True):
        for _ in range(2):  # the first is a warm-up
            start = time.process_time()
            loss_of(model, ids, labels, is_mixed).backward()  # type: ignore[no-untyped-call]
            seconds[is_mixed] = time.process_time() - start
        model.zero_grad(set_to_none=True)
    logger.info("seconds of CPU per step: fp32 %.2f, bf16 %.2f", seconds[False], seconds[True])
    return seconds[True] < seconds[False]


@torch.inference_mode()
def heldout_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, stories: list[str], device: str) -> float:
    """Nats per token over the first eight held-out stories: a cheap trend line, not the number of the model card."""
    total, num_tokens = 0.0, 0
    eos = tokenizer.token_to_id(EOS)
    for story in stories[:8]:
        ids = torch.tensor([[*tokenizer.encode(story).ids, eos]], device=device)
        total += float(loss_of(model, ids[:, :-1], ids[:, 1:])) * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    return total / num_tokens


def train(
    args: argparse.Namespace, model: LlamaForCausalLM, tokenizer: Tokenizer, stories: list[str], heldout: list[str]
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    ALL_ATTENTION_FUNCTIONS.register("causal", causal_attention)
    model.set_attn_implementation("causal")
    logger.info("%d parameters on %s", sum(p.numel() for p in model.parameters()), device)
    optimizer = new_optimizer(model)
    schedule = Schedule(num_steps=args.steps, minutes=args.minutes, learning_rate=args.learning_rate)
    data: Iterator[tuple[Tensor, Tensor]] = batches(tokenizer, stories, args.length, args.batch_size, args.seed)
    logger.info("before training: heldout %.3f", heldout_loss(model, tokenizer, heldout, device))
    is_mixed = is_mixed_faster(model, *(part.to(device) for part in next(data)))
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        ids, labels = (part.to(device) for part in next(data))
        rate = schedule.rate(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, ids, labels, is_mixed)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        elapsed_s = time.monotonic() - start
        progress = schedule.progress(step, elapsed_s)
        if step % args.log_every == 0:
            tokens = step * args.batch_size * args.length
            logger.info(
                "step %d loss %.3f rate %.1e tokens %d seconds %.0f", step, loss.item(), rate, tokens, elapsed_s
            )
        if step % args.export_every == 0 or progress >= 1.0:
            export(model, tokenizer, args.out)
            logger.info("step %d heldout %.3f", step, heldout_loss(model, tokenizer, heldout, device))


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    real, synthetic = read_corpus(args.corpus)
    texts = real + synthetic[: 4 * len(real)]  # enough for merges
    model, tokenizer = grown_model(args) if args.grow_from else new_model(args, texts)
    logger.info("%d real and %d synthetic stories", len(real), len(synthetic))
    train(args, model, tokenizer, real * args.real_weight + synthetic, read_heldout(args.corpus / "heldout.txt"))


if __name__ == "__main__":
    main()
