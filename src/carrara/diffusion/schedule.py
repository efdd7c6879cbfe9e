r"""Schedules: how much of the data and how much noise there is at time t.

    q(x_t | x) = N(alpha_t x, sigma_t^2 I),   t = 0 is data, t = 1 is noise,   logsnr = log(alpha_t^2 / sigma_t^2)

A schedule maps t to (alpha_t, sigma_t) and a log-SNR back to t, in float64: Python floats for a float, tensors for a
tensor, equal bit for bit. `t_min` and `t_max` bound the times at which the log-SNR is finite; grids may still begin
at 1 and end at 0.

Sources: DDPM (Ho et al. 2020, section 4), LDM (Rombach et al. 2022), iDDPM (Nichol & Dhariwal 2021, eq. 17),
EDM (Karras et al. 2022, table 1), flow matching (Lipman et al. 2023), score SDEs (Song et al. 2021, appendix B),
Jabri et al. 2022 and Chen 2023 (sigmoid). A schedule that is learned (VDM) is in `learned.py`.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

__all__ = [
    "Cosine",
    "CosineBetas",
    "GivenBetas",
    "Linear",
    "LinearBetas",
    "LinearVP",
    "ScaledLinearBetas",
    "Schedule",
    "Sigmoid",
    "SigmoidBetas",
    "Tabulated",
    "VarianceExploding",
]


class Schedule(ABC):
    """alpha and sigma over time. Subclasses are frozen and write each formula once, for float64 tensors."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The smallest time with a finite log-SNR."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The largest time with a finite log-SNR."""

    @abstractmethod
    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), shaped as t."""

    @abstractmethod
    def _time(self, logsnr: Tensor) -> Tensor:
        """t at a log-SNR, shaped as it; what lies beyond [t_min, t_max] is clamped by `time`."""

    @overload
    def __call__(self, t: float) -> tuple[float, float]: ...
    @overload
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def __call__(self, t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """(alpha_t, sigma_t) at t in [0, 1], float64; ValueError outside."""
        if isinstance(t, Tensor):
            t = t.detach().to("cpu", torch.float64)
            if not bool(((t >= 0) & (t <= 1)).all()):
                raise ValueError(f"times from {t.min().item()} to {t.max().item()}; expected times in [0, 1]")
            return self._scales(t)
        if not 0 <= t <= 1:
            raise ValueError(f"t = {t}; expected a time in [0, 1], 0 for data and 1 for noise")
        return self._at(float(t))

    def _at(self, t: float) -> tuple[float, float]:
        return self._cached(t)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - schedules are small frozen values; a grid asks for the same times again
    def _cached(self, t: float) -> tuple[float, float]:
        alpha, sigma = self._scales(_scalar(t))  # not `math`, whose last bit can differ from PyTorch's
        return alpha.item(), sigma.item()

    @overload
    def time(self, logsnr: float) -> float: ...
    @overload
    def time(self, logsnr: Tensor) -> Tensor: ...
    def time(self, logsnr: float | Tensor) -> float | Tensor:
        """The inverse: the t at which log(alpha_t^2 / sigma_t^2) equals `logsnr`, clamped to [t_min, t_max]."""
        if isinstance(logsnr, Tensor):
            bounded = logsnr.detach().to("cpu", torch.float64).clamp(-1e3, 1e3)  # no schedule goes there
            return self._time(bounded).clamp(self.t_min, self.t_max)
        return self.time(_scalar(logsnr)).item()

    @overload
    def logsnr(self, t: float) -> float: ...
    @overload
    def logsnr(self, t: Tensor) -> Tensor: ...
    def logsnr(self, t: float | Tensor) -> float | Tensor:
        """log(alpha_t^2 / sigma_t^2); +inf where sigma is 0, -inf where alpha is 0."""
        if isinstance(t, Tensor):
            alpha, sigma = self(t)
            return 2 * (alpha.log() - sigma.log())
        return self._logsnr_at(float(t))

    def _logsnr_at(self, t: float) -> float:
        return self._cached_logsnr(t)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - as above
    def _cached_logsnr(self, t: float) -> float:
        return self.logsnr(_scalar(t)).item()

    def slope(self, t: Tensor) -> Tensor:
        """d logsnr / dt < 0 at times of [t_min, t_max], shaped as t: what the continuous-time bound integrates over."""
        with torch.enable_grad():
            at = t.detach().to("cpu", torch.float64).clone().requires_grad_()
            alpha, sigma = self._scales(at)
            (slope,) = torch.autograd.grad(2 * (alpha.log() - sigma.log()).sum(), at)
        return slope


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _sigmoid(x: Tensor) -> Tensor:
    # torch.sigmoid rounds differently at different places of a tensor; a row must not depend on its batch
    return 1 / (1 + torch.exp(-x))


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _sinh(x: Tensor) -> Tensor:
    return (torch.expm1(x) - torch.expm1(-x)) / 2


class Tabulated(Schedule):
    r"""A schedule given by T betas: entries at t = i/T, alpha_bar_i = prod_{j<=i} (1 - beta_j), alpha_bar_0 = 1.

    Entries are exact: a t within 1e-9 of i/T takes entry i. Between entries the log-SNR is interpolated linearly in t;
    0 < t < 1/T is refused, since the table says nothing there.
    """

    @abstractmethod
    def betas(self) -> Tensor:
        """The T variances of the forward steps, float64, each in (0, 1]."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """T, the number of forward steps."""

    @functools.cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        betas = self.betas()
        log_bar = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), torch.log1p(-betas).cumsum(0)])
        alpha, sigma = torch.exp(log_bar / 2), torch.sqrt(-torch.expm1(log_bar))
        return alpha, sigma, 2 * (alpha.log() - sigma.log())

    @property
    def t_min(self) -> float:
        return 1 / self.steps

    @property
    def t_max(self) -> float:
        return 1.0 if bool(self._table[0][-1] > 0) else 1 - 1 / self.steps

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t * self.steps
        nearest = position.round()
        exact = (position - nearest).abs() < 1e-9 * self.steps
        if bool((~exact & (position < 1)).any()):
            bad = position[~exact & (position < 1)].min().item() / self.steps
            raise ValueError(
                f"t = {bad:g} lies before the table's first entry 1/{self.steps}; "
                f"a tabulated schedule knows t = 0 and t from {1 / self.steps:g} to 1"
            )
        alphas, sigmas, logsnrs = self._table
        entry = nearest.long()
        if bool(exact.all()):  # as nearly always; nothing lies between
            return alphas[entry], sigmas[entry]
        below = position.floor().clamp(1, self.steps - 1 if self.steps > 1 else 1).long()
        above = (below + 1).clamp(max=self.steps)
        share = position - below
        between = logsnrs[below] * (1 - share) + logsnrs[above] * share
        alpha = torch.where(exact, alphas[entry], _sigmoid(between).sqrt())
        sigma = torch.where(exact, sigmas[entry], _sigmoid(-between).sqrt())
        return alpha, sigma

    def _time(self, logsnr: Tensor) -> Tensor:
        table, wanted = self._table[2][1:], logsnr
        above = torch.searchsorted(-table, -wanted.reshape(-1)).clamp(1, max(self.steps - 1, 1)).reshape(wanted.shape)
        above = above.clamp(max=self.steps - 1)
        low, high = table[(above - 1).clamp(min=0)], table[above]
        share = torch.where(high != low, (wanted - low) / (high - low), 0.0).nan_to_num(0.0)
        return (above + share.clamp(0, 1)) / self.steps if self.steps > 1 else torch.ones_like(wanted)

    def slope(self, t: Tensor) -> Tensor:
        """That of the straight piece which t lies on; the later one of two where t is an entry."""
        finite = round(self.t_max * self.steps)
        if finite < 2:
            raise ValueError("a table of one step with a finite log-SNR has no slope; use two steps or more")
        position = t.detach().to("cpu", torch.float64) * self.steps
        below = (position + 1e-9 * self.steps).floor().clamp(1, finite - 1).long()
        logsnrs = self._table[2]
        return (logsnrs[below + 1] - logsnrs[below]) * self.steps


def _zero_terminal(betas: Tensor) -> Tensor:
    """Betas rescaled so that alpha_bar_T = 0 exactly and alpha_bar_1 stays (Lin et al. 2024, algorithm 1)."""
    root = torch.log1p(-betas).cumsum(0).div(2).exp()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root**2
    return 1 - bar / torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), bar[:-1]])


def _check_steps(steps: int, zero_terminal: bool = False) -> None:
    if steps < 1:
        raise ValueError(f"steps = {steps}; a table needs at least one forward step")
    if zero_terminal and steps < 2:
        raise ValueError(f"steps = {steps} with zero_terminal; the rescaling needs at least two forward steps")


def _check_ends(first: float, last: float) -> None:
    if not 0 < first <= last < 1:
        raise ValueError(f"betas from {first} to {last}; expected 0 < first <= last < 1")


@dataclass(frozen=True)
class LinearBetas(Tabulated):
    """DDPM's own: betas linear from `first` to `last` over T steps (Ho et al. 2020: 1e-4 to 0.02, T = 1000)."""

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.zero_terminal)
        _check_ends(self.first, self.last)

    def betas(self) -> Tensor:
        betas = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64, device="cpu")
        return _zero_terminal(betas) if self.zero_terminal else betas


