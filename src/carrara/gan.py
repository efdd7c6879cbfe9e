r"""Generative adversarial networks after R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN!").

A generator G makes z = G(noise, c) under a condition c; a discriminator D gives z one number under c, higher for real.
Both are judged by how a real x and a made z of the same condition compare (relativistic pairing, Jolicoeur-Martineau
2018), with m = D(x, c) - D(z, c):

    loss of G   log(1 + e^m)
    loss of D   log(1 + e^-m) + gamma / 2 (R1 + R2),    R1 = |dD/dx|^2 at x,    R2 = |dD/dz|^2 at z

No real x is left alone with a fixed score, so a generator that drops modes is pulled back to them, and the two
penalties, centred at zero, make training converge locally (Mescheder et al. 2018). For text D also learns from a real x
under the caption c' of another picture: `mismatch` log(1 + e^-(D(x, c) - D(x, c'))) (matching-aware, Reed et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured, Role
from carrara.rng import Rng
from carrara.types import Ask, Condition, Round, Rounds, Space

__all__ = ["Gamma", "GanGenerator", "GanSettings", "Judge", "RelativisticLoss", "distances", "gradient_penalty",
           "relativistic"]  # fmt: skip


class Judge(Protocol):
    """A discriminator: what it sees in z, and the score of that under a condition."""

    def features(self, x: Tensor) -> Tensor:
        """What is judged of x, (B, F)."""
        ...

    def judge(self, features: Tensor, condition: Condition) -> Tensor:
        """D, (B,) float32."""
        ...


def relativistic(higher: Tensor, lower: Tensor) -> Tensor:
    """log(1 + e^-(higher - lower)): near 0 where the first score is far above the second, (B,) each."""
    return F.softplus(lower - higher)


def gradient_penalty(scores: Tensor, x: Tensor) -> Tensor:
    """|d score / d x|^2 of each row, (B,) float32, in a form that can be differentiated once more.

    scores (B,) came from x (B, ...), row by row; x requires a gradient.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)


def distances(z: Tensor) -> Tensor:
    """The mean distance between the K things of each row, root mean square a dimension: z (B, K, ...) to (B,)."""
    rows = z.flatten(2).float()
    first, second = torch.triu_indices(rows.shape[1], rows.shape[1], 1, device=z.device)
    return (rows[:, first] - rows[:, second]).square().mean(2).sqrt().mean(1)


@dataclass(frozen=True)
class Gamma:
    """The weight of the gradient penalties: from `first` to `last` by half a cosine over so many pictures of training.

    Pictures are counted as rows that training has seen. It belongs to the space of z: the squared gradient grows with
    the number of dimensions that matter and falls with their scale.
    """

    first: float = 10.0
    last: float = 1.0
    pictures: int = 100_000

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"gamma's {name} = {getattr(self, name)}; expected 0 or more")
        if self.pictures < 1:
            raise ValueError(f"gamma's pictures = {self.pictures}; expected 1 or more")

    def __call__(self, seen: Sequence[int]) -> Tensor:
        """The weight at each row's number in the whole run, (B,) float32."""
        done = torch.tensor([min(1.0, number / self.pictures) for number in seen], dtype=torch.float64)
        return (self.last + (self.first - self.last) * 0.5 * (1 + torch.cos(math.pi * done))).float()


@dataclass(frozen=True)
class RelativisticLoss:
    """What the two networks minimise; `mismatch` weighs the real pictures under another picture's caption."""

    gamma: Gamma = field(default_factory=Gamma)
    mismatch: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.mismatch < math.inf:
            raise ValueError(f"mismatch = {self.mismatch}; expected 0 (off) or more")

    def generator(self, judge: Judge, real: Tensor, fake: Tensor, condition: Condition) -> Tensor:
        """The generator's loss of each row, (B,), with gradient through `fake` alone."""
        with torch.no_grad():
            aim = judge.judge(judge.features(real), condition)
        return relativistic(judge.judge(judge.features(fake), condition), aim)

    def discriminator(
        self,
        judge: Judge,
        real: Tensor,
        fake: Tensor,
        condition: Condition,
        seen: Sequence[int],
        captions: tuple[Condition, Condition, Tensor] | None = None,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The discriminator's loss of each row, (B,), and detached means of its parts.

        `seen` are the rows' numbers in the run. `captions`: the real pictures' own condition, another one, and which
        rows (B,) bool differ in the two; None leaves mismatches out.
        """
        x = torch.cat((real, fake)).detach().float().requires_grad_()
        features = judge.features(x)
        scores = judge.judge(features, Condition.stack((condition, condition)))
        r1, r2 = gradient_penalty(scores, x).chunk(2)
        right, made = scores.chunk(2)
        gamma = self.gamma(seen).to(scores.device)
        rows = relativistic(right, made) + gamma / 2 * (r1 + r2)
        parts = {"margin": right - made, "r1": r1, "r2": r2, "gamma": gamma}
        if captions is not None and self.mismatch:
            own, other, differ = captions
            seen_real = features[: len(real)]
            margin = judge.judge(seen_real, own) - judge.judge(seen_real, other)
            rows = rows + self.mismatch * torch.where(differ, F.softplus(-margin), 0.0)
            parts["mismatch"] = margin
        return rows, {name: part.detach().float().mean() for name, part in parts.items()}


@dataclass(frozen=True)
class GanSettings:
    """How a GAN is sampled: the noise is scaled by `truncation`, 1 is off; less gives up variety for typical pictures.

    At 0 a prompt has one picture, that of the mean of the noise.
    """

    truncation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.truncation <= 1:
            raise ValueError(f"truncation = {self.truncation}; expected 0 (one picture a prompt) to 1 (off)")


class GanGenerator(Configured, nn.Module):
    """Makes z of `space` in one pass of its network; `reads` is the space of the text encoder it was trained with.

    The network maps noise (B, network.noise) and a condition to z.
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("gan_network")],
        space: Space,
        *,
        reads: Space | None = None,
        settings: GanSettings = GanSettings(),
    ) -> None:
        super().__init__()
        self.network = network
        self.space = space
        self.reads = reads
        self.settings = settings

    def noise(self, rng: Rng, count: int = 1) -> Tensor:
        """Noise for `count` pictures a stream, (B * count, N), each stream's own beside one another."""
        width: Any = self.network.noise
        device = next(self.network.parameters()).device
        return rng.normal((count, width)).flatten(0, 1).to(device)

    def start(
        self,
        shape: Sequence[int],
        condition: Condition,
        null: Condition,
        rng: Rng,
        settings: GanSettings | None = None,
    ) -> Rounds:
        """One ask: a z for each stream of the rng. The null condition is not needed.

        Raises ValueError for another shape than the space's: the network has learnt one size.
        """
        if tuple(shape) != tuple(self.space.shape):
            raise ValueError(
                f"z of shape {tuple(shape)} was asked for, and this GAN has learnt {tuple(self.space.shape)} alone; "
                "leave the size out"
            )
        noise = (settings or self.settings).truncation * self.noise(rng.fork("prior"))
        ((z,),) = yield Round((Ask(self.network, (noise, condition)),))
        return z
