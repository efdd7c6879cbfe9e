r"""Scores of a single set of samples: how sure and varied a classifier finds it, its fit to prompts, its diversity.

class score    exp E KL(p(class | x) || p(class)),  p(class) the mean over the samples     (Salimans et al. 2016)
fit            100 max(cos(picture, prompt), 0) on average: CLIP's score                   (Hessel et al. 2021)
diversity      the root mean square distance of two pictures of one prompt, over that of two pictures of the data
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["class_score", "diversity", "fit"]

_PARTS = 10  # of the samples, as it is usually measured; each has a score of its own


def class_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over ten parts of the samples' logits (N, classes); 1 is the least.

    The samples are taken in turn. ValueError for fewer than two a part.
    """
    if logits.ndim != 2 or len(logits) < 2 * _PARTS:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)}; expected (samples, classes), of at least {2 * _PARTS} samples"
        )
    scores = []
    for i in range(_PARTS):
        log_p = logits[i::_PARTS].double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - torch.tensor(len(log_p), dtype=torch.float64).log()
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    found = torch.stack(scores)
    return found.mean().item(), found.std(correction=0).item()


def fit(pictures: Tensor, texts: Tensor) -> float:
    """How well picture i fits text i, on average: features (N, D) each, of any length; 0 to 100."""
    if pictures.shape != texts.shape or pictures.ndim != 2 or not len(pictures):
        raise ValueError(
            f"features of shape {tuple(pictures.shape)} and {tuple(texts.shape)}; expected two equal (N, D)"
        )
    cosines = F.cosine_similarity(pictures.double(), texts.double(), dim=1)
    return 100 * cosines.clamp(min=0).mean().item()


def diversity(samples: Tensor, prompts: Sequence[str], real: Tensor) -> float:
    """1: as different as pictures of the data `real` (M, D); 0: a prompt always makes the same picture.

    `samples` (N, D) are features of pictures of `prompts`, of which each should occur more than once. ValueError where
    none does, or where the data are all alike.
    """
    rows: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(i)
    several = [_variance(samples[some]) for some in rows.values() if len(some) > 1]
    usual = _variance(real) if len(real) > 1 else 0.0
    if not several or not usual:
        raise ValueError(f"{len(rows)} prompts for {len(prompts)} pictures of {len(real)} in the data; both must vary")
    return math.sqrt(math.fsum(several) / len(several) / usual)


def _variance(x: Tensor) -> float:
    """Of the rows of (N, D) around their mean, over all dimensions: half the mean square distance of two of them."""
    return x.double().var(0).sum().item()
