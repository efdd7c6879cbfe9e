"""Editing: what is kept is kept exactly, both ends of every scale are exact, and Gaussian data gives closed forms."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    ClassifierFree,
    Cosine,
    DiffusionGenerator,
    Editing,
    Learned,
    Linear,
    LinearBetas,
    Plain,
    Process,
    SamplingSettings,
    Schedule,
    VarianceExploding,
    ancestral,
    ddim,
    dpmpp_2m,
    full,
    guide,
    heun,
    inpaint,
    interpolate,
    invert,
    kl,
    partial,
    progressive,
    slerp,
    uniform,
    vlb_terms,
)
from carrara.diffusion.edit import edit, walk
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.run import finish, run
from carrara.store import kinds
from carrara.types import Condition, Sampling, Space, Step

M, Q = 0.3, 0.6
NORMAL = Mixture([1.0], [[M]], stds=[Q])
MIXTURE = Mixture([0.3, 0.7], [[-0.8, 0.3], [0.5, -0.4]], stds=[0.4, 0.5])
SCHEDULES: list[Schedule] = [Linear(), Cosine(), LinearBetas(), VarianceExploding(10.0)]
SAMPLERS: dict[str, Any] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "ddim 1": functools.partial(ddim, eta=1.0),
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}
names = {"ids": lambda value: type(value).__name__}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def done(sampling: Sampling, data: Mixture, process: Process) -> Tensor:
    return finish(guide(sampling, Plain(), data.denoiser(process)))


def steps(sampling: Sampling, data: Mixture, process: Process) -> list[Step]:
    return list(run(guide(sampling, Plain(), data.denoiser(process))))


def close(found: Tensor, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=atol)


class Still(Rng):
    """Draws nothing but zeros: a sampling's mean, where the sampling is affine."""

    def fork(self, *words: Any) -> Rng:
        return self

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(len(self), *shape)


STILL = Still([(0,)])


# From a picture


def test_partial_keeps_the_last_strides() -> None:
    times = uniform(Linear(), steps=10)
    assert partial(times, 1.0) == times
    assert partial(times, 0.0) == (0.0,)
    assert partial(times, 0.3) == times[-4:]
    assert partial(times, 0.301) == times[-5:]  # whatever is asked for begins a stride
    for steps in (1, 7, 50, 1000):
        grid = uniform(Linear(), steps=steps)
        for done in range(steps + 1):
            assert len(partial(grid, done / steps)) == done + 1


def edited(x: Tensor, noise: Tensor, times: tuple[float, ...], process: Process, **more: Any) -> Sampling:
    how = {"sampler": ddim, "editing": Editing(), "rng": Rng.seeds(range(len(x))), **more}
    return edit(process, x, noise, times, **how)


@pytest.mark.parametrize("schedule", SCHEDULES, **names)
@pytest.mark.parametrize("strength", [0.25, 0.6, 0.9])
def test_a_picture_sampled_anew_in_part(strength: float, schedule: Schedule) -> None:
    """On normal data the result is affine in picture and noise: the gains of DDIM's strides."""
    process, times = Process(schedule), uniform(schedule, steps=20)
    left = partial(times, strength)
    gain = 1.0
    for t, s in pairwise(left):
        (a, b), (a_s, b_s) = schedule(t), schedule(s)
        gain *= (a * a_s * Q**2 + b * b_s) / (a**2 * Q**2 + b**2)
    alpha, sigma = schedule(left[0])
    x, noise = normal(3, 1), normal(3, 1, seed=1)
    found = done(edited(x, noise, times, process, editing=Editing(strength)), NORMAL, process)
    close(found, M + gain * (alpha * (x - M) + sigma * noise))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES, **names)
