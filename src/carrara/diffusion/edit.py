r"""Editing: samplings that begin from a picture, or keep a part of one. All are coroutines over any sampler.

    partial      the last strides of a grid: from x_t = alpha_t x + sigma_t noise they make x anew in part (SDEdit,
                 Meng et al. 2022)
    inpaint      after each stride what is known of x is put back at its noise level, and the sampling jumps back up to
                 make both agree (RePaint, Lugmayr et al. 2022, algorithm 1)
    hold         what is known of x stays on its way from one noise: no stride more, and the sampler keeps its memory
    invert       DDIM backwards, from x to the x_t that it comes from (Song et al. 2021, section 4.3), at first
                 order, or by fixed-point iteration exactly (Pan et al. 2023)
    interpolate  from one picture to another: both inverted, turned into one another, and sampled (DDIM, section 5.3)
    progressive  what a receiver of x_1, ..., x_t, sent noise first, believes x to be (DDPM section 4.3, algorithm 4)

`edit` is what a generator does with a picture, a mask and its `Editing` settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from carrara.diffusion.process import Process, Scale, like
from carrara.diffusion.sampler import Sampler, ddim, stride
from carrara.diffusion.times import Times
from carrara.rng import Rng
from carrara.types import Query, Sampling

__all__ = ["Editing", "edit", "hold", "inpaint", "interpolate", "invert", "partial", "progressive", "slerp", "walk"]


@dataclass(frozen=True)
class Editing:
    """How a picture is edited: `strength` in [0, 1] is the share of the strides that are made, 0 leaves it as it is.

    At 1 nothing of the picture is used but what a mask keeps. None is 1 with a mask and 0.6 without. Under a mask,
    every `jump` strides the sampling goes back up by as many, `resamplings` - 1 times, which multiplies the work; with
    `resamplings` = 0 it is no sampling of strides, but one whose known part is held (`hold`).
    """

    strength: float | None = None
    jump: int = 1
    resamplings: int = 4

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ValueError(f"strength = {self.strength}; expected a share in [0, 1]; 0 leaves the picture as it is")
        if self.jump < 1 or self.resamplings < 0:
            raise ValueError(
                f"jump = {self.jump} and resamplings = {self.resamplings}; expected at least 1 and 0; "
                "resamplings = 1 never goes back, and 0 holds what is known"
            )

    def share(self, masked: bool) -> float:
        """The strength, with a mask or without."""
        if self.strength is None:
            return 1.0 if masked else 0.6
        return self.strength

    def visits(self, times: Times, masked: bool) -> Times:
        """Every time that an editing over this grid comes to, in order."""
        left = partial(times, self.share(masked))
        return tuple(walk(left, self.jump, self.resamplings)) if masked and self.resamplings else left


def edit(
    process: Process,
    x: Tensor,
    noise: Tensor,
    times: Times,
    *,
    sampler: Sampler,
    editing: Editing,
    rng: Rng,
    mask: Tensor | None = None,
) -> Sampling:
    """The picture x sampled anew in part; `mask` (B, 1, ...) is true where it may change.

    With strength 1 it begins from `noise` as a sampling without a picture does, and without a mask is that sampling.
    """
    strength = editing.share(mask is not None)
    left = partial(times, strength)
    begun = process.prior_std(times[0]) * noise if strength == 1 else process.diffuse(x, left[0], noise)
    if len(left) == 1:  # nothing is left to do
        return x
    if mask is None:
        made: Tensor = yield from sampler(process, begun, left, rng=rng)
    elif not editing.resamplings:
        made = yield from hold(process, sampler(process, begun, left, rng=rng), known=x, noise=noise, mask=mask)
    else:
        again = {"jump": editing.jump, "resamplings": editing.resamplings}
        made = yield from inpaint(process, begun, left, sampler=sampler, known=x, mask=mask, rng=rng, **again)
    return made


def partial(times: Times, strength: float) -> Times:
    """The last `strength` of a grid's strides, rounded up; (times[-1],) where that is none."""
    strides = math.ceil(strength * (len(times) - 1) - 1e-9)
    return times[len(times) - 1 - strides :]


# --- inpainting -------------------------------------------------------------------------------------------------------


def walk(times: Times, jump: int, resamplings: int) -> Iterator[float]:
    """The times that inpainting visits: down the grid, and every `jump` strides back up by as many, again and again.

    Jumps begin one stride before the end, as in the paper's code: data itself is not resampled.
    """
    left = dict.fromkeys(range(1, len(times) - jump, jump), resamplings - 1)  # strides from the end
    place = len(times) - 1
    yield times[0]
    while place > 0:
        place -= 1
        yield times[-1 - place]
        if left.get(place, 0) > 0:
            left[place] -= 1
            place += jump
            yield times[-1 - place]


def inpaint(
    process: Process,
    x: Tensor,
    times: Times,
    *,
    sampler: Sampler,
    known: Tensor,
    mask: Tensor,
    rng: Rng,
    jump: int = 1,
    resamplings: int = 1,
) -> Sampling:
    """x_t at times[0] to a picture that is `known` outside of the mask (B, 1, ...), which is true where it is not.

    The sampler is called stride by stride, so those that remember earlier strides begin each anew. At the grid's last
    time the known part is put back without noise.
    """
    mask = mask.bool()
    kept, back = rng.fork("known"), rng.fork("back")

    def put_back(x: Tensor, s: float) -> Tensor:
        at = known if s == times[-1] else process.diffuse(known, s, kept.normal_like(known))
        return torch.where(mask, x, at)

    x = put_back(x, times[0])
    for t, s in pairwise(walk(times, jump, resamplings)):
        if s < t:
            x = put_back((yield from sampler(process, x, (t, s), rng=rng)), s)
        else:
            transition = process.transition(x, t, s)
            x = transition.mean + transition.std * back.normal_like(x)
    return x


