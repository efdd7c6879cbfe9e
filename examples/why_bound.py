"""The gap of the variational bound is a sum of Kullback-Leibler divergences, one a stride (docs/why.md, section 1).

    E[bound(x)] + E[log p(x)]  =  KL(q(x_1) || p(x_1))  +  sum over strides of E KL(q(x_s | x_t) || p(x_s | x_t))

The left side can be measured of any model: it compares p with q(x_s | x_t, x), which begins at a data point x. The
right side needs the true reversal q(x_s | x_t) = q(x_t | x_s) q(x_s) / q(x_t), and so data whose density is known.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from plane import DATA, PROCESS, log_normal, noise

from carrara.diffusion import Transition, uniform
from carrara.diffusion.likelihood import kl
from carrara.rng import Rng
from carrara.types import Gaussian


def terms(denoiser, x, times):
    """Both sides, (B, 1 + strides) each: the terms of the bound, and log-ratios whose means are the divergences."""
    process, zero = denoiser.process, torch.zeros_like(x)
    reverse = lambda x_t, t, s: process.reverse(denoiser(x_t, t), x_t, t, s, Transition())  # noqa: E731
    bound = [kl(process.marginal(x, times[0]), Gaussian(zero, 1.0)).sum(1)]
    x_s = process.diffuse(x, times[0], noise(x, "prior"))
    ratio = [DATA.log_prob_t(x_s, times[0], process) - log_normal(x_s, Gaussian(zero, 1.0))]
    for i, (t, s) in enumerate(pairwise(times)):
        x_t = process.diffuse(x, t, noise(x, "bound", i))
        p = reverse(x_t, t, s)
        bound.append(kl(process.posterior(x, x_t, t, s), p).sum(1) if s > 0 else -log_normal(x, p))
        x_s = process.diffuse(x, s, noise(x, "s", i))  # other noise: the two sides share nothing but x
        forward = process.transition(x_s, s, t)
        x_t = forward.mean + forward.std * noise(x, "t", i)
        true = log_normal(x_t, forward) + DATA.log_prob_t(x_s, s, process) - DATA.log_prob_t(x_t, t, process)
        ratio.append(true - log_normal(x_s, reverse(x_t, t, s)))
    return torch.stack(bound, 1), torch.stack(ratio, 1)


@torch.no_grad()
def measure(denoiser, x, strides):
    """Means over the rows x, in nats, and the standard error of what the two sides differ by."""
    bound, ratio = terms(denoiser, x, uniform(denoiser.process.schedule, steps=strides))
    gap, prior, steps = bound.sum(1) + DATA.log_prob(x), ratio[:, 0], ratio[:, 1:].sum(1)
    means = {"entropy": -DATA.log_prob(x), "bound": bound.sum(1), "gap": gap, "prior": prior, "steps": steps}
    error = (gap - prior - steps).std().item() / len(x) ** 0.5
    return {"strides": strides, **{name: value.mean().item() for name, value in means.items()}, "error": error}


if __name__ == "__main__":
    held_out = DATA.sample(Rng.seeds(range(2000), "held-out"))
    for strides in (10, 30, 100):
        print({name: round(value, 4) for name, value in measure(DATA.denoiser(PROCESS), held_out, strides).items()})
