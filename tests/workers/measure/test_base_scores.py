"""A base read layer by layer predicts what it predicts in one piece."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.tiny import save_tiny_model
from workers.measure import base_scores

CPU = torch.device("cpu")
WINDOWS = [torch.arange(3, 43), torch.arange(20, 60), torch.arange(5, 12)]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "gemma2-softcap": ("gemma2", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "mixtral": ("mixtral", {}),
}


@pytest.mark.parametrize(("model_type", "options"), CASES.values(), ids=CASES.keys())
def test_layer_by_layer_equals_whole(
    tmp_path: Path, model_type: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, **options)
    seen: list[tuple[int, int]] = []

    def logits() -> list[torch.Tensor]:
        seen.clear()
        progress = lambda done, total: seen.append((done, total))  # noqa: E731
        return list(base_scores.base_logits(base, WINDOWS, dtype="fp32", device=CPU, on_progress=progress))

    whole = logits()
    monkeypatch.setattr(base_scores, "memory_free_bytes", lambda device: 1000)
    walked = logits()

    # two lengths of windows, two layers
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for one, other, ids in zip(walked, whole, WINDOWS, strict=True):
        assert one.shape == (len(ids), 128)
        # the same fp32 operations in the same order, but for how sums are cut
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
