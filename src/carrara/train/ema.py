"""Averaged weights: after update n = 0, 1, ... the average is

    a <- d_n a + (1 - d_n) w,    d_n = min(decay, (1 + n) / (10 + n))

so that an early average is not held back by the weights that training began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Ema"]


class Ema:
    """An exponential moving average of parameters, by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    def decay_at(self, n: int) -> float:
        """The decay of update n = 0, 1, ..."""
        return min(self.decay, (1 + n) / (10 + n))

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Takes the current weights into the average; n counts the updates before this one."""
        if self.average:
            weights = [p.detach() for p in self._parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1.0 - self.decay_at(n))

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Takes over a stored average. Raises KeyError for a name that is missing."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The average in the parameters' place for a while; storage is exchanged, so both come back bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.average[name] = self.average[name], parameter.data
