"""The demo model's tokenizer: byte-level BPE, so that any UTF-8 text goes in and comes back unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD, END = "<|bos|>", "<|eos|>", "<|pad|>", "<|end|>"
ROLES = {"user": "<|user|>", "assistant": "<|assistant|>", "system": "<|system|>"}
SPECIAL_TOKENS = [BOS, EOS, PAD, END, *ROLES.values()]

# an unknown role reads as the user's: the sandbox that renders templates has no function to raise an error with
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = message['role'] if message['role'] in ('system', 'assistant') else 'user' -%}
    {{- '<|' + role + '|>' + (message['content'] | trim) + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn the merges; encoding adds bos in front unless add_special_tokens=False."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return finish(tokenizer, use_regex=True)


def byte_level(piece: str, alphabet: dict[int, str]) -> str:
    """A SentencePiece piece in the letters of byte-level BPE: one letter to a byte."""
    if piece.startswith("<0x"):
        return alphabet[int(piece[3:5], 16)]
    return "".join(alphabet[byte] for byte in piece.replace("\u2581", " ").encode())


def byte_alphabet() -> dict[int, str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest is moved up from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


def adopt_tokenizer(path: Path) -> tuple[Tokenizer, list[int | None]]:
    """A small SentencePiece BPE (tokenizer.json) as byte-level BPE, and the old id of each new token, None if new.

    The same merges in the same order, but no space is added in front and no unknown token exists: any bytes come back.
    """
    old = json.loads(path.read_text(encoding="utf-8"))["model"]
    alphabet = byte_alphabet()
    ids: dict[str, int] = {}
    for piece, index in sorted(old["vocab"].items(), key=lambda item: item[1]):
        if piece not in ("<unk>", "<s>", "</s>"):
            ids[byte_level(piece, alphabet)] = index  # a letter's own piece comes after its byte and wins
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in old["merges"]]
    merges = [(byte_level(a, alphabet), byte_level(b, alphabet)) for a, b in pairs]
    merges = [(a, b) for a, b in dict.fromkeys(merges) if a + b in ids]
    merged = dict.fromkeys(a + b for a, b in merges)
    tokens = [*SPECIAL_TOKENS, *(alphabet[byte] for byte in range(256)), *merged]
    reserved = [f"<|reserved_{i}|>" for i in range(-len(tokens) % 8)]
    tokens += reserved
    # the small model ends one story and begins the next with <s>: so do these, before any training
    known = {**ids, **dict.fromkeys((BOS, EOS, END, ROLES["assistant"]), old["vocab"]["<s>"])}
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, *reserved])
    # no pattern splits the text into words: SentencePiece merged across them too
    return finish(tokenizer, use_regex=False), [known.get(token) for token in tokens]


def finish(tokenizer: Tokenizer, use_regex: bool) -> Tokenizer:
    """Bytes in, bytes out, bos in front."""
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[bos]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the three files that AutoTokenizer and the `tokenizers` library read."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [END, *ROLES.values()],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
