"""Tiny random models with a tokenizer, saved to a folder as `save_pretrained` does, without a download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 128

_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}


def save_tiny_model(
    folder: Path, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> Path:
    """Build a random causal LM of two layers and save it with its tokenizer.json. Returns `folder`.

    overrides: fields of the config, for instance tie_word_embeddings=True or max_shard_size="20KB" for shards.
    """
    max_shard_size = overrides.pop("max_shard_size", "2GB")
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(model_type, **{**sizes, **_SIZES.get(model_type, {}), **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    save_tiny_tokenizer(folder)
    return folder


def save_tiny_tokenizer(folder: Path) -> None:
    """A tokenizer of VOCAB_SIZE single characters: <unk>, <s>, </s>, then printable ASCII."""
    characters = [chr(32 + number) for number in range(VOCAB_SIZE - 3)]
    vocab = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
