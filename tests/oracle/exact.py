"""What the samplers must do on data N(m, q^2), written again from the papers, in numpy and in their own symbols.

With Gaussian data the optimal denoiser is affine, so is every sampler, and a whole sampling is a vector of coefficients
over (1, x, z_1, z_2, ...): the constant, the noise that it began with, and each noise that was added on the way.
Nothing here calls the package: alpha and sigma come from the papers' formulas, the updates from the papers' algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Vector = np.ndarray
Times = tuple[float, ...]


# Schedules


@dataclass(frozen=True)
class Scales:
    """(alpha, sigma) of t, and of lambda = log(alpha / sigma), which estimates are asked for down to `lowest`."""

    at: Callable[[float], tuple[float, float]]
    at_lambda: Callable[[float], tuple[float, float]]
    lowest: float

    def __call__(self, t: float) -> tuple[float, float]:
        return self.at(t)

    def lam(self, t: float) -> float:
        alpha, sigma = self.at(t)
        return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)


def preserving(lam: float) -> tuple[float, float]:
    """alpha^2 + sigma^2 = 1."""
    return 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam))


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
        return preserving(float(np.interp(t * T, np.arange(1, T + 1), snr[1:])) / 2)

    return Scales(scales, preserving, float(snr[-1] if np.isfinite(snr[-1]) else snr[-2]) / 2)


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


cosine = Scales(lambda t: (0.0 if t == 1 else math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)), preserving, -10.0)
linear = Scales(lambda t: (1 - t, t), lambda lam: (1 / (1 + math.exp(-lam)), 1 / (1 + math.exp(lam))), -10.0)
exploding = Scales(lambda t: (1.0, 80 * t), lambda lam: (1.0, math.exp(-lam)), -math.log(80))


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


# Samplers: each returns the coefficients of x at times[-1] over (1, x at times[0], z_1, z_2, ...)


class Noises:
    """z_1, z_2, ... in the order in which they are drawn."""

    def __init__(self, strides: int, most: int = 1) -> None:
        self.size, self.drawn = 2 + most * strides, 0

    def start(self) -> Vector:
        x = np.zeros(self.size)
        x[1] = 1
        return x

    def __call__(self, std: float) -> Vector:
        z = np.zeros(self.size)
        z[2 + self.drawn] = std
        self.drawn += 1
        return z

    def used(self, x: Vector) -> Vector:
        return x[: 2 + self.drawn]


def ancestral(data: Data, scales: Scales, times: Times, *, largest: bool) -> Vector:
    """DDPM eqs. 6 and 7 between any two times, with alpha_{t|s} and sigma_{t|s}; `largest` is sigma^2 = beta."""
    z = Noises(len(times) - 1)
    x = z.start()
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        a_ts = a_t / a_s
        var_ts = s_t**2 - a_ts**2 * s_s**2
        D = data.denoised(x, a_t, s_t)
        x = a_ts * s_s**2 / s_t**2 * x + a_s * var_ts / s_t**2 * D
        if s > 0:
            x = x + z(math.sqrt(var_ts if largest else var_ts * s_s**2 / s_t**2))
    return z.used(x)


def ddim(data: Data, scales: Scales, times: Times, *, eta: float) -> Vector:
    """DDIM eq. 12, with sigma(eta) of eq. 16 for processes that need not preserve variance."""
    z = Noises(len(times) - 1)
    x = z.start()
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        drawn2 = eta**2 * (s_s**2 / s_t**2) * (s_t**2 - (a_t / a_s) ** 2 * s_s**2)
        D = data.denoised(x, a_t, s_t)
        epsilon = (x - a_t * D) / s_t
        x = a_s * D + math.sqrt(s_s**2 - drawn2) * epsilon
        if drawn2 > 0:
            x = x + z(math.sqrt(drawn2))
    return z.used(x)


def euler_ancestral(data: Data, scales: Scales, times: Times, *, eta: float) -> Vector:
    """Crowson's get_ancestral_step and Euler's method in sigma = s / a; from a = 0 the noise is all there is."""
    z = Noises(len(times) - 1)
    x = z.start()
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        D = data.denoised(x, a_t, s_t)
        to = s_s / a_s
        if a_t == 0:
            up, down = eta * to, to * math.sqrt(1 - eta**2)
            y = D + down * x / s_t
        else:
            sigma, y = s_t / a_t, x / a_t
            up = min(to, eta * math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
            down = math.sqrt(to**2 - up**2)
            y = y + (y - D) / sigma * (down - sigma)
        x = a_s * (y + z(up)) if up > 0 else a_s * y
    return z.used(x)


def lcm(data: Data, scales: Scales, times: Times) -> Vector:
    """Multistep consistency sampling (Luo et al. 2023, Algorithm 3)."""
    z = Noises(len(times) - 1)
    x = z.start()
    for t, s in pairwise(times):
        alpha, sigma = scales(s)
        x = alpha * data.denoised(x, *scales(t))
        if sigma > 0:
            x = x + z(sigma)
    return z.used(x)


class Way:
    """dy/du of the probability flow, in EDM's y = x / alpha over sigma / alpha, or on the straight path of the data."""

    def __init__(self, data: Data, scales: Scales, times: Times, straight: bool | None = None) -> None:
        self.data, self.scales = data, scales
        self.straight = scales(times[0])[0] < 1e-3 if straight is None else straight

    def place(self, scale: tuple[float, float]) -> tuple[float, float]:
        """What x is divided by, and u."""
        alpha, sigma = scale
        return (alpha + sigma, sigma / (alpha + sigma)) if self.straight else (alpha, sigma / alpha)

    def slope(self, y: Vector, u: float) -> Vector:
        return (y - self.data.denoised(y, 1 - u if self.straight else 1.0, u)) / u


