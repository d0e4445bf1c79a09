"""One forward of an unmodified transformers model, with the arguments that this model takes and no others."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.cache import PassthroughCache


class ModelCall:
    """Calls `model` for logits at chosen tokens only.

    The projection to the vocabulary is the widest product of a step, so models are asked to do it where somebody needs
    it (`logits_to_keep`); a model that cannot be asked computes all and we pick.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        parameters = inspect.signature(model.forward).parameters
        self.has_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._cache_argument = "cache_params" if "cache_params" in parameters else "past_key_values"

    def __call__(self, token_ids: Tensor, positions: Tensor, cache: PassthroughCache, kept: Tensor | None) -> Tensor:
        """token_ids, positions: (B, L) int64 on the device; kept: indices into L, None = all.

        Returns (B, K, vocab_size).
        """
        arguments: dict[str, object] = {self._cache_argument: cache, "use_cache": True}
        if self.has_positions:
            arguments["position_ids"] = positions
        if kept is not None and self._keeps_logits:
            arguments["logits_to_keep"] = kept
        logits: Tensor = self.model(token_ids, **arguments).logits
        if kept is not None and logits.shape[1] != len(kept):
            logits = logits[:, kept]
        return logits

    def tensor(self, values: list[int]) -> Tensor:
        """(len(values),) int64 on the model's device."""
        return torch.tensor(values, device=self.device)