@dataclass(frozen=True)
class ScaledLinearBetas(Tabulated):
    """Stable Diffusion's: the square roots of the betas are linear (0.00085 to 0.012, T = 1000)."""

    steps: int = 1000
    first: float = 0.00085
    last: float = 0.012
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.zero_terminal)
        _check_ends(self.first, self.last)

    def betas(self) -> Tensor:
        betas = torch.linspace(self.first**0.5, self.last**0.5, self.steps, dtype=torch.float64, device="cpu") ** 2
        return _zero_terminal(betas) if self.zero_terminal else betas


@dataclass(frozen=True)
class SigmoidBetas(Tabulated):
    """Betas that rise from `first` to `last` as a logistic curve does between -6 and 6 (Xu et al. 2022, GeoDiff)."""

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.zero_terminal)
        _check_ends(self.first, self.last)

    def betas(self) -> Tensor:
        curve = torch.linspace(-6, 6, self.steps, dtype=torch.float64, device="cpu")
        betas = self.first + (self.last - self.first) * _sigmoid(curve)
        return _zero_terminal(betas) if self.zero_terminal else betas


@dataclass(frozen=True)
class CosineBetas(Tabulated):
    """iDDPM's: alpha_bar = cos^2((u + s)/(1 + s) pi/2), betas clipped at `largest` (Nichol & Dhariwal 2021)."""

    steps: int = 1000
    s: float = 0.008
    largest: float = 0.999
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.zero_terminal)
        if not 0 < self.largest < 1:
            raise ValueError(f"largest = {self.largest}; expected a largest beta in (0, 1)")

    def betas(self) -> Tensor:
        u = torch.arange(self.steps + 1, dtype=torch.float64, device="cpu") / self.steps
        bar = torch.cos((u + self.s) / (1 + self.s) * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=self.largest)
        return _zero_terminal(betas) if self.zero_terminal else betas


