"""Minimising the bound minimises KL(data || model), which in the plane can be computed (docs/why.md, section 2).

DDPM's Algorithm 1 trains a small network. The density of what its sampler makes is found without sampling, from

    p(x_s) = integral p(x_t) N(x_s; mean(x_t), variance) dx_t

stride by stride on a grid; a normal kernel is a product of two, so that a stride is a product of two matrices.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from plane import DATA, PROCESS, training
from why_bound import measure

from carrara.diffusion import Transition, uniform
from carrara.rng import Rng


@torch.no_grad()
def divergence(denoiser, strides, points=150, reach=4.5):
    """KL(data || model) in nats, and how much of the model's density the grid holds."""
    axis = torch.linspace(-reach, reach, points)
    x, cell = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2
    p = torch.exp(-x.square().sum(1) / 2) / (2 * torch.pi)
    for t, s in pairwise(uniform(denoiser.process.schedule, steps=strides)):
        some = p > 1e-9
        step = denoiser.process.reverse(denoiser(x[some], t), x[some], t, s, Transition())
        first, second = (torch.exp(-((axis[:, None] - mean) ** 2) / (2 * step.var)) for mean in step.mean.T)
        p = ((first * p[some]) @ second.T).flatten() * (cell / (2 * torch.pi * step.var))
    log_data = DATA.log_prob(x)
    ratio = torch.where(log_data > -25, log_data - p.double().clamp(min=1e-30).log(), 0.0)
    return {"kl": (log_data.exp() * ratio).sum().item() * cell, "mass": p.sum().item() * cell}


def figures(stops, rows, strides, points):
    """What is measured of the best denoiser (step None), and of the network after so many steps of training."""
    x = DATA.sample(Rng.seeds(range(rows), "held-out"))
    best = DATA.denoiser(PROCESS)
    found = [{"step": None, **measure(best, x, strides), **divergence(best, strides, points)}]
    for step, denoiser in training(stops[-1]):
        if step in stops:
            found.append(
                {"step": step, **measure(denoiser, x.float(), strides), **divergence(denoiser, strides, points)}
            )
    return found


if __name__ == "__main__":
    for row in figures((30, 100, 300, 1000), rows=2000, strides=20, points=60):
        print(row["step"], {name: round(row[name], 4) for name in ("bound", "gap", "kl", "mass")})
