"""What why_correction.py looks at: waves of 16 numbers, and the sampler that writes them one after another, exactly."""

from __future__ import annotations

import torch

from carrara.diffusion import Cosine, Process
from carrara.oracle import Mixture

SIZE, PROCESS = 16, Process(Cosine())
PLACES, EYE = torch.arange(SIZE, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)
MEANS = [torch.sin(2 * torch.pi * (PLACES * (1 + k % 2) / SIZE + k / 8)) for k in range(8)]
WAVES = Mixture([1.0] * 8, MEANS, covariances=[0.15**2 * EYE] * 8)
NORMAL = Mixture([1.0], [0 * PLACES], covariances=[0.9 ** (PLACES[:, None] - PLACES).abs()])


def written(data, rng, move_at=None):
    """Draws x_k from p(x_k | x_1 ... x_k-1), for k in order: (B, 16). Number `move_at` is moved by 1 once written.

    Each part of the mixture is N(m, L L^T); it reads what is written as its own noise, L^-1 (x - m).
    """
    roots = torch.linalg.cholesky(data.covariances)
    chosen, noise = rng.fork("part").uniform((SIZE,)), rng.fork("noise").normal((SIZE,)).double()
    x, logits = torch.zeros_like(noise), data.weights.log().expand(len(noise), -1)
    white = torch.zeros(len(x), len(roots), SIZE).double()
    for k in range(SIZE):
        mean = data.means[:, k] + torch.einsum("pj,bpj->bp", roots[:, k], white)
        part = (logits.softmax(1).cumsum(1) < chosen[:, k, None]).sum(1).clamp(max=len(roots) - 1)
        x[:, k] = mean[torch.arange(len(x)), part] + roots[part, k, k] * noise[:, k] + (k == move_at)
        white[:, :, k] = (x[:, k, None] - mean) / roots[:, k, k]
        logits = logits - white[:, :, k] ** 2 / 2 - roots[:, k, k].log()
    return x


def known(share):
    """On NORMAL, how far a move by 1 at a share of the work moves the result, root mean square (docs/why.md)."""
    (alpha, sigma), values = PROCESS.schedule(1 - share), torch.linalg.eigvalsh(NORMAL.covariances[0])
    noisy = alpha**2 * values + sigma**2
    followers = 0.9 ** (2 * PLACES[: SIZE + 1 - round(share * SIZE)])
    squares = {"ancestral": ((alpha * values / noisy) ** 2).mean(), "deterministic": (values / noisy).mean()}
    return {name: value.sqrt().item() for name, value in {"autoregressive": followers.sum(), **squares}.items()}
