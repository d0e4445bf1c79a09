"""AutoRound compresses a model once per case. usage: write_with_auto_round.py BASE FOLDER IDS"""

import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# case -> its format, symmetric
CASES = {
    "gptq-sym": ("auto_gptq", True),
    "gptq-asym": ("auto_gptq", False),
    "awq-asym": ("auto_awq", False),
    "auto_round-sym": ("auto_round", True),
    "pack-quantized-sym": ("llm_compressor", True),
}


def main(base: str, folder: str, _ids_path: str) -> None:
    """One folder per case, by rounding alone: what its search would find is not what is compared."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{base}/tokenizer.json", unk_token="<unk>", pad_token="</s>")
    for name, (format, symmetric) in CASES.items():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
        search = AutoRound(
            model, tokenizer, bits=4, group_size=128, sym=symmetric, iters=0, disable_opt_rtn=True, device_map="cpu"
        )
        made = Path(folder) / f"{name}.made"
        search.quantize_and_save(output_dir=str(made), format=format)
        # it adds a folder named for the bits
        next(made.glob("**/config.json")).parent.rename(Path(folder) / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
