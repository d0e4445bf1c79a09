"""Tiny models: a second thread would wait for its neighbours far longer than it computes."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """The parity tests took 117 s with torch's own two threads on two busy cores, and 12 s with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
