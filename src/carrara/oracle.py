r"""Data whose optimal denoiser is known: what samplers, losses and likelihoods are checked against, without training.

    p(x) = sum_k w_k N(m_k, S_k),      V_k = alpha^2 S_k + sigma^2 I
    gamma_k(x_t) = softmax_k [ log w_k + log N(x_t; alpha m_k, V_k) ]
    E[x | x_t]   = sum_k gamma_k mu_k,          mu_k = m_k + alpha S_k V_k^-1 (x_t - alpha m_k)
    Cov[x | x_t] = sum_k gamma_k (sigma^2 S_k V_k^-1 + (mu_k - E)(mu_k - E)^T),     dE/dx_t = alpha / sigma^2 Cov

`Mixture` is a mixture of normals, `FiniteData` the limit S_k = 0: a list of points. A single normal is the mixture of
one. Everything is computed in float64, exactly, and each row of x may have any shape.

    from carrara.diffusion import Linear, Plain, Process, guide, heun, uniform
    from carrara.oracle import Mixture
    from carrara.rng import Rng
    from carrara.run import finish

    data = Mixture([0.3, 0.7], [[-1.0, 0.0], [0.5, 1.0]], stds=[0.2, 0.4])
    process, rng = Process(Linear()), Rng.seeds(range(256))
    sampling = heun(process, rng.normal((2,)), uniform(process.schedule, steps=32), rng=rng)
    x = finish(guide(sampling, Plain(), data.denoiser(process)))  # (256, 2), as good as the sampler is
    print(data.log_prob(x).mean())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.parameterization import X0, IntegerStep, Level, Parameterization, ScaledTime
from carrara.diffusion.process import Process, Scale
from carrara.diffusion.schedule import Tabulated
from carrara.rng import Rng
from carrara.types import Condition

__all__ = ["FiniteData", "Mixture", "Oracle"]


class _Parts(NamedTuple):
    """The components, each covariance as Q diag(values) Q^T; `vectors` None is Q = I."""

    log_weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    values: Tensor  # (K, D), or (K, 1) for multiples of I
    vectors: Tensor | None  # (K, D, D), columns


class _At(NamedTuple):
    """What a noisy row says of each component."""

    log_joint: Tensor  # (B, K) log w_k N(x_t; alpha m_k, V_k)
    mean: Tensor  # (B, K, D) mu_k
    pull: Tensor  # (B, K, D) -V_k^-1 (x_t - alpha m_k), the component's own score
    var: Tensor  # (B, K, D or 1) eigenvalues of sigma^2 S_k V_k^-1


class Oracle(ABC):
    """Data about which everything is known at every noise level."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of a row."""

    @property
    @abstractmethod
    def _parts(self) -> _Parts:
        """The components."""

    def denoiser(self, process: Process) -> Denoiser:
        """The optimal denoiser: E[x | x_t] to float64, for samplers, guidance, losses and likelihoods."""
        schedule = process.schedule
        level: Level = IntegerStep(schedule.steps) if isinstance(schedule, Tabulated) else ScaledTime(1.0)
        return Denoiser(self.network(process, X0(), level), process, X0(), level)

    def network(self, process: Process, parameterization: Parameterization, level: Level) -> nn.Module:
        """The raw F for which Denoiser(F, process, parameterization, level) is the optimal denoiser.

        It reads the time out of the level as a trained network would, and looks at no condition. The level has to
        grow or fall with t.
        """
        return _Network(self, process, parameterization, level)

    def mean(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """E[x | x_t], shaped as x_t; differentiable in x_t."""
        at, gamma = self._posterior(x_t, t, process)
        return (gamma[..., None] * at.mean).sum(1).to(x_t.dtype).view_as(x_t)

    def score(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """grad log q(x_t), shaped as x_t: (alpha E[x | x_t] - x_t) / sigma^2, summed here over the components' own."""
        at, gamma = self._posterior(x_t, t, process)
        return (gamma[..., None] * at.pull).sum(1).to(x_t.dtype).view_as(x_t)

    def log_prob_t(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """log q(x_t) in nats: (B,) float64."""
        return self._at(x_t, *process.schedule(t)).log_joint.logsumexp(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of clean data in nats: (B,) float64. Raises ValueError for data without a density."""
        if not bool((self._parts.values > 0).all()):
            raise ValueError("points and flat components have no density; ask for log_prob_t at a noise level")
        return self._at(x, 1.0, 0.0).log_joint.logsumexp(1)

    def responsibilities(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """P(component | x_t): (B, K) float64, the optimal classifier of noisy data."""
        return self._posterior(x_t, t, process)[1]

    def covariance(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """Cov[x | x_t]: (B, D, D) float64."""
        at, gamma = self._posterior(x_t, t, process)
        away = at.mean - (gamma[..., None] * at.mean).sum(1, keepdim=True)
        between = torch.einsum("bk,bki,bkj->bij", gamma, away, away)
        vectors = self._parts.vectors
        if vectors is None:
            inside = (gamma[..., None] * at.var.expand_as(at.mean)).sum(1).diag_embed()
        else:
            inside = torch.einsum("bk,kid,bkd,kjd->bij", gamma, vectors, at.var, vectors)
        return inside + between

    def jacobian(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """dE[x | x_t] / dx_t = alpha / sigma^2 Cov[x | x_t]: (B, D, D) float64, for t > 0."""
        alpha, sigma = (_column(scale, 3, x_t) for scale in process.schedule(t))
        return self.covariance(x_t, t, process) * (alpha / sigma**2)

    def variance(self, x_t: Tensor, t: Scale, process: Process) -> Tensor:
        """tr Cov[x | x_t], the least expected |x - x_hat|^2 that anything can have at this x_t: (B,) float64."""
        at, gamma = self._posterior(x_t, t, process)
        away = at.mean - (gamma[..., None] * at.mean).sum(1, keepdim=True)
        return (gamma * (at.var.expand_as(at.mean) + away**2).sum(2)).sum(1)

    def floor(self, process: Process, t: Scale, rng: Rng) -> Tensor:
        """The training floor at t, a draw of x_t a stream: (B,) float64, whose mean is min E|x - x_hat|^2.

        A loss below it has seen the answer. For one normal every draw is the floor itself.
        """
        x = self.sample(rng.fork("data"))
        return self.variance(process.diffuse(x, t, rng.fork("noise").normal_like(x)), t, process)

    def sample(self, rng: Rng) -> Tensor:
        """A draw of the data for each stream: (B, *shape) float64."""
        parts = self._parts
        edges = parts.log_weights.exp().cumsum(0)
        k = torch.searchsorted(edges, rng.fork("component").uniform() * edges[-1], right=True).clamp(max=len(edges) - 1)
        noise = parts.values[k].sqrt() * rng.fork("normal").normal((parts.means.shape[1],)).double()
        if parts.vectors is not None:
            noise = torch.einsum("bid,bd->bi", parts.vectors[k], noise)
        return (parts.means[k] + noise).view(len(k), *self.shape)

    def _posterior(self, x_t: Tensor, t: Scale, process: Process) -> tuple[_At, Tensor]:
        at = self._at(x_t, *process.schedule(t))
        return at, at.log_joint.softmax(1)

    def _at(self, x_t: Tensor, alpha: Scale, sigma: Scale) -> _At:
        parts = _Parts(*(None if part is None else part.to(x_t.device) for part in self._parts))  # type: ignore[arg-type]
        rows, dimensions = x_t.flatten(1).double(), parts.means.shape[1]
        if rows.shape[1] != dimensions:
            raise ValueError(f"rows of {tuple(x_t.shape[1:])}; this data has rows of {self.shape}")
        a, s = (_column(scale, 3, x_t) for scale in (alpha, sigma))
        V = a**2 * parts.values + s**2
        if not bool((V > 0).all()):
            raise ValueError("a point is known exactly where there is no noise; ask at a time t > 0")
        away = rows[:, None] - a * parts.means  # (B, K, D), here and below in each component's own axes
        if parts.vectors is not None:
            away = torch.einsum("kid,bki->bkd", parts.vectors, away)
        squares = (away**2 / V).sum(2) + V.log().expand_as(away).sum(2)
        log_joint = parts.log_weights - (squares + dimensions * math.log(2 * math.pi)) / 2
        pull, shift = -away / V, a * parts.values / V * away
        if parts.vectors is not None:
            pull, shift = (torch.einsum("kid,bkd->bki", parts.vectors, v) for v in (pull, shift))
        var = (s**2 * parts.values / V).expand(len(rows), -1, -1)
        return _At(log_joint, parts.means + shift, pull, var)


@dataclass(frozen=True, eq=False)
class Mixture(Oracle):
    """A mixture of K normals: `weights` (K,), `means` (K, ...), and `covariances` (K, D, D) or `stds` (K,).

    Weights are scaled to sum to 1. Takes nested sequences or tensors, kept in float64; covariances may be singular.
    """

    weights: Any
    means: Any
    covariances: Any = None
    stds: Any = None

    def __post_init__(self) -> None:
        if (self.covariances is None) == (self.stds is None):
            raise ValueError("a mixture needs either covariances (K, D, D) or stds (K,), and not both")
        for name in ("weights", "means", "covariances", "stds"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _double(value))
        K, D = len(self.means), self.means[0].numel()
        wanted = {"weights": (K,), "covariances": (K, D, D), "stds": (K,)}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)}; {K} means of {D} numbers expect {shape}")
        if not bool((self.weights > 0).all()):
            raise ValueError(f"weights {self.weights.tolist()}; expected positive ones")
        if self.stds is not None and not bool((self.stds >= 0).all()):
            raise ValueError(f"stds {self.stds.tolist()}; expected none below 0")
        if self.covariances is not None and not torch.allclose(self.covariances, self.covariances.mT, atol=1e-12):
            raise ValueError("a covariance is not symmetric")
        _ = self._parts  # refuses covariances that are none

    @classmethod
    def gaussian(cls, mean: Any, std: float) -> Mixture:
        """One normal, N(mean, std^2 I), with rows of the mean's shape."""
        return cls([1.0], _double(mean)[None], stds=[std])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    @cached_property
    def _parts(self) -> _Parts:
        log_weights = (self.weights / self.weights.sum()).log()
        means = self.means.flatten(1)
        if self.stds is not None:
            return _Parts(log_weights, means, self.stds[:, None] ** 2, None)
        values, vectors = torch.linalg.eigh(self.covariances)
        if bool((values < -1e-10 * values.abs().max()).any()):
            raise ValueError(f"a covariance has the negative eigenvalue {values.min().item():g}")
        return _Parts(log_weights, means, values.clamp(min=0), vectors)


@dataclass(frozen=True, eq=False)
class FiniteData(Oracle):
    """A list of points (N, ...), equally likely or by `weights` (N,): what a data set is. The score of memorisation.

    The optimal denoiser is the mean of the points, each by exp(-|x_t - alpha x_k|^2 / (2 sigma^2)).
    """

    points: Any
    weights: Any = None

    def __post_init__(self) -> None:
        points = _double(self.points)
        weights = torch.ones(len(points), dtype=torch.float64) if self.weights is None else _double(self.weights)
        if weights.shape != (len(points),) or not bool((weights > 0).all()):
            raise ValueError(
                f"weights of shape {tuple(weights.shape)} for {len(points)} points; give each a positive one"
            )
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "weights", weights / weights.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape[1:])

    @cached_property
    def _parts(self) -> _Parts:
        means = self.points.flatten(1)
        return _Parts(self.weights.log(), means, torch.zeros(len(means), 1, dtype=torch.float64), None)


class _Network(nn.Module):
    """The optimal F of a parameterization; its times are found by bisection of the level."""

    def __init__(self, data: Oracle, process: Process, parameterization: Parameterization, level: Level) -> None:
        super().__init__()
        parameterization.check(process)
        self.data, self.process, self.parameterization, self.level = data, process, parameterization, level
        self.register_parameter("place", nn.Parameter(torch.empty(0), requires_grad=False))  # says the device
        self._times: dict[float, float] = {}

    def forward(self, x: Tensor, level: Tensor, condition: Condition = Condition()) -> Tensor:  # noqa: B008 - frozen
        """F(x, level): x (B, ...) as the denoiser has scaled it, level (B,)."""
        t = self._time(level)
        coefficients = self.parameterization(*self.process.schedule(t))
        x_t = x.double() / _column(coefficients.scale, x.ndim, x)
        return coefficients.output(x_t, self.data.mean(x_t, t, self.process)).to(x.dtype)

    def _time(self, level: Tensor) -> Tensor:
        values = level.detach().to("cpu", torch.float64).tolist()
        if new := sorted({value for value in values if value not in self._times}):
            found = self._inverse(torch.tensor(new, dtype=torch.float64))
            self._times.update(zip(new, found.tolist(), strict=True))
        return torch.tensor([self._times[value] for value in values], dtype=torch.float64)

    def _inverse(self, level: Tensor) -> Tensor:
        schedule = self.process.schedule
        low, high = torch.full_like(level, schedule.t_min), torch.ones_like(level)
        sign = 1.0 if bool((self.level(self.process, high) >= self.level(self.process, low)).all()) else -1.0
        for _ in range(64):
            middle = (low + high) / 2
            below = sign * self.level(self.process, middle) < sign * level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        if isinstance(schedule, Tabulated):  # a level in float32 has moved off its entry
            position = high * schedule.steps
            return torch.where((position - position.round()).abs() < 1e-4, position.round() / schedule.steps, high)
        return high


def _double(value: Any) -> Tensor:
    if isinstance(value, Sequence) and any(isinstance(row, Tensor) for row in value):
        value = torch.stack([_double(row) for row in value])
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()


def _column(scale: Scale, ndim: int, x: Tensor) -> Any:
    """A (B,) coefficient shaped (B, 1, ...) of `ndim` axes, in float64 on x's device; floats as they are."""
    return scale.to(x.device).view(-1, *[1] * (ndim - 1)) if isinstance(scale, Tensor) else scale
