"""Documents to training rows of fixed length, with the loss only on what the model should say."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from chat import Document, documents
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import BOS

IGNORED = -100  # the index that cross_entropy leaves out


def encode(tokenizer: Tokenizer, batch: list[Document]) -> Iterator[tuple[list[int], list[int]]]:
    """(ids, labels) of each document, bos first; labels are IGNORED where the model is not to learn."""
    bos = tokenizer.token_to_id(BOS)
    pieces = [piece for document in batch for piece in document]
    encoded = iter(tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False))
    for document in batch:
        ids, labels = [bos], [IGNORED]
        for _, is_learned in document:
            piece = next(encoded).ids
            ids += piece
            labels += piece if is_learned else [IGNORED] * len(piece)
        yield ids, labels


def pack(encoded: Iterator[tuple[list[int], list[int]]], length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of length + 1 tokens. Each row starts with bos, as every request will; its last document is cut off."""
    row_ids: list[int] = []
    row_labels: list[int] = []
    for ids, labels in encoded:
        row_ids += ids
        row_labels += labels
        if len(row_ids) > length:
            yield row_ids[: length + 1], row_labels[: length + 1]
            row_ids, row_labels = [], []


def batches(
    tokenizer: Tokenizer, stories: list[str], length: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, labels) of shape (batch_size, length), labels already shifted by one."""
    rng = random.Random(seed)
    rows: list[tuple[list[int], list[int]]] = []
    while True:
        fresh = list(pack(encode(tokenizer, documents(stories, rng)), length))
        if not fresh:
            raise ValueError(f"{len(stories)} stories do not fill one row of {length} tokens; give more stories")
        rows += fresh
        while len(rows) >= batch_size:
            taken, rows = rows[:batch_size], rows[batch_size:]
            ids = torch.tensor([row for row, _ in taken])
            labels = torch.tensor([row for _, row in taken])
            yield ids[:, :-1], labels[:, 1:]
