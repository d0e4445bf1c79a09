"""Tokenizers of the two families, made on the spot: byte-level BPE, and SentencePiece-like BPE with byte fallback."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

STORIES = [
    "Once upon a time there was a little dog. The dog had a red ball and a big house.",
    "One day, the dog ran to the park. It saw a bird, and the bird said: hello, little dog!",
] * 20

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """GPT-2's family: every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(STORIES, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def sentence_piece() -> Tokenizer:
    """Llama 2's family: words begin with U+2581, and bytes that no token covers have one each."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        STORIES, trainers.BpeTrainer(vocab_size=450, special_tokens=specials, show_progress=False)
    )
    # the trainer marks all of them as special; only three are
    definition = json.loads(trained.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture(params=["byte_level", "sentence_piece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each family in turn."""
    made: Tokenizer = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def model_folder(tmp_path: Path, sentence_piece: Tokenizer) -> Path:
    """A variant's folder, as far as text is concerned."""
    sentence_piece.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path
