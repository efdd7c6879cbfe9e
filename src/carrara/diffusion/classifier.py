r"""Classifier guidance (Dhariwal & Nichol 2021, section 4): the gradient of a classifier of noisy pictures.

Bayes' rule for scores, grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t), and Tweedie's formula
D = (x_t + sigma^2 grad log p(x_t)) / alpha give

    D_w = D + w (sigma^2 / alpha) grad log p(y | x_t)

exact for w = 1. The classifier is asked like a network, in rows that are stacked with other requests' rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carrara.diffusion.guidance import Branch, Interval, Wrapper
from carrara.diffusion.process import Process, Scale, like
from carrara.types import Condition, Estimate

__all__ = ["Classifier"]


@dataclass(frozen=True)
class Classifier(Wrapper):
    """Adds the gradient of `log_prob(x_t, t, condition) -> (B,)`, log p(y | x_t), to what the guidance inside makes.

    It must be differentiable in x_t, and each row its own. `scale` 0 is off. It acts where start >= t > end and alpha
    is not 0: where nothing of the data is left, a classifier has nothing to say. A file cannot name it.
    """

    log_prob: Callable[[Tensor, Tensor, Condition], Tensor] = field(kw_only=True)
    scale: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        self._interval.check()

    @property
    def _interval(self) -> Interval:
        return Interval(self.start, self.end)

    def branches(
        self, denoiser: Callable[..., Estimate], condition: Condition, null: Condition, t: Scale
    ) -> tuple[Branch, ...]:
        inner = self.inner.branches(denoiser, condition, null, t)
        if self.scale == 0 or not self._interval.any(t):
            return inner
        return (*inner, Branch(self.gradient, condition))

    def gradient(self, x_t: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """The gradient of log p(y | x_t) in x_t, in the place of an estimate; works wherever gradients are off."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, t, condition).sum(), x)
        return Estimate(gradient)

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        if self.scale == 0 or not self._interval.any(t):
            return self.inner.combine(estimates, denoiser, x_t, t)
        *others, (gradient, _) = estimates
        mean, mix = self.inner.combine(others, denoiser, x_t, t)
        led = mean + self.scale * like(_weight(denoiser, t), x_t) * gradient
        return Estimate(self._interval.choose(t, led, mean), mix)


def _weight(denoiser: Callable[..., Estimate], t: Scale) -> Scale:
    """sigma^2 / alpha, and 0 where alpha is 0."""
    process = getattr(denoiser, "process", None)
    if not isinstance(process, Process):
        raise ValueError(f"a classifier's gradient needs a process, and {type(denoiser).__name__} has none")
    alpha, sigma = process.schedule(t)
    if isinstance(alpha, Tensor):
        return torch.where(alpha > 0, sigma**2 / alpha, 0.0)
    return sigma**2 / alpha if alpha > 0 else 0.0
