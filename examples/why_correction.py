"""What survives of an error made on the way: denoising against writing numbers one by one (docs/why.md, section 3).

Both samplers know the data exactly. At a share of the work one number of the state is moved by 1; the rest is done with
and without the move, with the same random numbers. How far apart are the results, and how much less likely is one?
"""

from __future__ import annotations

from functools import partial

import torch
from waves import EYE, NORMAL, PROCESS, SIZE, WAVES, written

from carrara.diffusion import Plain, ancestral, ddim, guide, uniform
from carrara.rng import Rng
from carrara.run import finish


def autoregressive(data, rng, share):
    """The two results; the number that is written last is moved."""
    return written(data, rng), written(data, rng, round(share * SIZE) - 1)


def denoised(data, rng, share, sampler, strides):
    """The two results of a diffusion sampler; row i has its number i mod 16 moved."""
    times, denoiser = uniform(PROCESS.schedule, steps=strides), data.denoiser(PROCESS)
    at, noise = round(share * strides), rng.fork("prior").normal((SIZE,)).double()
    walk = lambda x, part, name: sampler(PROCESS, x, part, rng=rng.fork(name))  # noqa: E731
    x = finish(guide(walk(noise, times[: at + 1], "before"), Plain(), denoiser))
    moved = x + EYE[torch.arange(len(x)) % SIZE]
    return [finish(guide(walk(y, times[at:], "after"), Plain(), denoiser)) for y in (x, moved)]


def figures(shares, rows, strides):
    """For each data and method, by share: the results' root-mean-square distance, and the loss of log p in nats."""
    walks = {"ancestral": ancestral, "deterministic": ddim}
    diffusions = {name: partial(denoised, sampler=sampler, strides=strides) for name, sampler in walks.items()}
    found = {}
    for name, data in (("waves", WAVES), ("normal", NORMAL)):
        for method, run in {"autoregressive": autoregressive, **diffusions}.items():
            pairs = [run(data, Rng.seeds(range(rows)), share) for share in shares]
            distance = [(a - b).square().sum(1).mean().sqrt().item() for a, b in pairs]
            lost = [(data.log_prob(a) - data.log_prob(b)).mean().item() for a, b in pairs]
            found[f"{name} {method}"] = {"distance": distance, "nats": lost}
    return found


if __name__ == "__main__":
    for name, row in figures((1 / 16, 0.25, 0.5, 0.75, 1.0), rows=64, strides=32).items():
        print(f"{name:22}", {k: [round(v, 2) for v in values] for k, values in row.items()})
