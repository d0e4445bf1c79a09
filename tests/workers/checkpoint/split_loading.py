"""Tiny mixtures of experts in folders, and a loader for them that leaves their experts split."""

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tests.workers.engine.architectures import CONFIGS, VOCAB_SIZE
from workers.checkpoint.headers import CheckpointHeaders
from workers.checkpoint.stored_names import StoredNames, split_stored_experts
from workers.checkpoint.tensors import read_tensor
from workers.formats.experts import fill_experts

CPU = torch.device("cpu")
# fp32 sums of the same numbers, which kernels may add in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
_WIDTHS = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.3}
_MORE: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **_WIDTHS, layers_block_type=["moe", "attention"], num_key_value_heads=2, head_dim=8, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, moe_shared_expert_intermediate_size=24,
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(
        **_WIDTHS, num_hidden_layers=2, num_key_value_heads=2, intermediate_size=24, num_local_experts=4,
        num_experts_per_tok=2,
    ),
}  # fmt: skip
SPLITTABLE = ["mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next", "nemotron_h"]


def save(folder: Path, name: str) -> Path:
    """Write a tiny model of an architecture. Returns `folder`."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config((CONFIGS | _MORE)[name]())
    model.save_pretrained(folder)
    return folder


def load_fused(folder: Path) -> PreTrainedModel:
    """As transformers loads it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval()


@register_quantization_config("split_for_tests")
class SplitLayers(QuantizationConfigMixin):
    """Which weights a loader shall treat as compressed. found: what became of the names."""

    def __init__(self, names: Iterable[str], compressed: Collection[str]) -> None:
        self.quant_method = "split_for_tests"
        self.names, self.compressed = list(names), set(compressed)
        self.found: StoredNames | None = None


class Vacant(nn.Module):
    """An empty place, which a loader does not miss a weight for."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features


@register_quantizer("split_for_tests")
class SplitQuantizer(HfQuantizer):
    """What checkpoint/quantizer.py does with split experts."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        layers: Any = self.quantization_config
        layers.found = split_stored_experts(model, layers.names, layers.compressed)
        for own in layers.found.experts.values():
            for module in own.values():
                model.set_submodule(module, Vacant(model.get_submodule(module)))
        # the loader would report the tensors that it has no fused parameter for
        known = model._keys_to_ignore_on_load_unexpected or ()
        own_names = {rf"^{re.escape(path)}\." for path in layers.found.experts}
        model._keys_to_ignore_on_load_unexpected = {*known, *own_names}

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class Slice:
    """A tensor of a file that remembers whether it was read."""

    def __init__(self, part: Any, name: str, read: list[str]) -> None:
        self.part, self.name, self.read = part, name, read

    def __getitem__(self, key: Any) -> Tensor:
        self.read.append(self.name)
        return self.part[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


def load_split(
    folder: Path, headers: CheckpointHeaders, compressed: Collection[str]
) -> tuple[PreTrainedModel, StoredNames]:
    """Through transformers' loader, but for the experts, which are read one by one."""
    config = transformers.AutoConfig.from_pretrained(folder)
    layers, read = SplitLayers(headers.tensors, compressed), list[str]()
    with ExitStack() as files:
        file = files.enter_context(safe_open(folder / "model.safetensors", framework="pt"))
        in_file = set(file.keys())
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict={name: Slice(file.get_slice(name), name, read) for name in headers.tensors if name in in_file},
            dtype=torch.float32,
            quantization_config=layers,
            output_loading_info=True,
        )
    assert layers.found is not None
    experts = {stored: module for own in layers.found.experts.values() for stored, module in own.items()}
    assert report["missing_keys"] == report["unexpected_keys"] == set()
    assert not experts.keys() & set(read)
    assert set(read) | experts.keys() == headers.tensors.keys()
    fill_experts(model, experts, lambda n: read_tensor(headers.tensors[n]), device=CPU, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval(), layers.found


def assert_same_answers(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Logits of a batch, and greedy tokens with a cache."""
    ids = torch.randint(3, VOCAB_SIZE, (2, 21), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, **CLOSE)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "use_cache": True}
    assert torch.equal(model.generate(ids, **options), reference.generate(ids, **options))
