"""Inpainting: at every question what is known is as noisy as the question says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carrara.diffusion import Cosine, LinearBetas, Process, Schedule, ddim, inpaint, uniform
from carrara.types import Estimate


class Still:
    """An rng without noise: what is known is then seen at its mean, alpha_t x."""

    def fork(self, *words: object) -> Still:
        return self

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBetas()], ids=str)
@pytest.mark.parametrize("jump, resamplings", [(1, 1), (1, 3), (2, 2)])
def test_what_is_known_has_the_noise_of_its_time(schedule: Schedule, jump: int, resamplings: int) -> None:
    process, times = Process(schedule), uniform(schedule, steps=5)
    known = torch.tensor([[0.7, -0.3]], dtype=torch.float64)
    how = {"sampler": ddim, "known": known, "mask": torch.tensor([[True, False]]), "rng": Still()}
    sampling = inpaint(process, torch.ones_like(known), times, jump=jump, resamplings=resamplings, **how)  # type: ignore[arg-type]
    query = next(sampling)
    asked, made = [], None
    while made is None:
        alpha, _ = schedule(query.t)
        assert query.x[0, 1].item() == pytest.approx(alpha * -0.3, abs=1e-12)
        asked.append(query.t)
        try:
            query = sampling.send(Estimate(torch.zeros_like(query.x)))
        except StopIteration as finished:
            made = finished.value
    assert made[0, 1] == -0.3
    assert set(asked) == set(times[:-1])
