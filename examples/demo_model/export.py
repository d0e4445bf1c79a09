"""Write a trained model as the folder that transformers, vLLM and slimserve load: bf16, one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from vocabulary import BOS, END, EOS, PAD, save_tokenizer


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Overwrite folder's weights, configs and tokenizer; other files in it stay."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    # eos closes a plain story, end closes a turn of a chat; a model grown from one that was trained on stories joined
    # by bos still ends some with it
    generation = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(token) for token in (EOS, END, BOS)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, model.config.max_position_embeddings)
