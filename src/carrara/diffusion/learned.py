r"""A schedule that is learned with the network (Kingma et al. 2021, VDM, section 4 and appendix H).

    logsnr(t) = first + (last - first) u(tau),    tau = (t - t_min) / (1 - t_min),    u(0) = 0, u(1) = 1

`first` and `last` are learned, and so is the monotone interior u: a mixture of a straight line and of logistic curves,
each normalised to rise from 0 to 1, with positive weights that sum to 1. alpha^2 = sigmoid(logsnr) and
sigma^2 = sigmoid(-logsnr): variance preserving. Below t_min, sigma/alpha falls in proportion to t, so that t = 0 is
data, as in every schedule.

Of a continuous-time bound, the ends move the bound itself and the interior only how much it varies from draw to draw;
`paced` lets a loss teach the interior something else than the ends (see `LeastVariance` in `bound.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.diffusion.schedule import Schedule

__all__ = ["LearnedLogSNR"]

_T_MIN = 1e-3  # a grid of up to 1000 strides never visits the stretch below
_BISECTIONS = 60
_STEEPEST = math.log(200.0)  # of a curve, over the whole of time: finite in float64 wherever its centre is


class LearnedLogSNR(Configured, Schedule, nn.Module):
    """A log-SNR that falls from `first` at t_min to `last` at 1, both learned, along a learned monotone curve.

    Arithmetic is float64; parameters are float32 and belong to the denoiser that is made with the schedule. Tensors of
    times carry gradients to the parameters, and nothing is remembered between calls.
    """

    def __init__(self, *, first: float = 13.3, last: float = -5.0, curves: int = 16) -> None:
        super().__init__()
        if not -20 <= last < first <= 20 or curves < 1:
            raise ValueError(
                f"first {first}, last {last}, {curves} curves; expected 20 >= first > last >= -20, and a curve or more"
            )
        self.first = nn.Parameter(torch.tensor(float(first)))
        self.log_span = nn.Parameter(torch.tensor(math.log(first - last)))
        self.centres = nn.Parameter((torch.arange(curves) + 0.5) / curves)
        self.log_widths = nn.Parameter(torch.full((curves,), math.log(2.0 * curves)))
        self.shares = nn.Parameter(torch.tensor([math.log(curves), *[0.0] * curves]))  # softmax; the line's comes first
        self._pace: Tensor | None = None

    @property
    def t_min(self) -> float:
        return _T_MIN

    @property
    def t_max(self) -> float:
        return 1.0

    @contextmanager
    def paced(self, pace: Tensor) -> Iterator[None]:
        """Within, gradients that reach the interior through row i are multiplied by pace[i], as it is on the way back.

        Calls within must be for times (B,), one for each entry of `pace`.
        """
        self._pace = pace
        try:
            yield
        finally:
            self._pace = None

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        shares, centres, widths = (p.to("cpu", torch.float64) for p in (self.shares, self.centres, self.log_widths))
        return torch.softmax(shares, 0), centres.clamp(-1, 2), 1 + torch.exp(widths.clamp(max=_STEEPEST))

    def _interior(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """u and du/dtau, shaped as tau.

        A difference of logistic functions is a quotient of hyperbolic ones, which loses no digits in their tails.
        """
        shares, centre, w = self._mixture()
        half, away = w * tau[..., None] / 2, torch.cosh(w * (tau[..., None] - centre) / 2)
        whole = torch.cosh(w * (1 - centre) / 2) / torch.sinh(w / 2)
        u = shares[0] * tau + (torch.sinh(half) * whole / away * shares[1:]).sum(-1)
        slope = shares[0] + (w / 2 * torch.cosh(w * centre / 2) * whole / away**2 * shares[1:]).sum(-1)
        return self._paced(u), self._paced(slope)

    def _paced(self, value: Tensor) -> Tensor:
        pace = self._pace
        if pace is not None and value.requires_grad and value.shape == pace.shape:
            value = value.clone()
            value.register_hook(lambda gradient: gradient * pace)  # type: ignore[no-untyped-call]
        return value

    def _logsnr(self, t: Tensor) -> Tensor:
        u, _ = self._interior((t.clamp(min=_T_MIN) - _T_MIN) / (1 - _T_MIN))
        first, log_span = self.first.to("cpu", torch.float64), self.log_span.to("cpu", torch.float64)
        return first - torch.exp(log_span) * u - 2 * torch.log(t.clamp(max=_T_MIN) / _T_MIN)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        data = t == 0  # apart, since the root of 0 has no gradient
        logsnr = self._logsnr(torch.where(data, _T_MIN, t))
        alpha, sigma = _sigmoid(logsnr).sqrt(), _sigmoid(-logsnr).sqrt()
        return torch.where(data, 1.0, alpha), torch.where(data, 0.0, sigma)

    def slope(self, t: Tensor) -> Tensor:
        """d logsnr / dt, differentiable in the parameters."""
        at = t.detach().to("cpu", torch.float64)
        _, rise = self._interior((at.clamp(min=_T_MIN) - _T_MIN) / (1 - _T_MIN))
        inside = -torch.exp(self.log_span.to("cpu", torch.float64)) * rise / (1 - _T_MIN)
        return torch.where(at >= _T_MIN, inside, -2 / at)

    @torch.no_grad()
    def _time(self, logsnr: Tensor) -> Tensor:
        low, high = torch.full_like(logsnr, _T_MIN), torch.ones_like(logsnr)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            early = self._logsnr(middle) > logsnr
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return (low + high) / 2

    # Floats are what they are now, and not what they were: parameters change.

    def _at(self, t: float) -> tuple[float, float]:
        with torch.no_grad():
            alpha, sigma = self._scales(torch.tensor(t, dtype=torch.float64, device="cpu"))
            return alpha.item(), sigma.item()

    def _logsnr_at(self, t: float) -> float:
        with torch.no_grad():
            return self.logsnr(torch.tensor(t, dtype=torch.float64, device="cpu")).item()

    def extra_repr(self) -> str:
        """What it is now."""
        last: Any = self.first - torch.exp(self.log_span)
        return f"logsnr from {self.first.item():.4g} to {last.item():.4g}"


def _sigmoid(x: Tensor) -> Tensor:
    # not torch.sigmoid, which rounds differently at different places of a tensor
    return 1 / (1 + torch.exp(-x))
