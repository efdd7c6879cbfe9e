"""What training finds: on a mixture the floor of its loss, on eight pictures those eight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from carrara.diffusion import (
    Denoiser,
    DenoisingLoss,
    Karras,
    Linear,
    LogitNormal,
    LogSigma,
    Plain,
    Process,
    ancestral,
    guide,
    uniform,
)
from carrara.nn import UNet
from carrara.oracle import Mixture
from carrara.run import finish
from carrara.types import Condition
from oracle.stream import stream

NOTHING = Condition()


class Curve(nn.Module):
    """A small network of a number and its level."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        found: Tensor = self.layers(torch.stack([x[:, 0], level.to(x.dtype)], 1))
        return found


def train(denoiser: Denoiser, loss: DenoisingLoss, data: Tensor, *, steps: int, batch: int, rate: float) -> None:
    """Adam, its rate falling to nothing, on rows of the data drawn at random."""
    optimiser = torch.optim.Adam(denoiser.parameters(), rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    drawn = torch.Generator().manual_seed(0)
    for step in range(steps):
        x = data[torch.randint(len(data), (batch,), generator=drawn)]
        optimiser.zero_grad()
        loss(denoiser, x, NOTHING, stream(batch, step)).mean().backward()
        optimiser.step()
        decay.step()


def test_a_network_reaches_the_floor_of_a_mixture() -> None:
    """Within 2 % of the least loss there is, which the exact denoiser has on the same rows, times and noise."""
    torch.manual_seed(0)
    data = Mixture([0.3, 0.7], [[-1.0], [0.6]], stds=[0.2, 0.4])
    process, loss = Process(Linear()), DenoisingLoss(LogitNormal())
    denoiser = Denoiser(Curve().double(), process, Karras(0.8), LogSigma())
    rows = data.sample(stream(50_000, 1))
    train(denoiser, loss, rows, steps=1500, batch=1024, rate=1e-2)
    fresh = data.sample(stream(50_000, 2))
    exact = Denoiser(data.network(process, Karras(0.8), LogSigma()), process, Karras(0.8), LogSigma())
    with torch.no_grad():
        found = loss(denoiser, fresh, NOTHING, stream(50_000, 4)).mean().item()
        floor = loss(exact, fresh, NOTHING, stream(50_000, 4)).mean().item()
    assert found < 1.02 * floor
    assert found > 0.999 * floor


def test_eight_pictures_come_back() -> None:
    """A network that has seen eight pictures alone draws each of them, and nothing else: 30 dB and better.

    By the ancestral sampler, whose noise lets later steps mend what earlier ones did; a deterministic one keeps the
    errors that the network makes in much noise, and ends at 28 dB here.
    """
    torch.manual_seed(0)
    cells = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pictures = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    process, loss = Process(Linear()), DenoisingLoss(LogitNormal())
    network = UNet(in_channels=1, out_channels=1, channels=32, multipliers=(1, 2), blocks=1, attention=())
    denoiser = Denoiser(network, process, Karras(0.58), LogSigma())
    train(denoiser, loss, pictures, steps=900, batch=32, rate=3e-3)
    with torch.no_grad():
        times = uniform(process.schedule, steps=100)
        sampling = ancestral(process, stream(64, 5).normal((1, 8, 8)).float(), times, rng=stream(64, 6))
        made = finish(guide(sampling, Plain(), denoiser.eval()))
    error = (made[:, None] - pictures).square().flatten(2).mean(2)
    psnr = 10 * torch.log10(4 / error.min(1).values)
    assert psnr.min() > 30
    assert set(error.argmin(1).tolist()) == set(range(8))
