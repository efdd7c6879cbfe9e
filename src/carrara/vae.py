r"""The variational autoencoder as a generator: its likelihoods, its objective, its bounds (Kingma & Welling 2014).

    log p(x | c) >= E_q[log p(x | z, c)] - sum_l KL(q(z_l | z_<l, x, c) || p(z_l | z_<l, c))           the ELBO
    log p(x | c) >= E log 1/K sum_k w_k,    w = p(x | z, c) p(z | c) / q(z | x, c),  z ~ q      (Burda et al. 2016)

The second never falls with K in expectation, and is the first for K = 1. A network (`carrara.nn.vae`, say) speaks of z
through u with a prior N(0, I) at every level. Beside numbers of its own, p(x | z) is a location and a scale for every
dimension of x, independent of one another given z:

    DiscretisedLogistic   F((x + h - m) / s) - F((x - h - m) / s), F the logistic function, 2h between grey levels
    DiscretisedNormal     the same of the normal distribution
    Normal                a density, for latents, which have no grey levels

The outer levels are open to infinity, so that the probabilities of all levels sum to 1.

Training minimises E[-log p(x | z)] + beta sum_l max(KL_l, free), in which beta may rise from 0 (Bowman et al. 2016) and
`free` bits of each level cost the same whether used or not (Kingma et al. 2016, here of each picture rather than of the
mean over a batch, so that rows do not depend on one another). beta = 1 and free = 0 are the ELBO itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.diffusion.likelihood import discretised_log_prob, kl
from carrara.rng import Rng
from carrara.types import Ask, Condition, Gaussian, Round, Rounds, Space

__all__ = [
    "DiscretisedLogistic",
    "DiscretisedNormal",
    "Draw",
    "Likelihood",
    "Normal",
    "VaeBound",
    "VaeGenerator",
    "VaeObjective",
    "VaeSettings",
    "collapse",
    "vae_bound",
]

_LIMIT = 12.0  # of log scales, softly
_COLLAPSED = 0.1  # bits of a level, a picture


class Likelihood(ABC):
    """p(x | z) of every dimension, read from a network's output: C channels of locations and C of log scales."""

    @property
    @abstractmethod
    def grey_levels(self) -> int | None:
        """How many grey levels x has; None for a density."""

    @property
    @abstractmethod
    def finest(self) -> float:
        """What every scale is above."""

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) in nats, element by element: output (B, 2C, H, W), x (B, C, H, W)."""

    @abstractmethod
    def quantity(self, rng: Rng, x: Tensor) -> Tensor:
        """A draw at location 0 and scale 1, shaped as x."""

    def read(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and scales, each (B, C, H, W); ValueError for an odd number of channels."""
        if output.shape[1] % 2:
            raise ValueError(f"the network made {output.shape[1]} channels; a likelihood needs two for each of x")
        location, raw = output.chunk(2, dim=1)
        scale = (_LIMIT * torch.tanh(raw / _LIMIT)).exp()
        return location, (scale.square() + self.finest**2).sqrt()

    def mean(self, output: Tensor) -> Tensor:
        """The location: (B, C, H, W), of grey levels limited to [-1, 1]."""
        location, _ = self.read(output)
        return location if self.grey_levels is None else location.clamp(-1, 1)

    def draw(self, output: Tensor, rng: Rng) -> Tensor:
        """A draw of x: (B, C, H, W), on grey levels where there are any."""
        location, scale = self.read(output)
        x = location + scale * self.quantity(rng, location)
        if self.grey_levels is None:
            return x
        steps = (self.grey_levels - 1) / 2
        return ((x.clamp(-1, 1) + 1) * steps).round() / steps - 1


@dataclass(frozen=True)
class _Discretised(Likelihood):
    """A distribution integrated over each of `levels` equal grey levels in [-1, 1], 256 for 8 bits."""

    levels: int = 256

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels = {self.levels}; grey levels are at least two, 256 for 8 bits")

    @property
    def grey_levels(self) -> int:
        return self.levels

    @property
    def finest(self) -> float:
        return 1 / (16 * (self.levels - 1))  # a level then holds all but 1e-6 of the probability