def test_both_ends_of_strength(schedule: Schedule, sampler: str) -> None:
    """1 is a sampling without a picture, from the same noise, bit for bit; 0 is the picture itself."""
    process, times = Process(schedule), uniform(schedule, steps=10)
    x, noise = normal(2, 2), normal(2, 2, seed=1)
    chosen = SAMPLERS[sampler]
    plain = done(chosen(process, process.prior_std(1.0) * noise, times, rng=Rng.seeds([0, 1])), MIXTURE, process)
    for how in (
        {"editing": Editing(1.0)},
        {"mask": torch.ones(2, 1, dtype=torch.bool), "editing": Editing(resamplings=1)},
    ):
        if "mask" in how and sampler in ("heun", "dpmpp_2m"):
            continue  # stride by stride they are begun anew
        assert torch.equal(done(edited(x, noise, times, process, sampler=chosen, **how), MIXTURE, process), plain)
    nothing = edited(x, noise, times, process, sampler=chosen, editing=Editing(0.0))
    assert torch.equal(done(nothing, MIXTURE, process), x)


def test_little_strength_changes_little() -> None:
    process, times = Process(Cosine()), uniform(Cosine(), steps=1000)
    x, noise = normal(4, 2), normal(4, 2, seed=1)
    moved = []
    for strength in (0.3, 0.1, 0.03, 0.01, 0.003):
        found = done(edited(x, noise, times, process, editing=Editing(strength)), MIXTURE, process)
        moved.append((found - x).abs().max().item())
        assert moved[-1] < 3 * strength * math.pi / 2 * noise.abs().max()  # at most about the noise that was added
    assert moved == sorted(moved, reverse=True)


# Inpainting


def test_the_walk_is_the_papers() -> None:
    """get_schedule_jump of Lugmayr et al. 2022, whose t counts from -1 for data."""

    def papers(T: int, jump: int, samples: int) -> list[int]:
        jumps = dict.fromkeys(range(0, T - jump, jump), samples - 1)
        t, ts = T, []
        while t >= 1:
            t -= 1
            ts.append(t)
            if jumps.get(t, 0) > 0:
                jumps[t] -= 1
                for _ in range(jump):
                    t += 1
                    ts.append(t)
        return [*ts, -1]

    for T, jump, samples in ((250, 10, 10), (20, 1, 4), (20, 3, 2), (7, 10, 5), (5, 1, 1)):
        times = uniform(Linear(), steps=T)
        place = {time: number for number, time in enumerate(reversed(times))}  # strides from the end
        expected = papers(T, jump, samples)
        # the paper walks up one stride at a time, and this jumps: what lies inside of a way up is left out
        inside = {i for i in range(1, len(expected) - 1) if expected[i - 1] < expected[i] < expected[i + 1]}
        assert [place[t] - 1 for t in walk(times, jump, samples)] == [
            t for i, t in enumerate(expected) if i not in inside
        ]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES, **names)
def test_what_is_known_is_kept(schedule: Schedule, sampler: str) -> None:
    process, times = Process(schedule), uniform(schedule, steps=6)
    x, begun = normal(3, 2), normal(3, 2, seed=1) * process.prior_std(1.0)
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    how: Any = {"sampler": SAMPLERS[sampler], "known": x, "rng": Rng.seeds([0, 1, 2]), "jump": 2, "resamplings": 3}
    found = done(inpaint(process, begun, times, mask=mask, **how), MIXTURE, process)
    assert torch.equal(found[~mask], x[~mask])
    assert bool((found[mask] != x[mask]).all()) and bool(found.isfinite().all())
    for strength in (None, 1.0, 0.5):
        editing = Editing(strength)
        kept = edited(
            x, begun, times, process, sampler=SAMPLERS[sampler], editing=editing, mask=torch.zeros(3, 1).bool()
        )
        assert torch.equal(done(kept, MIXTURE, process), x)  # all is known


@pytest.mark.parametrize("name", kinds().names("sampler"))
def test_every_sampler_inpaints(name: str) -> None:
    process, times = Process(Cosine()), uniform(Cosine(), steps=4)
    x, noise, mask = normal(2, 2), normal(2, 2, seed=1), torch.tensor([[True, False]])
    found = done(
        edited(x, noise, times, process, sampler=kinds().resolve("sampler", name), mask=mask), MIXTURE, process
    )
    assert torch.equal(found[:, 1], x[:, 1])
    assert bool(found.isfinite().all()) and found.abs().max() < 5


