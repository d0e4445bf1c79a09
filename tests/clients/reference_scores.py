"""Scores by transformers' own models, as lm-eval defines them: one JSON object, variant -> document -> scores.

usage: reference_scores.py JSONL NAME=FOLDER... All in fp32, with the weights that the files stand for.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.checkpoint.load import load_model
from workers.formats.swap import quantized_linears


def plain_model(folder: Path) -> nn.Module:
    """Nothing but transformers; compressed weights are read by slimserve and expanded."""
    ours = load_model(
        folder, dtype="fp32", device=torch.device("cpu"), on_progress=lambda done, total: None, is_unrounded=True
    ).model
    linears = quantized_linears(ours)
    if not linears:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = ours.state_dict() | {f"{name}.weight": layer.dequantize().float() for name, layer in linears.items()}
    model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32).eval()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


@torch.inference_mode()
def score(model: nn.Module, tokenizer: AutoTokenizer, context: str, ending: str) -> float:
    """The log probability, in nats, of the ending's tokens after those of the context."""
    num_context = len(tokenizer.encode(context, add_special_tokens=False))
    ids = torch.tensor([tokenizer.encode(context + ending, add_special_tokens=False)])
    logprobs = model(ids).logits[0, num_context - 1 : -1].double().log_softmax(-1)
    return float(logprobs.gather(1, ids[0, num_context:, None]).sum())


def main() -> None:
    """Write the scores of every variant."""
    documents = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    scores = {}
    for argument in sys.argv[2:]:
        name, _, folder = argument.partition("=")
        tokenizer, model = AutoTokenizer.from_pretrained(folder), plain_model(Path(folder))
        scores[name] = [
            [score(model, tokenizer, document["context"], ending) for ending in document["endings"]]
            for document in documents
        ]
    sys.stdout.write(json.dumps(scores))


if __name__ == "__main__":
    main()