def heun(
    data: Data,
    scales: Scales,
    times: Times,
    straight: bool | None = None,
    *,
    S_churn: float = 0.0,
    S_noise: float = 1.0,
    S_tmin: float = 0.0,
    S_tmax: float = math.inf,
) -> Vector:
    """EDM Algorithm 2, whose churn is in sigma = s / a; where alpha begins near 0, Heun on the straight path."""
    way, N = Way(data, scales, times, straight), len(times) - 1
    z = Noises(N)
    x = z.start()
    for t, s in pairwise(times):
        a_t, s_t = scales(t)
        gamma = min(S_churn / N, math.sqrt(2) - 1) if a_t > 0 and S_tmin <= s_t / a_t <= S_tmax else 0.0
        if gamma > 0:
            sigma = s_t / a_t
            hat = min(sigma * (1 + gamma), math.exp(-scales.lowest))
            if hat > sigma * (1 + 1e-12):
                y = x / a_t + z(S_noise * math.sqrt(hat**2 - sigma**2))
                a_t, s_t = scales.at_lambda(-math.log(hat))
                x = a_t * y
        (c, u), (d, v) = way.place((a_t, s_t)), way.place(scales(s))
        y = x / c
        slope = way.slope(y, u)
        ahead = y + (v - u) * slope
        if v > 0:
            ahead = y + (v - u) * (slope / 2 + way.slope(ahead, v) / 2)
        x = d * ahead
    return z.used(x)


def predictor_corrector(
    data: Data, scales: Scales, times: Times, x: Vector, noises: Iterator[Vector], *, r: float, M: int, largest: bool
) -> Vector:
    """Song et al. 2021, Algorithms 4 and 5 in one, of x (rows, numbers): the measured step makes it no affine map."""

    def denoised(alpha: float, sigma: float) -> Vector:
        k = alpha * data.q**2 / (alpha**2 * data.q**2 + sigma**2)
        return data.m + k * (x - alpha * data.m)

    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        a_ts = a_t / a_s
        var_ts = s_t**2 - a_ts**2 * s_s**2
        x = a_ts * s_s**2 / s_t**2 * x + a_s * var_ts / s_t**2 * denoised(a_t, s_t)
        if s_s == 0:
            break
        x = x + math.sqrt(var_ts if largest else var_ts * s_s**2 / s_t**2) * next(noises)
        for _ in range(M):
            g, z = -(x - a_s * denoised(a_s, s_s)) / s_s**2, next(noises)
            epsilon = 2 * (r * np.linalg.norm(z, axis=1) / np.linalg.norm(g, axis=1)) ** 2
            epsilon = np.minimum(epsilon, s_s**2)[:, None]  # a bound of our own
            x = x + epsilon * g + np.sqrt(2 * epsilon) * z
    return x


