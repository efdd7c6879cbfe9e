"""A sampling whose known part is held: as a loop does it that puts the known part back after every stride."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    Cosine,
    Editing,
    Linear,
    Plain,
    Process,
    VarianceExploding,
    ancestral,
    ddim,
    dpmpp_2m,
    euler_ancestral,
    guide,
    heun,
    uniform,
    unipc,
)
from carrara.diffusion.edit import edit
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.run import finish

DATA = Mixture([0.3, 0.7], [[-0.8, 0.3], [0.5, -0.4]], stds=[0.4, 0.5])
SAMPLERS: dict[str, Any] = {
    "ancestral": ancestral, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler_ancestral": euler_ancestral,
    "heun": functools.partial(heun), "unipc": unipc,
}  # fmt: skip
KNOWN = torch.tensor([[0.4, -0.7], [0.9, 0.1], [-0.2, 0.3]], dtype=torch.float64)
MASK = torch.tensor([[True, False], [False, False], [True, True]])
HELD = Editing(resamplings=0)


def noise() -> Tensor:
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def held(process: Process, sampler: Any, times: Any, editing: Editing = HELD, mask: Tensor = MASK) -> Any:
    how = {"sampler": sampler, "editing": editing, "rng": Rng.seeds([0, 1, 2]), "mask": mask}
    return edit(process, KNOWN, noise(), times, **how)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VarianceExploding(10.0)], ids=lambda s: type(s).__name__)
def test_it_is_ddim_with_the_known_part_put_back_at_its_own_noise_after_every_stride(schedule, strength):
    process, times = Process(schedule), uniform(schedule, steps=8)
    denoiser = DATA.denoiser(process)
    made = finish(guide(held(process, ddim, times, Editing(strength, resamplings=0)), Plain(), denoiser))
    left = times[round(8 * (1 - strength)) :]
    begun = process.prior_std(times[0]) * noise() if strength == 1 else process.diffuse(KNOWN, left[0], noise())
    x = torch.where(MASK, begun, process.diffuse(KNOWN, left[0], noise()))
    for t, s in pairwise(left):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        mean = denoiser(x, t).mean
        x = alpha_s * mean + sigma_s * (x - alpha_t * mean) / sigma_t
        x = torch.where(MASK, x, alpha_s * KNOWN + sigma_s * noise())
    torch.testing.assert_close(made, x, rtol=0, atol=1e-12)
    assert torch.equal(made[~MASK], KNOWN[~MASK])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_network_sees_the_known_part_on_its_way_and_nothing_is_asked_beside_the_grid(sampler):
    process, times = Process(Linear()), uniform(Linear(), steps=6)
    sampling, plain = (
        held(process, SAMPLERS[sampler], times),
        SAMPLERS[sampler](process, noise(), times, rng=Rng.seeds([0, 1, 2])),
    )
    query, other, asked, made = next(sampling), next(plain), 0, None
    while made is None:
        assert query.t == other.t
        way = process.diffuse(KNOWN, query.t, noise())
        torch.testing.assert_close(query.x[~MASK], way[~MASK], rtol=0, atol=0)
        asked += 1
        estimate = DATA.denoiser(process)(query.x, query.t)
        try:
            query, other = sampling.send(estimate), plain.send(estimate)
        except StopIteration as finished:
            made = finished.value
    assert torch.equal(made[~MASK], KNOWN[~MASK])
    assert asked >= 6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_that_leaves_all_open_is_the_sampling_itself(sampler):
    process, times = Process(Cosine()), uniform(Cosine(), steps=6)
    mask, denoiser = torch.ones_like(MASK), DATA.denoiser(process)
    made = finish(guide(held(process, SAMPLERS[sampler], times, mask=mask), Plain(), denoiser))
    rng = Rng.seeds([0, 1, 2])
    begun = process.prior_std(times[0]) * noise()
    alone = finish(guide(SAMPLERS[sampler](process, begun, times, rng=rng), Plain(), denoiser))
    assert torch.equal(made, alone)


def test_it_walks_the_grid_and_no_more():
    times = uniform(Linear(), steps=10)
    assert HELD.visits(times, True) == times
    assert Editing(0.3, resamplings=0).visits(times, True) == times[-4:]
