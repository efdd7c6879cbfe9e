"""Another picture's embedding: what a picture tower, trained beside a text encoder, sees in it.

unCLIP, Ramesh et al. 2022. The tower's features are whitened over the training pictures, as a text encoder's are over
captions. The network adds a map of them to what it is told of the level; so the picture says what there is to be, and
not where.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from carrara.conditions.base import Input
from carrara.config import Configured, Role
from carrara.nn.whitening import Whitening
from carrara.rng import Rng

__all__ = ["Embedding"]


class Embedding(Configured, Input):
    """What the picture tower `network`, frozen, sees in a picture of `size` (height, width) with `channels`."""

    part = "adapters"

    def __init__(
        self,
        network: Annotated[nn.Module, Role("picture_network")],
        *,
        channels: int,
        size: tuple[int, int],
        name: str = "embedding",
        drop: float = 0.1,
    ) -> None:
        super().__init__(name, drop)
        config = getattr(network, "config", {})
        if config.get("channels", channels) != channels:
            raise ValueError(f"the picture tower reads {config['channels']} channels, and the pictures have {channels}")
        self.planes, self.side = channels, size
        self.network = network.eval().requires_grad_(False)
        with torch.no_grad():
            width = int(network(torch.zeros(1, channels, *size)).shape[1])
        self.whiten = Whitening(width)
        self.channels = width + 1

    def train(self, mode: bool = True) -> Embedding:
        """Stays as it is: the tower is frozen."""
        return super().train(False)

    @torch.no_grad()
    def measure(self, pictures: Iterable[Tensor], *, beside: bool = False) -> None:
        """Measures the whitening over pictures (B, channels, H, W)."""
        device = self.whiten.mean.device
        self.whiten.measure(torch.cat([self._features(batch.to(device)) for batch in pictures]))

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return pictures

    def encode(self, *given: Tensor) -> Tensor:
        seen = self.whiten(self._features(given[0]))
        return torch.cat([seen, torch.ones_like(seen[:, :1])], 1)[:, None]

    def null(self, rows: int, size: Sequence[int]) -> Tensor:
        return torch.zeros(rows, 1, self.channels)

    def _features(self, pictures: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, enabled=False):
            features: Tensor = self.network(pictures.float())
        return features.float()
