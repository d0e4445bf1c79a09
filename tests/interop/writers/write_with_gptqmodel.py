"""GPTQModel compresses a model once per case. usage: write_with_gptqmodel.py BASE FOLDER IDS"""

import sys

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import AWQConfig, FP8Config, GPTQConfig
from safetensors.torch import load_file

CASES = {
    "gptq-sym": GPTQConfig(bits=4, sym=True, desc_act=False),
    "gptq-sym-act": GPTQConfig(bits=4, sym=True, desc_act=True),
    "gptq-asym": GPTQConfig(bits=4, sym=False, desc_act=False),
    "gptq-asym-act": GPTQConfig(bits=4, sym=False, desc_act=True),
    "gptq-8bit-g64": GPTQConfig(bits=8, group_size=64, sym=True, desc_act=False),
    "gptq-3bit": GPTQConfig(bits=3, sym=True, desc_act=False),
    "gptq-channel": GPTQConfig(bits=4, group_size=-1, sym=True, desc_act=True),
    "gptq-head": GPTQConfig(bits=4, sym=True, desc_act=False, lm_head=True),
    "gptq_v2-sym": GPTQConfig(bits=4, sym=True, desc_act=False, format="gptq_v2"),
    "gptq_v2-asym-act": GPTQConfig(bits=4, sym=False, desc_act=True, format="gptq_v2"),
    "gptq_v2-2bit-g32": GPTQConfig(bits=2, group_size=32, sym=False, desc_act=False, format="gptq_v2"),
    "awq-asym": AWQConfig(bits=4, sym=False),
    "awq-sym": AWQConfig(bits=4, sym=True),
    "fp8": FP8Config(),
}


def main(base: str, folder: str, ids_path: str) -> None:
    """One folder per case."""
    samples = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in load_file(ids_path)["token_ids"]
    ]
    for name, config in CASES.items():
        config.offload_to_disk = False
        model = GPTQModel.load(base, config, device="cpu", dtype=torch.float16)
        # its default writer of AWQ files needs CUDA
        options = {"backend": BACKEND.AWQ_TORCH} if name.startswith("awq") else {}
        model.quantize(None if name == "fp8" else samples, batch_size=4, **options)
        model.save(f"{folder}/{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