@dataclass(frozen=True)
class DiscretisedLogistic(_Discretised):
    """A logistic distribution, integrated over each of `levels` grey levels (Salimans et al. 2017)."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        location, scale = self.read(output)
        half = 1 / (self.levels - 1)
        above, below = (x - location + half) / scale, (x - location - half) / scale
        # F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)), of which every factor has an exact logarithm
        log_above, log_not_below = F.logsigmoid(above), F.logsigmoid(-below)
        inside = log_above + log_not_below + torch.log(-torch.expm1(-2 * half / scale))
        return torch.where(x < -1 + half, log_above, torch.where(x > 1 - half, log_not_below, inside))

    def quantity(self, rng: Rng, x: Tensor) -> Tensor:
        u = rng.uniform(x.shape[1:])
        return torch.logit(u, eps=1e-12).to(x.device, x.dtype)


@dataclass(frozen=True)
class DiscretisedNormal(_Discretised):
    """A normal distribution, integrated over each of `levels` grey levels (Ho et al. 2020, eq. 13)."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        location, scale = self.read(output)
        return discretised_log_prob(x, Gaussian(location, scale.square()), self.levels)

    def quantity(self, rng: Rng, x: Tensor) -> Tensor:
        return rng.normal_like(x)


@dataclass(frozen=True)
class Normal(Likelihood):
    """A normal density with a standard deviation of at least `least`: for latents, of unit scale.

    Where the data never varies a density grows without bound, and a training would follow it there; `least` says how
    exact a latent has to be.
    """

    least: float = 0.1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.least) and self.least > 0):
            raise ValueError(f"least = {self.least}; give a standard deviation above 0, such as 0.1")

    @property
    def grey_levels(self) -> None:
        return None

    @property
    def finest(self) -> float:
        return self.least

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        location, scale = self.read(output)
        return -0.5 * (((x - location) / scale).square() + math.log(2 * math.pi)) - scale.log()

    def quantity(self, rng: Rng, x: Tensor) -> Tensor:
        return rng.normal_like(x)


@dataclass(frozen=True)
class VaeSettings:
    """How a VAE is sampled.

    temperature: the standard deviation of every u; 1 is the model's own prior, 0 its mode. draw: whether what is shown
    is a draw from p(x | z), with the noise that it holds, rather than its mean.
    """

    temperature: float = 1.0
    draw: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}; give 0 or more, where 1 is the model's own prior")


class Draw(NamedTuple):
    """One draw of z from the posterior for each row of x, and what it costs; nats."""

    reconstruction: Tensor  # (B,) -log p(x | z)
    kl: Tensor  # (B, levels) KL of each level, given the draws of those before it
    log_weight: Tensor  # (B,) log w
    means: tuple[Tensor, ...]  # (B, ...) of u under the posterior, a level each: 0 where it says what the prior says


class VaeGenerator(Configured, nn.Module):
    """Makes z of `space` in one network call under a condition; `reads` is the space of the text encoder.

    The network has `latents`, the shapes of its levels' u; `context`, None where it does not read tokens (which it then
    is not given); `forward(x, noise, condition)`, the parameters of p(x | z) and a mean, a log standard deviation and a
    draw of u a level; and `generate(condition, *u)`. Raises ValueError for grey levels of latents, which have none.
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("vae_network")],
        likelihood: Likelihood,
        space: Space,
        *,
        reads: Space | None = None,
        settings: VaeSettings = VaeSettings(),
    ) -> None:
        super().__init__()
        if likelihood.grey_levels is not None and space.kind != "pixels":
            raise ValueError(
                f"a {type(likelihood).__name__} is of grey levels, and {space.kind} have none; give Normal()"
            )
        self.network: Any = network
        self.likelihood = likelihood
        self.space = space
        self.reads = reads
        self.settings = settings

    def start(
        self,
        shape: Sequence[int],
        condition: Condition,
        null: Condition,
        rng: Rng,
        settings: VaeSettings | None = None,
    ) -> Rounds:
        """One z of `shape` (without the batch) for each stream of the rng, by one call of the network.

        `null` plays no part: a VAE is not guided. Raises ValueError for another shape than the space's.
        """
        chosen = settings or self.settings
        if tuple(shape) != tuple(self.space.shape):
            raise ValueError(
                f"this VAE makes {tuple(self.space.shape)} and was asked for {tuple(shape)}; ask for its own"
            )
        noise = [chosen.temperature * u for u in self._noise(rng.fork("prior"))]
        ((output,),) = yield Round((Ask(self.network.generate, (self._told(condition), *noise)),))
        if chosen.draw:
            return self.likelihood.draw(output, rng.fork("likelihood"))
        return self.likelihood.mean(output)

    def posterior(self, x: Tensor, condition: Condition, rng: Rng) -> Draw:
        """One draw from the posterior of each row of x (B, *space.shape), under its condition. Differentiable."""
        noise = self._noise(rng.fork("posterior"))
        output, levels = self.network(x, noise, self._told(condition))
        precise = torch.promote_types(output.dtype, torch.float32)
        reconstruction = -_rows(self.likelihood.log_prob(output.to(precise), x.to(precise)))
        costs, log_weight = [], -reconstruction
        for (mean, logstd, u), eps in zip(levels, noise, strict=True):
            costs.append(_rows(kl(Gaussian(mean, (2 * logstd).exp()), Gaussian(torch.zeros_like(mean), 1.0))))
            log_weight = log_weight + _rows((eps.to(u.dtype).square() - u.square()) / 2 + logstd)
        return Draw(reconstruction, torch.stack(costs, 1), log_weight, tuple(level[0] for level in levels))

    def _noise(self, rng: Rng) -> tuple[Tensor, ...]:
        device = next(self.network.parameters()).device
        return tuple(rng.fork(i).normal(shape).to(device) for i, shape in enumerate(self.network.latents))

    def _told(self, condition: Condition) -> Condition:
        return condition.drop(["tokens"]) if self.network.context is None else condition


def _rows(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


class VaeBound(NamedTuple):
    """A bound from K draws a row, nats; its parts are means over the draws."""

    reconstruction: Tensor  # (B,) E[-log p(x | z)]
    kl: Tensor  # (B, levels)
    importance: Tensor  # (B,) -log 1/K sum of the weights
    draws: int
    dimensions: int

    @property
    def elbo(self) -> Tensor:
        """-ELBO, the sum of the parts: (B,)."""
        return self.reconstruction + self.kl.sum(1)

    @property
    def total(self) -> Tensor:
        """-log p(x) at the most, (B,): importance-weighted; of a single draw the parts' sum, which varies less."""
        return self.importance if self.draws > 1 else self.elbo

    @property
    def bits_per_dim(self) -> Tensor:
        """The total in bits a dimension: (B,)."""
        return self.total / (self.dimensions * math.log(2))