@dataclass(frozen=True)
class GivenBetas(Tabulated):
    """A table of betas of one's own."""

    values: tuple[float, ...]
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        _check_steps(len(self.values), self.zero_terminal)
        if not all(0 < beta <= 1 for beta in self.values):
            raise ValueError("a beta lies outside (0, 1]; each is the variance that one forward step adds")
        if 1 in self.values[:-1]:
            raise ValueError("a beta before the last is 1, which leaves no data; only the last may be 1")
        if self.zero_terminal and self.values[-1] == 1:
            raise ValueError("the last beta is 1: the table ends in pure noise as it is; leave zero_terminal out")

    @property
    def steps(self) -> int:
        return len(self.values)

    def betas(self) -> Tensor:
        betas = torch.tensor(self.values, dtype=torch.float64, device="cpu")
        return _zero_terminal(betas) if self.zero_terminal else betas


# Between these log-SNRs alpha and sigma are both at least 4.5e-5: far below what a picture of 8 bits can show.
_LOGSNR_BOUND = 20.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Continuous cosine, variance preserving: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    @property
    def t_min(self) -> float:
        return 2 / math.pi * math.atan(math.exp(-_LOGSNR_BOUND / 2))

    @property
    def t_max(self) -> float:
        return 1 - self.t_min

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin(pi (1 - t) / 2) is exactly 0 at t = 1, where cos(pi t / 2) is 6e-17
        return torch.sin((1 - t) * (math.pi / 2)), torch.sin(t * (math.pi / 2))

    def _time(self, logsnr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-logsnr / 2))


