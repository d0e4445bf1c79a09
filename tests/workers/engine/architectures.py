"""Tiny random models of many architectures, for tests that must hold whatever the modelling code looks like.

Weights are wide (initializer_range far above training's 0.02), so that the best token leads by more than rounding.
"""

from collections.abc import Callable

import torch
import transformers
from transformers import PreTrainedModel

VOCAB_SIZE = 128
_WIDTHS = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOW = 8
# untied: tied wide embeddings, scaled as Gemma does, would repeat their own input for ever
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW, "tie_word_embeddings": False}


def _config(name: str, **fields: object) -> transformers.PreTrainedConfig:
    kind: Callable[..., transformers.PreTrainedConfig] = getattr(transformers, f"{name}Config")
    return kind(**{**_WIDTHS, **fields})


def _gpt2_like(name: str, **fields: object) -> transformers.PreTrainedConfig:
    widths = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    kept = {key: _WIDTHS[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
    return getattr(transformers, f"{name}Config")(**widths, **kept, **fields)


CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: _config("Llama"),
    "qwen2": lambda: _config("Qwen2"),
    "qwen3": lambda: _config("Qwen3", head_dim=16),
    "mistral": lambda: _config("Mistral", sliding_window=WINDOW),
    "gemma2": lambda: _config("Gemma2", **_GEMMA),
    "gemma3": lambda: _config("Gemma3Text", layer_types=["sliding_attention", "full_attention"], **_GEMMA),
    "phi3": lambda: _config("Phi3"),
    "phi": lambda: _config("Phi", num_key_value_heads=4),
    "gpt2": lambda: _gpt2_like("GPT2"),
    "opt": lambda: _config("OPT", ffn_dim=48, word_embed_proj_dim=32, init_std=0.3, pad_token_id=1),
    "gpt_neox": lambda: _config("GPTNeoX"),
    "olmo2": lambda: _config("Olmo2"),
    "mixtral": lambda: _config("Mixtral", num_local_experts=4),
    "qwen3_moe": lambda: _config("Qwen3Moe", head_dim=16, **_EXPERTS),
    "gpt_oss": lambda: _config("GptOss", head_dim=16, num_local_experts=4, sliding_window=WINDOW),
    "deepseek_v3": lambda: _config("DeepseekV3", num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16,
                                   qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, n_routed_experts=4,
                                   n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=24,
                                   first_k_dense_replace=1),
    "falcon_h1": lambda: _config("FalconH1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1,
                                 mamba_d_state=8, mamba_chunk_size=8),
    "lfm2": lambda: _config("Lfm2", layer_types=["conv", "full_attention"]),
    "mamba2": lambda: _config("Mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "qwen3_next": lambda: _config("Qwen3Next", head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
                                  linear_key_head_dim=8, linear_value_head_dim=8,
                                  layer_types=["linear_attention", "full_attention"],
                                  shared_expert_intermediate_size=24, **_EXPERTS),
    "gptj": lambda: _gpt2_like("GPTJ", rotary_dim=4),
}  # fmt: skip


def build(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> PreTrainedModel:
    """The tiny model of architecture `name`, in eval mode, the same for the same seed."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.to(device).eval()