def vae_bound(
    generator: VaeGenerator,
    x: Tensor,
    condition: Condition,
    rng: Rng,
    *,
    terms: int = 1,
    called: Callable[[], None] = lambda: None,
) -> VaeBound:
    """The bound of x (B, *space.shape) from `terms` draws of z a row: one network call each, then `called()`."""
    if terms < 1:
        raise ValueError(f"terms = {terms}; a bound takes at least one draw of z")
    draws = []
    for k in range(terms):
        draws.append(generator.posterior(x, condition, rng.fork("draw", k)))
        called()
    weights = torch.stack([draw.log_weight for draw in draws])
    return VaeBound(
        torch.stack([draw.reconstruction for draw in draws]).mean(0),
        torch.stack([draw.kl for draw in draws]).mean(0),
        math.log(terms) - weights.logsumexp(0),
        terms,
        x[0].numel(),
    )


def collapse(bits: Sequence[float]) -> str | None:
    """What is to be said of levels that hold so many bits a picture each, coarsest first; None where all say something.

    A level whose posterior is its prior is switched off: it costs nothing and says nothing (Bowman et al. 2016).
    """
    gone = [level for level, held in enumerate(bits, 1) if held < _COLLAPSED]
    advice = "a longer objective.warmup or some objective.free_bits in training may hold it open"
    if not gone:
        return None
    if len(gone) == len(bits):
        return (
            f"the posterior has collapsed onto the prior: z holds {sum(bits):.2g} bits of a picture, so that what is "
            f"made depends on the condition alone; {advice}"
        )
    which = " and ".join(f"{level} ({bits[level - 1]:.2g} bits a picture)" for level in gone)
    return f"of {len(bits)} levels of z, coarsest first, the posterior has collapsed in {which}; {advice}"


@dataclass(frozen=True)
class VaeObjective:
    """What is minimised: -log p(x | z) plus what z costs. The defaults are the ELBO.

    beta: the weight of the KL (Higgins et al. 2017). warmup: over how many pictures (steps times batch) it rises from 0
    in a straight line; 0 for none. free_bits: of each level's KL, a picture.
    """

    beta: float = 1.0
    warmup: int = 0
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        for name in ("beta", "warmup", "free_bits"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} = {value}; give 0 or more")

    def weight(self, numbers: Sequence[int]) -> Tensor:
        """beta for the pictures that have these numbers in the run: (B,)."""
        seen = torch.tensor(numbers, dtype=torch.float64)
        return self.beta * ((seen / self.warmup).clamp(max=1) if self.warmup else torch.ones_like(seen))

    def __call__(
        self, generator: VaeGenerator, x: Tensor, condition: Condition, rng: Rng
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of each row in bits a dimension, (B,), and the means of its parts, unweighted."""
        draw = generator.posterior(x, condition, rng)
        costs = draw.kl.clamp(min=self.free_bits * math.log(2)) if self.free_bits else draw.kl
        bits = x[0].numel() * math.log(2)
        beta = self.weight(rng.numbers()).to(draw.kl)
        parts = {"reconstruction": draw.reconstruction, "kl": draw.kl.sum(1)}
        rows = (draw.reconstruction + beta * costs.sum(1)) / bits
        return rows, {name: part.detach().mean() / bits for name, part in parts.items()}
