"""llm-compressor compresses a model once per case. usage: write_with_llmcompressor.py BASE FOLDER IDS"""

import shutil
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def preset(scheme: str) -> QuantizationModifier:
    """Round to nearest by one of the library's own schemes."""
    return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


MIXED = {
    "attention": QuantizationScheme(
        targets=["re:.*self_attn.*proj$"],
        weights=QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel"),
    ),
    "mlp": QuantizationScheme(
        targets=["re:.*mlp.*proj$"],
        weights=QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=64),
    ),
}
CASES = {
    "w4a16": preset("W4A16"),
    "w4a16-asym": preset("W4A16_ASYM"),
    "w4a16-gptq-act": GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"], actorder="weight"),
    "w8a16": preset("W8A16"),
    "w8a8": preset("W8A8"),
    "fp8-dynamic": preset("FP8_DYNAMIC"),
    "fp8-static": preset("FP8"),
    "fp8-block": preset("FP8_BLOCK"),
    "mixed": QuantizationModifier(config_groups=MIXED, ignore=["lm_head"]),
}
# what looks at activations
CALIBRATED = {"w4a16-gptq-act", "fp8-static"}


def main(base: str, folder: str, ids_path: str) -> None:
    """One folder per case."""
    ids = load_file(ids_path)["token_ids"]
    samples = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    for name, modifier in CASES.items():
        data = {}
        if name in CALIBRATED:
            data = {"dataset": samples, "max_seq_length": ids.shape[1], "num_calibration_samples": len(ids)}
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
        oneshot(model=model, recipe=modifier, **data)
        model.save_pretrained(f"{folder}/{name}", save_compressed=True)
        shutil.copy(f"{base}/tokenizer.json", f"{folder}/{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
