"""What examples of docs/why.md share: data in the plane whose density is known, DDPM's process, a small network."""

from __future__ import annotations

from math import pi

import torch
from torch import nn

from carrara.diffusion import Denoiser, DenoisingLoss, Epsilon, LinearBetas, LogSigma, Process, Steps, Unit
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.types import Condition

MEANS = [[-0.9, -0.4], [0.7, 0.8], [0.8, -0.9]]
COVARIANCES = [[[0.09, 0.05], [0.05, 0.06]], [[0.16, -0.1], [-0.1, 0.09]], [[0.03, 0.0], [0.0, 0.03]]]
DATA = Mixture([0.45, 0.35, 0.2], MEANS, covariances=COVARIANCES)
PROCESS = Process(LinearBetas(1000))  # DDPM's own


def noise(x, *words):
    """Standard normal noise with x's shape and type, another for other words."""
    return Rng.seeds([0], *words).normal(x.shape)[0].to(x)


def log_normal(x, p):
    """log N(x; mean, var) of each row: (B,)."""
    return -((x - p.mean) ** 2 / p.var + torch.as_tensor(2 * pi * p.var).log()).sum(1) / 2


class MLP(nn.Module):
    """F(x, level, condition) for rows of two numbers."""

    def __init__(self, width=128):
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, x, level, condition):
        return self.layers(torch.cat([x, level[:, None]], 1))


def training(steps, predict=Epsilon(), weight=Unit(), seed=0, rows=20000, batch=256):  # noqa: B008 - frozen
    """DDPM's Algorithm 1 on samples of the data: yields (step, denoiser) before each step and after the last."""
    torch.manual_seed(seed)
    denoiser, loss = Denoiser(MLP(), PROCESS, predict, LogSigma()), DenoisingLoss(Steps(1000), weight)
    data = DATA.sample(Rng.seeds(range(rows), "train")).float()
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        yield step, denoiser
        numbers = range(step * batch, (step + 1) * batch)
        x = data[[number % rows for number in numbers]]
        optimiser.zero_grad()
        loss(denoiser, x, Condition(), Rng.samples(seed, numbers)).mean().backward()
        optimiser.step()
        decay.step()
    yield steps, denoiser
