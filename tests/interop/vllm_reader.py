"""vLLM reads checkpoints and says what it predicts. usage: vllm_reader.py MODEL IDS RESULT

Runs in vLLM's own environment. RESULT becomes a safetensors file with `log_probabilities`, (tokens - 1, vocabulary): of
the token behind each token of IDS but the last.
"""

import json
import os
import sys
from pathlib import Path

# read at import; no process of its own, no binding to cores, nothing sent
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1",
)  # fmt: skip

import torch
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams


def main(model: str, ids_path: str, result_path: str) -> None:
    """Score the ids, in bf16, which all of its CPU kernels take."""
    vocab_size = json.loads(Path(model, "config.json").read_text("utf-8"))["vocab_size"]
    engine = LLM(
        model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=128,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_logprobs=vocab_size,
    )
    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, prompt_logprobs=vocab_size)
    prompt = {"prompt_token_ids": load_file(ids_path)["token_ids"][0].tolist()}
    rows = engine.generate([prompt], params)[0].prompt_logprobs[1:]
    scores = torch.tensor([[row[token].logprob for token in range(vocab_size)] for row in rows])
    save_file({"log_probabilities": scores}, result_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