def hold(process: Process, sampling: Sampling, *, known: Tensor, noise: Tensor, mask: Tensor) -> Sampling:
    """The sampling with x held outside of the mask (B, 1, ...), which is true where it is made.

    There the network sees x_t = alpha_t known + sigma_t noise at every time, and is answered with `known`: the way that
    a deterministic sampler would walk by itself. What programs for Stable Diffusion do after every stride.
    """
    mask = mask.bool()
    try:
        query = next(sampling)
        while True:
            seen = torch.where(mask, query.x, process.diffuse(known, query.t, noise))
            estimate = yield query._replace(x=seen)
            query = sampling.send(estimate._replace(mean=torch.where(mask, estimate.mean, known)))
    except StopIteration as finished:
        return torch.where(mask, finished.value, known)
    finally:
        sampling.close()


# --- inversion and interpolation --------------------------------------------------------------------------------------


def invert(process: Process, x: Tensor, times: Times, *, refinements: int = 0) -> Sampling:
    """The x at times[0] from which `ddim` over `times` comes to x at times[-1]; of first order in the strides.

    Each stride up from s to t takes what is estimated at s; at s = 0, where all is known, what is at t. Each refinement
    asks again at the x_t that was found, which goes to the exact inverse of the stride where the denoiser is smooth: as
    many more evaluations of the whole.
    """
    for s, t in pairwise(reversed(times)):
        if process.schedule(s)[1] > 0:
            x_t = stride(process, x, (yield Query(x, s)).mean, s, t)
        else:
            x_t = process.marginal(x, t).mean / process.schedule(s)[0]
            x_t = _up(process, x, x_t, (yield Query(x_t, t)).mean, s, t)
        for _ in range(refinements):
            x_t = _up(process, x, x_t, (yield Query(x_t, t, inner=True)).mean, s, t)
        x = x_t
    return x


def _up(process: Process, x_s: Tensor, x_t: Tensor, mean: Tensor, s: float, t: float) -> Tensor:
    """Closer to the x_t from which a DDIM stride comes to x_s, by the noise that `mean` finds in this one."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.schedule(s), process.schedule(t)
    if alpha_t > 0:
        a = alpha_t / alpha_s
        found: Tensor = a * x_s + (sigma_t - a * sigma_s) / sigma_t * (x_t - alpha_t * mean)
        return found
    if sigma_s > 0:  # all of x_t is noise, and only the mean says anything
        return stride(process, x_s, mean, s, t)
    raise ValueError(f"one stride from t = {t}, where nothing of x is left, to {s} has no inverse; add steps")


def slerp(a: Tensor, b: Tensor, share: Scale) -> Tensor:
    """From a (share 0) to b (share 1) along the great circle between them, row by row: norms stay what noise has.

    `share` is a number, or (B,) with one a row. The ends are exact.
    """
    x, y = a.flatten(1).double(), b.flatten(1).double()
    cosine = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    part = torch.as_tensor(share, dtype=torch.float64, device=a.device).expand(len(a))
    straight = angle.sin() < 1e-6  # (nearly) parallel: the chord
    of_a = torch.where(straight, 1 - part, ((1 - part) * angle).sin() / angle.sin())
    of_b = torch.where(straight, part, (part * angle).sin() / angle.sin())
    turned: Tensor = like(of_a, a) * a + like(of_b, b) * b
    return turned


def interpolate(
    process: Process, a: Tensor, b: Tensor, times: Times, *, share: Scale = 0.5, refinements: int = 0
) -> Sampling:
    """Pictures between those of a and b (B, ...), `share` of the way: a number, or (B,) with one a row.

    Both are inverted to times[0], and what lies between them there is sampled by ddim. At share 0 and 1 these are the
    reconstructions of a and b.
    """
    ends = []
    for x in (a, b):
        ends.append((yield from invert(process, x, times, refinements=refinements)))
    unused = Rng.seeds(range(len(a)))  # with eta 0 nothing is drawn
    return (yield from ddim(process, slerp(ends[0], ends[1], share), times, rng=unused))


# --- progressive decoding ---------------------------------------------------------------------------------------------


def progressive(process: Process, x: Tensor, times: Times, *, rng: Rng) -> Sampling:
    """x sent from noise to data: each finished step's estimate is what the receiver believes, having x_t.

    x_t is drawn from q(x_t | x), then each x_s from q(x_s | x_t, x). Sending it costs the KL divergence from
    p(x_s | x_t) to that, in nats: the terms of the bound (`vlb_terms`). Returns the x at times[-1].
    """
    x_t = process.diffuse(x, times[0], rng.normal_like(x))
    for t, s in pairwise(times):
        yield Query(x_t, t)
        q = process.posterior(x, x_t, t, s)
        x_t = q.mean if s == 0 else q.mean + q.std * rng.normal_like(x)
    return x_t