def test_what_is_unknown_does_not_depend_on_what_lies_under_the_mask() -> None:
    process, times = Process(LinearBetas()), uniform(LinearBetas(), steps=10)
    x, noise, mask = normal(2, 2), normal(2, 2, seed=1), torch.tensor([[True, False]]).expand(2, 2)
    other = torch.where(mask, 7.0, x)
    found = [done(edited(given, noise, times, process, mask=mask), MIXTURE, process) for given in (x, other)]
    assert torch.equal(*found)


def test_evaluations_and_steps_are_as_promised() -> None:
    process, times = Process(Linear()), uniform(Linear(), steps=10)
    for jump, resamplings, expected in ((1, 1, 10), (1, 4, 10 + 9 * 3), (5, 3, 10 + 5 * 2), (20, 9, 10)):
        editing = Editing(jump=jump, resamplings=resamplings)
        visited = editing.visits(times, masked=True)
        assert sum(s < t for t, s in pairwise(visited)) == expected
        sampling = edited(normal(1, 2), normal(1, 2), times, process, editing=editing, mask=torch.ones(1, 2).bool())
        assert [step.t for step in steps(sampling, MIXTURE, process)] == [t for t, s in pairwise(visited) if s < t]


def test_resampling_brings_the_unknown_to_its_conditional_mean() -> None:
    """Two correlated values, one known. The sampling is affine, so that a run without noise is its mean."""
    rho, known = 0.9, 1.2
    pair = Mixture([1.0], [[0.0, 0.0]], covariances=[[[1.0, rho], [rho, 1.0]]])
    process, times = Process(Cosine()), uniform(Cosine(), steps=40)
    x, mask = torch.tensor([[0.0, known]], dtype=torch.float64), torch.tensor([[True, False]])
    gaps = []
    for resamplings in (1, 2, 5, 20):
        how: Any = {"sampler": ancestral, "known": x, "mask": mask, "rng": STILL, "resamplings": resamplings}
        found = done(inpaint(process, torch.zeros_like(x), times, **how), pair, process)
        gaps.append(abs(found[0, 0].item() - rho * known))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.3 > 10 * gaps[-1], gaps


def test_a_row_does_not_depend_on_its_companions() -> None:
    process, times = Process(Linear()), uniform(Linear(), steps=6)
    x, noise = normal(4, 2), normal(4, 2, seed=1)
    mask = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    for sampler in (ancestral, heun):
        together = done(edited(x, noise, times, process, sampler=sampler, mask=mask), MIXTURE, process)
        for i in range(4):
            one = slice(i, i + 1)
            rng = Rng.seeds([i])
            alone = edited(x[one], noise[one], times, process, sampler=sampler, mask=mask[one], rng=rng)
            close(done(alone, MIXTURE, process)[0], together[i])


# Inversion


def inverted(x: np.ndarray, schedule: Schedule, times: tuple[float, ...]) -> np.ndarray:
    """DDIM upwards on N(M, Q^2), from the noise that is estimated where the stride begins (or ends, at data)."""
    for s, t in pairwise(reversed(times)):
        (a_s, b_s), (a, b) = schedule(s), schedule(t)
        x_r, a_r, b_r = (x, a_s, b_s) if b_s > 0 else (a * x, a, b)
        mean = M + a_r * Q**2 / (a_r**2 * Q**2 + b_r**2) * (x_r - a_r * M)
        noise = (x_r - a_r * mean) / b_r
        x = a * (x - b_s * noise) / a_s + b * noise
    return x


@pytest.mark.parametrize("schedule", SCHEDULES, **names)
@pytest.mark.parametrize("N", [2, 10, 100])
def test_inversion_in_closed_form(N: int, schedule: Schedule) -> None:
    process, times, x = Process(schedule), uniform(schedule, steps=N), normal(4, 1)
    close(done(invert(process, x, times), NORMAL, process), inverted(x.numpy(), schedule, times), 1e-10)


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["normal", "mixture"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], **names)
def test_the_way_there_and_back_is_of_first_order(schedule: Schedule, data: Mixture) -> None:
    """Round trip, and for normal data the exact solution of the ODE, with twice the strides: half the error."""
    process, x = Process(schedule), normal(8, *data.shape)
    there, back = [], []
    for N in (32, 64, 128, 256):
        times = uniform(schedule, steps=N)
        found = done(invert(process, x, times), data, process)
        there.append((found - (x - M) / Q).abs().max().item())
        back.append((done(ddim(process, found, times, rng=STILL), data, process) - x).abs().max().item())
    for errors in (back, there) if data is NORMAL else (back,):
        assert all(0.85 < math.log2(a / b) < 1.3 for a, b in pairwise(errors)), errors


