"""KL divergences on held-out windows for models that are never whole in memory: hidden states go layer by layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.compress.activations import Activations
from workers.compress.walk import LayerWalk
from workers.measure.quality import kl_divergence, log_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutText:
    """token_ids: (windows, tokens), int64. folder, limit_bytes: where hidden states go, above how many bytes.

    `poll` raises to cancel; it is called between windows.
    """

    walk: LayerWalk
    token_ids: Tensor
    folder: Path
    limit_bytes: int
    poll: Callable[[], None]

    @property
    def num_windows(self) -> int:
        """Windows of text."""
        return len(self.token_ids)

    def embedded(self, name: str) -> Activations:
        """The first layer's inputs."""
        return Activations(self.walk.embed(self.token_ids), self.folder / name, self.limit_bytes, self.num_windows)

    def advance(self, index: int, hidden: Activations) -> None:
        """Replace hidden states, of any number of windows, by what layer `index`, which has memory, makes of them."""
        for number in range(len(hidden)):
            self.poll()
            hidden.put(number, self.walk.run(index, hidden.get(number).to(self.walk.device)))

    def base_outputs(self) -> Activations:
        """What the last layer of the base makes of the windows."""
        hidden = self.embedded("base")
        for index in range(len(self.walk.layers)):
            with self.walk.layer(index):
                self.advance(index, hidden)
        return hidden

    def divergences(self, base: Activations, others: Activations) -> list[float]:
        """KL(base || other), mean nats per token, of each model whose last layer's outputs are in `others`.

        base: of the base, (1, tokens, hidden) per window. others: of one model after the other, window by window.
        """
        count = self.num_windows
        models = len(others) // count
        sums = [0.0] * models

        def samples() -> Iterator[tuple[Tensor, Tensor]]:
            for window in range(count):
                ids = self.token_ids[window]
                yield ids, base.get(window).to(self.walk.device)
                for model in range(models):
                    self.poll()
                    yield ids, others.get(model * count + window).to(self.walk.device)

        expected = torch.empty(0)
        for number, logits in enumerate(self.walk.logits(samples())):
            if number % (models + 1) == 0:
                expected = log_probs([logits])
            else:
                # A divergence is never negative; rounding of fp32 log-probabilities leaves -1e-8.
                divergence = float(kl_divergence(expected, log_probs([logits])).mean())
                sums[number % (models + 1) - 1] += max(0.0, divergence)
        return [total / count for total in sums]
