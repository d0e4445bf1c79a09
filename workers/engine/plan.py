"""Where the tokens of one step live: computed once per forward, read by every attention layer.

Rows are packed decode first: tokens [0, num_decodes) are one per decode row, the prefill chunks follow, each with its
tokens in a row. Everything that would be the same in every layer (slots, ranges, masks) is cached here.

On the CPU how many queries and keys a product has decides in which order it sums. So there a prefill row attends in
chunks that end where pages end, and token by token behind the prompt (computed again after preemption): what a token
gets depends on its place in its own sequence, not on where its prompt was cut.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workers.engine.kv_pool import PAGE_SIZE
from workers.engine.sequence import Row, Sequence


@dataclass(frozen=True, slots=True)
class Keys:
    """The tokens that one row attends to: `length` slots from `first` on, or, where pages are scattered, `index`."""

    first: int
    length: int
    index: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, end) of a prefill row, which attend in one call: packed[first : first + num_tokens]."""

    row: Row
    start: int
    end: int
    first: int

    @property
    def num_tokens(self) -> int:
        """How many positions."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """What a chunk attends to: `length` tokens from `offset` on among `of_row`, which the chunks of a row share.

    mask: (num_tokens, length), additive. None where plain causal is right, and for a single token.
    """

    of_row: Keys
    offset: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PaddedKeys:
    """Keys of all decode rows as one rectangle. index: (B, L) slots; mask: (B, 1, 1, L), additive, 0 on real keys."""

    index: Tensor
    mask: Tensor


class StepPlan:
    """The layout of one packed forward.

    order: for each packed row its place in the caller's list. slots: (N,) where each token's key and value go.
    is_cut_at_pages: see the top of this file; False where a launch costs more than the order of sums is worth.
    """

    def __init__(self, rows: Many[Row], device: torch.device, dtype: torch.dtype, *, is_cut_at_pages: bool) -> None:
        self.order = sorted(range(len(rows)), key=lambda i: rows[i].num_tokens > 1)
        self.rows = [rows[i] for i in self.order]
        self._device = device
        self._dtype = dtype
        self.num_decodes = sum(row.num_tokens == 1 for row in self.rows)
        self.decodes = self.rows[: self.num_decodes]
        self.chunks: list[Chunk] = []
        self.num_tokens = self.num_decodes
        for row in self.rows[self.num_decodes :]:
            for start, end in _page_parts(row) if is_cut_at_pages else [(row.start, row.end)]:
                self.chunks.append(Chunk(row, start, end, self.num_tokens))
                self.num_tokens += end - start
        self.slots = torch.tensor(self._slot_list(), device=device)
        self._decode_keys: dict[int | None, list[Keys]] = {}
        self._padded: dict[int | None, PaddedKeys] = {}
        self._chunk_keys: dict[tuple[int | None, bool], list[ChunkKeys]] = {}

    @property
    def token_ids(self) -> list[int]:
        """All tokens of the step in packed order."""
        return [token for row in self.rows for token in row.token_ids]

    @property
    def positions(self) -> list[int]:
        """Position of every token in its own sequence, in packed order."""
        return [position for row in self.rows for position in range(row.start, row.end)]

    @property
    def keeps_all(self) -> bool:
        """True if the logits of every token are needed."""
        return not self.chunks or all(chunk.row.wants_all_logits for chunk in self.chunks)

    def kept_indices(self) -> list[int]:
        """Packed indices whose logits somebody needs: the last of each row, or all of a row that wants all."""
        kept: list[int] = []
        first = 0
        for row in self.rows:
            end = first + row.num_tokens
            kept.extend(range(first, end) if row.wants_all_logits else (end - 1,))
            first = end
        return kept

    def in_callers_order(self, logits: Tensor) -> list[Tensor]:
        """logits: (len(kept_indices()), vocab_size) -> one tensor per row, in the order in which the rows came."""
        sizes = [row.num_tokens if row.wants_all_logits else 1 for row in self.rows]
        result: list[Tensor] = [logits] * len(sizes)
        for place, part in zip(self.order, torch.split(logits, sizes), strict=True):
            result[place] = part
        return result

    def decode_keys(self, window: int | None) -> list[Keys]:
        """What each decode row attends to under this window."""
        keys = self._decode_keys.get(window)
        if keys is None:
            keys = [self._keys_of(row, _first_visible(row.end - 1, window)) for row in self.decodes]
            self._decode_keys[window] = keys
        return keys

    def padded_decode_keys(self, window: int | None) -> PaddedKeys:
        """The same for all decode rows at once; short rows repeat a slot of their own, behind the mask.

        Never a foreign slot: 0 * NaN is NaN, so a poisoned sequence would reach its neighbours through the padding.
        """
        padded = self._padded.get(window)
        if padded is None:
            rows = [_slots(row, _first_visible(row.end - 1, window), row.end) for row in self.decodes]
            lengths = torch.tensor([len(slots) for slots in rows])
            longest = int(lengths.max())
            index = torch.stack([torch.cat([slots, slots[:1].expand(longest - len(slots))]) for slots in rows])
            mask = torch.zeros(index.shape, dtype=self._dtype)
            mask.masked_fill_(torch.arange(longest) >= lengths[:, None], float("-inf"))
            padded = PaddedKeys(index.to(self._device), mask[:, None, None].to(self._device))
            self._padded[window] = padded
        return padded

    def chunk_keys(self, window: int | None, *, always_mask: bool) -> list[ChunkKeys]:
        """What each chunk attends to. always_mask: also where plain causal is right."""
        result = self._chunk_keys.get((window, always_mask))
        if result is None:
            result = []
            of_rows: dict[Sequence, Keys] = {}
            for chunk in self.chunks:
                row = chunk.row
                first, first_of_row = (_first_visible(start, window) for start in (chunk.start, row.start))
                of_row = of_rows.get(row.sequence) or self._keys_of(row, first_of_row)
                of_rows[row.sequence] = of_row
                mask = self._mask(chunk, first, window, always_mask)
                result.append(ChunkKeys(of_row, first - first_of_row, chunk.end - first, mask))
            self._chunk_keys[window, always_mask] = result
        return result

    def _mask(self, chunk: Chunk, first: int, window: int | None, always_mask: bool) -> Tensor | None:
        is_causal = chunk.start == 0 and (window is None or window >= chunk.num_tokens)
        if chunk.num_tokens == 1 or (is_causal and not always_mask):
            return None
        query = torch.arange(chunk.start, chunk.end, device=self._device)[:, None]
        key = torch.arange(first, chunk.end, device=self._device)
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, float("-inf"))

    def _keys_of(self, row: Row, first: int) -> Keys:
        table = row.sequence.block_table
        pages = table[first // PAGE_SIZE : -(-row.end // PAGE_SIZE)]
        if pages[-1] - pages[0] == len(pages) - 1 and pages == list(range(pages[0], pages[0] + len(pages))):
            return Keys(pages[0] * PAGE_SIZE + first % PAGE_SIZE, row.end - first)
        return Keys(0, row.end - first, _slots(row, first, row.end).to(self._device))

    def _slot_list(self) -> list[int]:
        slots: list[int] = []
        for row in self.rows:
            table = row.sequence.block_table
            slots.extend(table[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in range(row.start, row.end))
        return slots


def _page_parts(row: Row) -> list[tuple[int, int]]:
    """The row's positions, divided at the edges of pages and, behind the prompt, into single ones."""
    end_of_prompt = max(row.start, min(row.end, row.sequence.num_prompt_tokens))
    first_edge = (row.start // PAGE_SIZE + 1) * PAGE_SIZE
    edges = [row.start, *range(first_edge, end_of_prompt, PAGE_SIZE), *range(end_of_prompt, row.end + 1)]
    return [(start, end) for start, end in pairwise(edges) if start < end]


def _first_visible(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def _slots(row: Row, first: int, end: int) -> Tensor:
    """Slots of the tokens at positions [first, end) of the row's sequence, on the CPU."""
    first_page = first // PAGE_SIZE
    pages = torch.tensor(row.sequence.block_table[first_page : -(-end // PAGE_SIZE)])
    slots = (pages[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).view(-1)
    return slots[first - first_page * PAGE_SIZE : end - first_page * PAGE_SIZE]