@dataclass(frozen=True)
class Sigmoid(Schedule):
    r"""Continuous sigmoid, variance preserving (Jabri et al. 2022; Chen 2023, algorithm 1).

        alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)),   S(v) = sigmoid(v / tau)

    A difference of two S is a product of hyperbolic functions, so that alpha and sigma keep their digits at both ends:
    alpha^2 : sigma^2 = sinh((1 - t) w) cosh(start / 2 tau) : sinh(t w) cosh(end / 2 tau), w = (end - start) / 2 tau.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not (self.start < self.end and self.tau > 0 and max(abs(self.start), abs(self.end)) <= 100 * self.tau):
            raise ValueError(
                f"start {self.start}, end {self.end}, tau {self.tau}; "
                "expected start < end, and a tau > 0 of at least a hundredth of either"
            )

    @property
    def _width(self) -> float:
        return (self.end - self.start) / (2 * self.tau)

    @functools.cached_property
    def _cosh(self) -> tuple[float, float]:
        return math.cosh(self.start / (2 * self.tau)), math.cosh(self.end / (2 * self.tau))

    @functools.cached_property
    def t_min(self) -> float:
        return self._time(_scalar(_LOGSNR_BOUND)).item()

    @functools.cached_property
    def t_max(self) -> float:
        return self._time(_scalar(-_LOGSNR_BOUND)).item()

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        data = _sinh((1 - t) * self._width) * self._cosh[0]
        noise = _sinh(t * self._width) * self._cosh[1]
        return (data / (data + noise)).sqrt(), (noise / (data + noise)).sqrt()

    def _time(self, logsnr: Tensor) -> Tensor:
        ratio = logsnr + math.log(self._cosh[1] / self._cosh[0])
        return (_softplus(self._width - ratio) - _softplus(-self._width - ratio)) / (2 * self._width)


@dataclass(frozen=True)
class LinearVP(Schedule):
    r"""The variance-preserving SDE with a linear rate (Song et al. 2021, eq. 33): DDPM's own table in continuous time.

    alpha = exp(-B/2),  sigma^2 = 1 - exp(-B),  B(t) = beta_min t + (beta_max - beta_min) t^2 / 2
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max <= 1000:
            raise ValueError(f"rates {self.beta_min} to {self.beta_max}; expected 0 < beta_min <= beta_max <= 1000")

    @functools.cached_property
    def t_min(self) -> float:
        return self._time(_scalar(_LOGSNR_BOUND)).item()

    @property
    def t_max(self) -> float:
        return 1.0

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rate = t * (self.beta_min + t * ((self.beta_max - self.beta_min) / 2))
        return torch.exp(-rate / 2), torch.sqrt(-torch.expm1(-rate))

    def _time(self, logsnr: Tensor) -> Tensor:
        rate = _softplus(-logsnr)  # the root of the quadratic, without its cancellation
        return 2 * rate / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * rate))


@dataclass(frozen=True)
class Linear(Schedule):
    """Flow matching's straight line (rectified flow, SD3, FLUX): alpha = 1 - t, sigma = t."""

    @property
    def t_min(self) -> float:
        return 1 / (1 + math.exp(_LOGSNR_BOUND / 2))

    @property
    def t_max(self) -> float:
        return 1 - self.t_min

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def _time(self, logsnr: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(logsnr / 2))


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    """EDM's: alpha = 1, sigma = t sigma_max. Data is left as it is and drowned (Karras et al. 2022)."""

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not self.sigma_max > 0:
            raise ValueError(f"sigma_max = {self.sigma_max}; expected a positive largest noise level")

    @property
    def t_min(self) -> float:
        return math.exp(-_LOGSNR_BOUND / 2) / self.sigma_max

    @property
    def t_max(self) -> float:
        return 1.0

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t * self.sigma_max

    def _time(self, logsnr: Tensor) -> Tensor:
        return torch.exp(-logsnr / 2) / self.sigma_max
