"""Tokenizers with one token per character, of the two families that grammars are compiled for."""

import json
from pathlib import Path

EOS_ID = 2
# Printable ASCII, of which the blank is written otherwise in each family.
_CHARACTERS = [chr(code) for code in range(33, 127)]
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SENTENCE_PIECE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
# As Llama 2 has it: a text begins with a blank of the tokenizer's own.
_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def save_character_tokenizer(folder: Path, *, is_byte_level: bool = True) -> str:
    """97 tokens: <unk>, <s>, </s>, the blank, and from 33 - 29 = 4 on ASCII in its order. Returns the file's path."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, "Ġ" if is_byte_level else "▁", *_CHARACTERS][:97]
    definition = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": token, "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for index, token in enumerate(specials)
        ],
        "normalizer": None if is_byte_level else _NORMALIZER,
        "pre_tokenizer": _BYTE_LEVEL if is_byte_level else None,
        "decoder": _BYTE_LEVEL if is_byte_level else _SENTENCE_PIECE,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [],
            "byte_fallback": not is_byte_level,
        },
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(definition), encoding="utf-8")
    return str(path)


def text_of(token_ids: list[int]) -> str:
    """The text of an output, without special tokens."""
    return "".join(" " if token_id == 3 else chr(token_id + 29) for token_id in token_ids if token_id > 2)
