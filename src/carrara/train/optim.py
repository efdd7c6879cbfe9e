"""The optimiser and its learning rate.

AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), fused where the device has it. Weight decay acts on matrices and
convolution kernels, not on biases and norms. The learning rate is a function of the step alone, whatever the number of
processes or micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from carrara.train.settings import Training

__all__ = ["adamw", "learning_rate", "set_learning_rate"]


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of step 0, 1, ..., steps - 1: a linear rise over `warmup` steps, then constant or half a cosine
    that would reach 0 at step `steps`."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    if training.decay == "constant":
        return training.learning_rate
    done = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def adamw(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=training.betas,
        fused=_fused(trained),
    )


def _fused(parameters: list[nn.Parameter]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group of an optimiser the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
