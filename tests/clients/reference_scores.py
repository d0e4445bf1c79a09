"""Scores by transformers alone, as lm-eval defines them: one JSON object, variant -> a list of scores per document.

usage: reference_scores.py JSONL NAME=FOLDER... A folder that transformers reads is loaded by transformers with the
library that defines the format. What it reads only with a library that is not installed (`gptq`, `awq`) becomes a
plain model with the weights that its file stands for.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from workers.checkpoint.load import load_model
from workers.formats.swap import quantized_linears

NOT_READ = ("gptq", "awq")


def plain_model(folder: Path) -> PreTrainedModel:
    """transformers' own model in fp32."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("quantization_config", {}).get("quant_method") not in NOT_READ:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(folder, dtype="fp32", device=torch.device("cpu"), on_progress=lambda done, total: None).model
    weights = {f"{name}.weight": layer.dequantize().float() for name, layer in quantized_linears(ours).items()}
    plain = {name: value for name, value in ours.state_dict().items()}
    model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32).eval()
    wanted = model.state_dict()
    model.load_state_dict({name: weights.get(name, plain.get(name)) for name in wanted})
    return model


@torch.inference_mode()
def score(model: PreTrainedModel, tokenizer: AutoTokenizer, context: str, ending: str) -> float:
    """The log probability, in nats, of the ending's tokens after those of the context."""
    num_context = len(tokenizer.encode(context, add_special_tokens=False))
    ids = torch.tensor([tokenizer.encode(context + ending, add_special_tokens=False)])
    logprobs = model(ids).logits[0, num_context - 1 : -1].double().log_softmax(-1)
    return float(logprobs.gather(1, ids[0, num_context:, None]).sum())


def main() -> None:
    """Print the scores of every variant."""
    documents = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    scores = {}
    for argument in sys.argv[2:]:
        name, _, folder = argument.partition("=")
        model, tokenizer = plain_model(Path(folder)), AutoTokenizer.from_pretrained(folder)
        scores[name] = [
            [score(model, tokenizer, document["context"], ending) for ending in document["endings"]]
            for document in documents
        ]
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