@pytest.mark.parametrize("schedule", SCHEDULES, **names)
def test_refinements_make_the_round_trip_exact(schedule: Schedule) -> None:
    process, times, x = Process(schedule), uniform(schedule, steps=10), normal(8, 1)
    errors = []
    for refinements in (0, 1, 3, 10, 150):
        noisy = done(invert(process, x, times, refinements=refinements), NORMAL, process)
        errors.append((done(ddim(process, noisy, times, rng=STILL), NORMAL, process) - x).abs().max().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10, errors


def test_inversion_asks_as_often_as_promised() -> None:
    process, times, x = Process(Linear()), uniform(Linear(), steps=10), normal(2, 2)
    assert [step.t for step in steps(invert(process, x, times), MIXTURE, process)] == [times[-2], *times[-2:0:-1]]
    sampling = invert(process, x, times, refinements=2)
    query, asked = next(sampling), 1
    try:
        while True:
            query = sampling.send(MIXTURE.denoiser(process)(query.x, query.t))
            asked += 1
    except StopIteration:
        assert asked == 30
    with pytest.raises(ValueError, match="add steps"):
        done(invert(process, x, (1.0, 0.0)), MIXTURE, process)


# Interpolation


def test_slerp() -> None:
    a, b = normal(5, 3, 4), normal(5, 3, 4, seed=1)
    assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)
    assert torch.equal(slerp(a, a, 0.0), a)
    close(slerp(a, a, 0.3), a)
    unit = [x / x.flatten(1).norm(dim=1).view(-1, 1, 1) for x in (a, b)]
    angle = torch.acos((unit[0] * unit[1]).flatten(1).sum(1))
    for share in (0.25, 0.5, 0.9):
        found = slerp(*unit, share)
        close(found.flatten(1).norm(dim=1), torch.ones(5))  # stays on the sphere
        close(torch.acos((unit[0] * found).flatten(1).sum(1)), share * angle)
    shares = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    each = slerp(a, b, shares)
    assert all(torch.equal(each[i], slerp(a, b, shares[i].item())[i]) for i in range(5))
    close(slerp(a, -a, 0.25), a / 2)  # no circle is the great one: the chord
    assert slerp(a.float(), b.float(), 0.3).dtype == torch.float32


def test_interpolation_ends_at_the_reconstructions() -> None:
    process, times = Process(Cosine()), uniform(Cosine(), steps=12)
    a, b = normal(1, 2).expand(5, 2), normal(1, 2, seed=1).expand(5, 2)
    share = torch.linspace(0, 1, 5)
    found = done(interpolate(process, a, b, times, share=share), MIXTURE, process)
    for i, x in ((0, a), (4, b)):
        noise = done(invert(process, x, times), MIXTURE, process)
        assert torch.equal(found[i], done(ddim(process, noise, times, rng=STILL), MIXTURE, process)[i])
    exact = done(interpolate(process, a, b, times, share=share, refinements=60), MIXTURE, process)
    close(exact[0], a[0], 1e-6)
    close(exact[4], b[0], 1e-6)
    assert bool((exact[1:] - exact[:-1]).norm(dim=1).min() > 0.05)  # and something between


# Progressive decoding


