"""Small unsigned integers in int32 words: one stream of bits, the lowest first.

3-bit values follow the same stream, 32 of them in 3 words, as AutoGPTQ writes them: values 10 and 21 straddle words.
The padded forms are compressed-tensors': the stream may end inside a word.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from workers.protocol.errors import WorkerError, WorkerErrorCode

_WORD_BITS = 32


def packed_length(length: int, num_bits: int) -> int:
    """Words for `length` values. Raises WorkerError (invalid_request) if they do not fill whole blocks of words."""
    if not fills_words(length, num_bits):
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"{length} values of {num_bits} bits do not fill 32-bit words; skip this module or choose another layout",
        )
    return length * num_bits // _WORD_BITS


def fills_words(length: int, num_bits: int) -> bool:
    """Whether `length` values end where a word does and the stream starts anew."""
    return length % values_per_block(num_bits) == 0


def values_per_block(num_bits: int) -> int:
    """Values after which the stream is at the start of a word again: 8 for 4 bits, 32 for 3."""
    return _WORD_BITS // math.gcd(_WORD_BITS, num_bits)


def pack(values: Tensor, num_bits: int) -> Tensor:
    """values: (..., C), integers in 0 .. 2**num_bits - 1. Returns (..., C * num_bits / 32), int32."""
    num_words = packed_length(values.shape[-1], num_bits)
    blocks = values.to(torch.int64).reshape(*values.shape[:-1], -1, values_per_block(num_bits))
    words = torch.zeros(*blocks.shape[:-1], num_bits * blocks.shape[-1] // _WORD_BITS, dtype=torch.int64)
    words = words.to(values.device)
    for index in range(blocks.shape[-1]):
        word, offset = divmod(index * num_bits, _WORD_BITS)
        words[..., word] |= blocks[..., index] << offset
        if offset + num_bits > _WORD_BITS:
            words[..., word + 1] |= blocks[..., index] >> (_WORD_BITS - offset)
    unsigned = words.flatten(-2)[..., :num_words] & (2**_WORD_BITS - 1)
    return torch.where(unsigned >= 2 ** (_WORD_BITS - 1), unsigned - 2**_WORD_BITS, unsigned).to(torch.int32)


def unpack(words: Tensor, num_bits: int) -> Tensor:
    """words: (..., W), int32. Returns (..., W * 32 / num_bits), uint8: the inverse of `pack`."""
    per_block = values_per_block(num_bits)
    unsigned = words.to(torch.int64) & (2**_WORD_BITS - 1)
    blocks = unsigned.reshape(*words.shape[:-1], -1, per_block * num_bits // _WORD_BITS)
    values = []
    for index in range(per_block):
        word, offset = divmod(index * num_bits, _WORD_BITS)
        value = blocks[..., word] >> offset
        if offset + num_bits > _WORD_BITS:
            value = value | blocks[..., word + 1] << (_WORD_BITS - offset)
        values.append((value & (2**num_bits - 1)).to(torch.uint8))
    return torch.stack(values, dim=-1).flatten(-2)


def padded_length(length: int, num_bits: int) -> int:
    """Words for `length` values, the last filled up with zeros."""
    return -(-length * num_bits // _WORD_BITS)


def pack_padded(values: Tensor, num_bits: int) -> Tensor:
    """As `pack`, for any C: (..., C) becomes (..., ceil(C * num_bits / 32))."""
    length = values.shape[-1]
    padded = functional.pad(values, (0, -length % values_per_block(num_bits)))
    return pack(padded, num_bits)[..., : padded_length(length, num_bits)].contiguous()


def unpack_padded(words: Tensor, num_bits: int, length: int) -> Tensor:
    """The first `length` values of a padded stream: (..., length), uint8."""
    block_words = values_per_block(num_bits) * num_bits // _WORD_BITS
    padded = functional.pad(words, (0, -words.shape[-1] % block_words))
    return unpack(padded, num_bits)[..., :length].contiguous()


def unpack_whole(words: Tensor, num_bits: int, length: int) -> Tensor:
    """As `unpack_padded`, from words that hold 32 // num_bits values each and waste the bits that are left."""
    offsets = torch.arange(_WORD_BITS // num_bits, device=words.device) * num_bits
    values: Tensor = (words.to(torch.int64).unsqueeze(-1) >> offsets) & (2**num_bits - 1)
    return values.flatten(-2)[..., :length].to(torch.uint8).contiguous()