def _first_order(x: Vector, D: Vector, scales: Scales, t: float, s: float, eta: float, z: Noises) -> Vector:
    """Where lambda is infinite at t or at s."""
    (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
    if eta > 0:
        return a_s * D + z(s_s) if s_s > 0 else D * a_s
    return a_s * D + s_s / s_t * (x - a_t * D)


def _sde(x: Vector, D: Vector, scales: Scales, t: float, s: float, eta: float) -> tuple[Vector, float]:
    """The mean at s of Lu et al.'s first-order SDE solver, and the std of its noise (Crowson's eta)."""
    (_, s_t), (a_s, s_s) = scales(t), scales(s)
    h = scales.lam(s) - scales.lam(t)
    mean = s_s / s_t * math.exp(-eta * h) * x + a_s * (1 - math.exp(-h - eta * h)) * D
    return mean, s_s * math.sqrt(1 - math.exp(-2 * eta * h))


def dpmpp_2s(data: Data, scales: Scales, times: Times, *, eta: float = 0.0) -> Vector:
    """DPM-Solver++ Algorithm 1 with r = 1/2; for the SDE both stages follow one Brownian path."""
    z = Noises(len(times) - 1, 2)
    x = z.start()
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        D = data.denoised(x, a_t, s_t)
        h = scales.lam(s) - scales.lam(t)
        if math.isinf(h):
            x = _first_order(x, D, scales, t, s, eta, z)
            continue
        a_m, s_m = scales.at_lambda(scales.lam(t) + h / 2)
        u = s_m / s_t * math.exp(-eta * h / 2) * x + a_m * (1 - math.exp(-(1 + eta) * h / 2)) * D
        half = math.sqrt(1 - math.exp(-eta * h))  # of either half, at its end
        z_1 = z(1.0) if eta > 0 else 0.0
        D = data.denoised(u + s_m * half * z_1, a_m, s_m)
        x = s_s / s_t * math.exp(-eta * h) * x + a_s * (1 - math.exp(-(1 + eta) * h)) * D
        if eta > 0:
            x = x + s_s * half * (math.exp(-eta * h / 2) * z_1 + z(1.0))
    return z.used(x)


def dpmpp_2m(data: Data, scales: Scales, times: Times, *, eta: float = 0.0) -> Vector:
    """DPM-Solver++ Algorithm 2, and Crowson's 2M SDE with the midpoint; first order where lambda is infinite."""
    z = Noises(len(times) - 1)
    x = z.start()
    old: tuple[Vector, float] | None = None
    for t, s in pairwise(times):
        D = data.denoised(x, *scales(t))
        h = scales.lam(s) - scales.lam(t)
        if math.isinf(h):
            x, old = _first_order(x, D, scales, t, s, eta, z), None
            continue
        x, std = _sde(x, D, scales, t, s, eta)
        if old is not None:
            r = old[1] / h
            x = x + scales(s)[0] * (1 - math.exp(-h - eta * h)) / (2 * r) * (D - old[0])
        if std > 0:
            x = x + z(std)
        old = D, h
    return z.used(x)


def dpmpp_3m(data: Data, scales: Scales, times: Times, *, eta: float = 0.0) -> Vector:
    """Crowson's 3M SDE, with D'' h^2 = 2 (d_10 - d_11) / (r_0 + r_1): twice what the code has, which is D'' h^2 / 2."""
    z = Noises(len(times) - 1)
    x = z.start()
    old: list[tuple[Vector, float]] = []  # D_1 and h_1, D_2 and h_2
    for t, s in pairwise(times):
        D = data.denoised(x, *scales(t))
        h = scales.lam(s) - scales.lam(t)
        if math.isinf(h):
            x, old = _first_order(x, D, scales, t, s, eta, z), []
            continue
        x, std = _sde(x, D, scales, t, s, eta)
        alpha, H = scales(s)[0], h * (1 + eta)
        phi_2 = math.expm1(-H) / H + 1
        phi_3 = phi_2 / H - 0.5
        if len(old) == 1:
            x = x + alpha * phi_2 * (D - old[0][0]) * h / old[0][1]
        elif len(old) == 2:
            (D_1, h_1), (D_2, h_2) = old
            r_0, r_1 = h_1 / h, h_2 / h
            d_10, d_11 = (D - D_1) / r_0, (D_1 - D_2) / r_1
            d_1 = d_10 + (d_10 - d_11) * r_0 / (r_0 + r_1)
            d_2 = 2 * (d_10 - d_11) / (r_0 + r_1)
            x = x + alpha * (phi_2 * d_1 - phi_3 * d_2)
        if std > 0:
            x = x + z(std)
        old = [(D, h), *old[:1]]
    return z.used(x)


def unipc(
    data: Data,
    scales: Scales,
    times: Times,
    *,
    p: int,
    corrector: bool = True,
    B: Callable[[float], float] = math.expm1,
) -> Vector:
    """UniPC of data prediction (Zhao et al. 2023, Algorithms 3 and 4): R(h) a B(h) = phi(h), with h for -h there."""
    z = Noises(0)
    x = z.start()

    def step(x: Vector, D: list[Vector], lams: list[float], t: float, s: float, ahead: Vector | None) -> Vector:
        (_, s_t), (a_s, s_s) = scales(t), scales(s)
        h = scales.lam(s) - scales.lam(t)
        r = [(lam - lams[0]) / h for lam in lams[1:]]
        values = list(D[1:])
        if ahead is not None:
            r, values = [*r, 1.0], [*values, ahead]
        x = s_s / s_t * x - a_s * math.expm1(-h) * D[0]
        if not r:
            return x
        if len(r) == 1:
            rho = np.array([0.5])
        else:
            R = np.array([[each**k for each in r] for k in range(len(r))])
            phi, right = math.expm1(-h) / -h - 1, []
            for k in range(1, len(r) + 1):  # k! h phi_{k+1}(h) / B(h)
                right.append(math.factorial(k) * phi / B(-h))
                phi = phi / -h - 1 / math.factorial(k + 1)
            rho = np.linalg.solve(R, np.array(right))
        for weight, place, value in zip(rho, r, values, strict=True):
            x = x - a_s * B(-h) * weight * (value - D[0]) / place
        return x

    D: list[Vector] = []
    lams: list[float] = []
    last: tuple[Vector, float] | None = None
    for t, s in pairwise(times):
        new = data.denoised(x, *scales(t))
        if corrector and last is not None:
            x = step(last[0], D, lams, last[1], t, new)
        D, lams, last = [new, *D[: p - 1]], [scales.lam(t), *lams[: p - 1]], (x, t)
        if math.isinf(scales.lam(t)) or math.isinf(scales.lam(s)):
            x = _first_order(x, new, scales, t, s, 0.0, z)
            D, lams, last = [], [], None
        else:
            x = step(x, D, lams, t, s, None)
    return x


def adams(data: Data, scales: Scales, times: Times, straight: bool | None = None, *, order: int) -> Vector:
    """Linear multistep: the polynomial through the last slopes (Lagrange's form), integrated."""
    way = Way(data, scales, times, straight)
    x = Noises(0).start()
    known: list[tuple[float, Vector]] = []
    for t, s in pairwise(times):
        (c, u), (d, v) = way.place(scales(t)), way.place(scales(s))
        y = x / c
        known = [*known[-(order - 1) :], (u, way.slope(y, u))] if order > 1 else [(u, way.slope(y, u))]
        for i, (u_i, slope) in enumerate(known):
            others = [u_j for j, (u_j, _) in enumerate(known) if j != i]
            # in units of the stride, from u
            roots = [(u_j - u) / (v - u) for u_j in others]
            base = np.polynomial.Polynomial.fromroots(roots) if roots else np.polynomial.Polynomial([1.0])
            integral = base.integ()
            y = y + (v - u) * (integral(1) - integral(0)) / base((u_i - u) / (v - u)) * slope
        x = d * y
    return x


def pndm(data: Data, scales: Scales, times: Times, straight: bool | None = None, *, runge_kutta: bool) -> Vector:
    """Liu et al. 2022, eqs. 9 to 12: a transfer phi along e, with e by Runge-Kutta or by a linear multistep formula."""
    way = Way(data, scales, times, straight)
    x = Noises(0).start()
    e: list[Vector] = []

    def noise(x: Vector, t: float) -> Vector:
        if way.straight:
            c, u = way.place(scales(t))
            return way.slope(x / c, u)
        alpha, sigma = scales(t)
        return (x - alpha * data.denoised(x, alpha, sigma)) / sigma

    def phi(x: Vector, e: Vector, t: float, s: float) -> Vector:  # eq. 11
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        if way.straight:
            (c, u), (d, v) = way.place((a_t, s_t)), way.place((a_s, s_s))
            return d * (x / c + (v - u) * e)
        return a_s / a_t * (x - s_t * e) + s_s * e

    for i, (t, s) in enumerate(pairwise(times)):
        e = [noise(x, t), *e[:3]]
        if scales(s)[1] > 0 and runge_kutta and i < 3:
            half = (t + s) / 2
            e_1 = e[0]
            e_2 = noise(phi(x, e_1, t, half), half)
            e_3 = noise(phi(x, e_2, t, half), half)
            e_4 = noise(phi(x, e_3, t, s), s)
            best = (e_1 + 2 * e_2 + 2 * e_3 + e_4) / 6
        elif scales(s)[1] > 0 and i == 0:
            best = (e[0] + noise(phi(x, e[0], t, s), s)) / 2
        elif len(e) == 1:
            best = e[0]
        elif len(e) == 2:
            best = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            best = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            best = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        x = phi(x, best, t, s)
    return x


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