def test_what_a_receiver_believes() -> None:
    """x_t has the forward process's own law, the last belief is x's neighbour, and the code is the bound's."""
    process, times = Process(LinearBetas()), uniform(LinearBetas(), steps=20)
    data = Mixture([1.0], [[M] * 500], stds=[Q])
    x = M + Q * normal(40, 500)
    x = ((x.clamp(-1, 1) + 1) / 2 * 255).round() / 255 * 2 - 1
    sent = steps(progressive(process, x, times, rng=Rng.seeds(range(len(x)))), data, process)
    assert [step.t for step in sent] == list(times[:-1])
    before = math.inf
    for step in sent:
        alpha, sigma = process.schedule(step.t)
        z = (step.x - alpha * x) / sigma
        assert z.square().mean() == pytest.approx(1, abs=6.1 * math.sqrt(2 / x.numel()))
        close(step.estimate.mean, data.denoiser(process)(step.x, step.t).mean)
        distortion = (step.estimate.mean - x).square().mean().item()
        assert distortion < before * 1.01  # each step tells more
        before = distortion
    nats = torch.stack(
        [
            kl(process.posterior(x, a.x, a.t, b.t), process.posterior(a.estimate.mean, a.x, a.t, b.t)).sum(1)
            for a, b in pairwise(sent)
        ],
        1,
    )
    bound = vlb_terms(data.denoiser(process), x, times, rng=Rng.seeds(range(len(x)), "bound"))
    gap = (nats.sum(1) - bound.steps.sum(1)).mean() / (nats.sum(1).std() * math.sqrt(2 / len(x)))
    assert abs(gap) < 6.1


@pytest.mark.parametrize("schedule", SCHEDULES, **names)
def test_progressive_ends_at_the_picture(schedule: Schedule) -> None:
    process, x = Process(schedule), normal(3, 2)
    sampling = progressive(process, x, uniform(schedule, steps=8), rng=Rng.seeds(range(3)))
    close(done(sampling, MIXTURE, process), x)


# The generator


def generator(schedule: Schedule, settings: SamplingSettings) -> DiffusionGenerator:
    process = Process(schedule)
    denoiser = MIXTURE.denoiser(process)
    denoiser.register_parameter("where", torch.nn.Parameter(torch.zeros(())))  # the oracle has none
    return DiffusionGenerator(denoiser, Space("pixels", (2,)), settings=settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_generator_edits(sampler: str) -> None:
    times = functools.partial(uniform, steps=10)
    made = generator(Linear(), SamplingSettings(SAMPLERS[sampler], times, ClassifierFree(), Editing(resamplings=2)))
    rng, x = Rng.seeds([3, 4]), normal(2, 2).float()

    def start(inputs: dict[str, Tensor], editing: Editing | None = None) -> Any:
        settings = SamplingSettings(SAMPLERS[sampler], times, ClassifierFree(), editing) if editing else None
        return made.start((2,), Condition(), Condition(), rng, settings, inputs)

    plain = finish(made.start((2,), Condition(), Condition(), rng))
    assert torch.equal(finish(start({})), plain)
    assert torch.equal(finish(start({"image": x}, Editing(1.0))), plain)
    assert torch.equal(finish(start({"image": x}, Editing(0.0))), x)
    half = finish(start({"image": x}, Editing(0.5)))
    assert not torch.allclose(half, plain, atol=1e-2) and not torch.allclose(half, x, atol=1e-2)
    mask = torch.tensor([[True, False], [False, True]])
    found = finish(start({"image": x, "mask": mask}))
    assert torch.equal(found[~mask], x[~mask])
    for inputs, expected in (({}, 10), ({"image": x}, 6), ({"image": x, "mask": mask}, 10 + 9)):
        assert made.strides(inputs=inputs) == expected
        assert len(list(run(start(inputs)))) == expected


def test_a_table_in_full_and_learned_variances_are_edited_too() -> None:
    schedule = LinearBetas(20, 0.01, 0.3)
    process = Process(schedule)
    x, noise = normal(2, 2), normal(2, 2, seed=1)
    found = done(edited(x, noise, full(schedule), process, sampler=ancestral), MIXTURE, process)
    assert bool(found.isfinite().all())
    with pytest.raises(ValueError, match="learned variance"):
        learned = functools.partial(ancestral, variance=Learned())
        done(edited(x, noise, full(schedule), process, sampler=learned), MIXTURE, process)


@pytest.mark.parametrize(
    "how, says",
    [({"strength": 1.2}, "share in .0, 1."), ({"jump": 0}, "at least 1"), ({"resamplings": -1}, "0 holds what is")],
)
def test_wrong_settings(how: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Editing(**how)


def test_the_page_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "editing.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "editing.md", "exec"), names)  # noqa: S102 - our own page
    assert names["between"].shape == (3, 2)
