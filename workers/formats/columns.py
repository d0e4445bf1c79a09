"""Input columns of a grid whose groups are not runs of neighbours, as act-order leaves them."""

from dataclasses import replace

import torch
from torch import Tensor

from workers.formats.codes import GridCodes


def equal_length(codes: GridCodes) -> int | None:
    """Columns of each group; None where groups have different sizes."""
    num_columns, num_groups = codes.codes.shape[1], codes.scale.shape[1]
    if codes.group_index is not None:
        sizes = torch.bincount(codes.column_groups(), minlength=num_groups)
        return num_columns // num_groups if bool((sizes * num_groups == num_columns).all()) else None
    return None if num_columns % num_groups else num_columns // num_groups


def in_equal_runs(codes: GridCodes) -> tuple[GridCodes, Tensor | None]:
    """The same grid with its columns sorted by group, and the order in which x's columns belong to it.

    Returns codes without a group_index and the (K,) int64 order, None where the columns already lie so. Groups of
    unequal sizes cannot be runs of one length: such codes come back as they are.
    """
    length = equal_length(codes)
    if length is not None and codes.group_index is None:
        return codes, None
    groups = codes.column_groups()
    if length is None:
        return replace(codes, group_index=groups), None
    if bool((groups.diff() >= 0).all()):
        return replace(codes, group_index=None), None
    order = torch.argsort(groups, stable=True)
    return replace(codes, codes=codes.codes[:, order], group_index=None), order


def select(x: Tensor, order: Tensor | None) -> Tensor:
    """x's columns in that order. x: (..., K)."""
    return x if order is None else x.index_select(-1, order)


def scattered(weight: Tensor, order: Tensor | None) -> Tensor:
    """Columns back from that order to x's. weight: (N, K)."""
    if order is None:
        return weight
    result = torch.empty_like(weight)
    result[:, order] = weight
    return result
