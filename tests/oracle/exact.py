"""What the samplers must do on data N(m, q^2), written again from the papers, in numpy and in their own symbols.

With Gaussian data the optimal denoiser is affine, so is every sampler, and a whole sampling is a vector of coefficients
over (1, x, z_1, z_2, ...): the constant, the noise that it began with, and each noise that was added on the way.
Nothing here calls the package: alpha and sigma come from the papers' formulas, the updates from the papers' algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Vector = np.ndarray
Scales = Callable[[float], tuple[float, float]]  # t -> (alpha_t, sigma_t)


# Schedules


def table(betas: np.ndarray) -> Scales:
    """alpha_bar = cumprod(1 - beta); between entries the log-SNR is linear in t."""
    T = len(betas)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    with np.errstate(divide="ignore"):
        snr = np.log(alpha_bar) - np.log1p(-alpha_bar)

    def scales(t: float) -> tuple[float, float]:
        entry = round(t * T)
        if abs(t * T - entry) < 1e-7:
            return math.sqrt(alpha_bar[entry]), math.sqrt(1 - alpha_bar[entry])
        between = np.interp(t * T, np.arange(1, T + 1), snr[1:])
        return math.sqrt(1 / (1 + math.exp(-between))), math.sqrt(1 / (1 + math.exp(between)))

    return scales


def linear_betas(T: int, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    return first + (last - first) * np.arange(T) / max(T - 1, 1)


def scaled_linear_betas(T: int) -> np.ndarray:
    return (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * np.arange(T) / (T - 1)) ** 2


def cosine_betas(T: int) -> np.ndarray:
    def f(u: np.ndarray) -> np.ndarray:
        return np.cos((u / T + 0.008) / 1.008 * math.pi / 2) ** 2

    i = np.arange(1, T + 1)
    return np.minimum(1 - f(i) / f(i - 1), 0.999)


def zero_terminal(betas: np.ndarray) -> np.ndarray:
    """Lin et al. 2024, algorithm 1."""
    root = np.sqrt(np.cumprod(1 - betas))
    first, last = root[0], root[-1]
    root = (root - last) * first / (first - last)
    bar = root**2
    return 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])


def cosine(t: float) -> tuple[float, float]:
    return (0.0 if t == 1 else math.cos(math.pi / 2 * t)), math.sin(math.pi / 2 * t)


def linear(t: float) -> tuple[float, float]:
    return 1 - t, t


def exploding(t: float) -> tuple[float, float]:
    return 1.0, 80 * t


# Data


@dataclass(frozen=True)
class Data:
    """N(m, q^2)."""

    m: float
    q: float

    def denoised(self, x: Vector, alpha: float, sigma: float) -> Vector:
        """E[x | x_t] of a coefficient vector, or of numbers when `m` is meant for each."""
        k = alpha * self.q**2 / (alpha**2 * self.q**2 + sigma**2)
        mean = k * x
        mean[0] += self.m - k * alpha * self.m
        return mean


# Samplers: each takes the coefficients of x at times[0] and returns those at times[-1]


def start(N: int) -> Vector:
    x = np.zeros(2 + N)
    x[1] = 1
    return x


def ancestral(data: Data, scales: Scales, times: tuple[float, ...], *, largest: bool) -> Vector:
    """DDPM eqs. 6 and 7 between any two times, with alpha_{t|s} and sigma_{t|s}; `largest` is sigma^2 = beta."""
    x = start(len(times) - 1)
    for i, (t, s) in enumerate(pairwise(times)):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        a_ts = a_t / a_s
        var_ts = s_t**2 - a_ts**2 * s_s**2
        D = data.denoised(x, a_t, s_t)
        x = a_ts * s_s**2 / s_t**2 * x + a_s * var_ts / s_t**2 * D
        if s > 0:
            x[2 + i] += math.sqrt(var_ts if largest else var_ts * s_s**2 / s_t**2)
    return x


def ddim(data: Data, scales: Scales, times: tuple[float, ...], *, eta: float) -> Vector:
    """DDIM eq. 12, with sigma(eta) of eq. 16 for processes that need not preserve variance."""
    x = start(len(times) - 1)
    for i, (t, s) in enumerate(pairwise(times)):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        drawn2 = eta**2 * (s_s**2 / s_t**2) * (s_t**2 - (a_t / a_s) ** 2 * s_s**2)
        D = data.denoised(x, a_t, s_t)
        epsilon = (x - a_t * D) / s_t
        x = a_s * D + math.sqrt(s_s**2 - drawn2) * epsilon
        x[2 + i] += math.sqrt(drawn2)
    return x


def heun(data: Data, scales: Scales, times: tuple[float, ...], straight: bool | None = None) -> Vector:
    """EDM Algorithm 1 in y = x / alpha; where alpha begins near 0, Heun on the straight path of the data."""
    x = start(len(times) - 1)
    straight = scales(times[0])[0] < 1e-3 if straight is None else straight
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        if straight:  # y = (1 - u) x + u noise
            u, v = s_t / (a_t + s_t), s_s / (a_s + s_s)
            x = x / (a_t + s_t)
            velocity = (x - data.denoised(x, 1 - u, u)) / u
            ahead = x + (v - u) * velocity
            if v > 0:
                velocity = (velocity + (ahead - data.denoised(ahead, 1 - v, v)) / v) / 2
                ahead = x + (v - u) * velocity
            x = (a_s + s_s) * ahead
        else:
            u, v = s_t / a_t, s_s / a_s
            x = x / a_t
            d = (x - data.denoised(x, 1.0, u)) / u
            ahead = x + (v - u) * d
            if v > 0:
                ahead = x + (v - u) * (d / 2 + (ahead - data.denoised(ahead, 1.0, v)) / v / 2)
            x = a_s * ahead
    return x


def dpmpp_2m(data: Data, scales: Scales, times: tuple[float, ...]) -> Vector:
    """DPM-Solver++ Algorithm 2, lambda = log(alpha / sigma); first order where lambda is infinite."""

    def lam(t: float) -> float:
        alpha, sigma = scales(t)
        return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)

    x = start(len(times) - 1)
    old: tuple[Vector, float] | None = None
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        D = data.denoised(x, a_t, s_t)
        h = lam(s) - lam(t)
        if math.isinf(h):
            x, old = a_s * D + s_s / s_t * (x - a_t * D), None
            continue
        best = D
        if old is not None:
            r = old[1] / h
            best = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * old[0]
        x = s_s / s_t * x - a_s * (math.exp(-h) - 1) * best
        old = D, h
    return x


SAMPLERS: dict[str, Callable[[Data, Scales, tuple[float, ...]], Vector]] = {
    "ancestral, posterior": lambda data, scales, times: ancestral(data, scales, times, largest=False),
    "ancestral, transition": lambda data, scales, times: ancestral(data, scales, times, largest=True),
    "ddim 0": lambda data, scales, times: ddim(data, scales, times, eta=0.0),
    "ddim 0.5": lambda data, scales, times: ddim(data, scales, times, eta=0.5),
    "ddim 1": lambda data, scales, times: ddim(data, scales, times, eta=1.0),
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


# Networks: what F must be, in each paper's words


def network_output(name: str, x: np.ndarray, D: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    epsilon = (x - alpha * D) / sigma
    if name == "Epsilon":
        return epsilon
    if name == "X0":
        return D
    if name == "V":  # Salimans & Ho
        return alpha * epsilon - sigma * D
    if name == "Flow":  # Lipman et al.
        return epsilon - D
    d, level = 0.5, sigma / alpha if alpha else math.inf  # Karras et al., table 1, of x / alpha at sigma / alpha
    if math.isinf(level):
        return D / d
    skip, out = d**2 / (level**2 + d**2), level * d / math.sqrt(level**2 + d**2)
    return (D - skip * x / alpha) / out


def input_scale(name: str, alpha: float, sigma: float) -> float:
    """What the network's input is x_t times."""
    if name != "Karras":
        return 1.0
    return 1 / sigma if alpha == 0 else 1 / math.sqrt((sigma / alpha) ** 2 + 0.5**2) / alpha
