"""What a sampling step costs: the 35.7-million-parameter UNet of DDPM for CIFAR-10, DDIM, batch 1 and 16.

The same weights and the same noise go through Carrara's sampler and through diffusers' loop of model and scheduler, as
they come (float32) and at their best (bfloat16 weights, channels_last). Then what the samplers themselves cost round a
network that costs nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Options, Table, Variant, measure
from benchmarks.outcome import Outcome
from carrara.diffusion import (
    Denoiser,
    Epsilon,
    IntegerStep,
    LinearBetas,
    Plain,
    Process,
    ancestral,
    ddim,
    dpmpp_2m,
    guide,
    heun,
    leading,
)
from carrara.rng import Rng
from carrara.run import run as drive
from carrara.types import Condition

__all__ = ["ABOUT", "run"]

ABOUT = "A step of DDIM sampling with the 35.7-million-parameter CIFAR-10 UNet, and of the samplers alone"
GRID = 50  # strides of the grid, of which each call takes the first few

BEST = "bfloat16"  # weights, and channels_last
NOTES = (
    "bfloat16 means weights of that type, in channels_last order.",
    "carrara and diffusers carry the same weights and begin with the same noise; `difference` is the largest one "
    "between their pictures after the strides of a call, as a share of the largest pixel.",
    "diffusers' DDIMPipeline cannot return pictures from bfloat16 weights, so it is measured as the loop of model and "
    "scheduler that the pipeline is.",
    "denoising-diffusion-pytorch's Unet(64, dim_mults=(1, 2, 4, 8)) is another network of 35.7 million parameters, "
    "in float32, sampled by its own ddim_sample.",
    peers.STUB,
    "The samplers alone: a network that returns its input, 50 strides; a step is a network call, of which heun "
    "makes two a stride. Everything round the network counts: sampler, guidance, denoiser, driver.",
)


def run(options: Options) -> Outcome:
    """Measures all tables."""
    shape = peers.TINY if options.quick else peers.FULL
    outcome = Outcome(notes=NOTES)
    ours, theirs = peers.pair(shape)
    for batch in options.batches or ((1, 2) if options.quick else (1, 16)):
        outcome.tables.append(_networks(ours, theirs, shape, batch, options, outcome))
    for batch in (1,) if options.quick else (1, 16):
        outcome.tables.append(_samplers(shape, batch, options, outcome))
    return outcome


def _networks(
    ours: nn.Module, theirs: nn.Module | None, shape: peers.Shape, batch: int, options: Options, outcome: Outcome
) -> Table:
    noise = torch.randn(batch, 3, shape.size, shape.size, generator=torch.Generator().manual_seed(batch))
    strides = 2 if options.quick or batch > 4 else 5
    variants, checks = [], {}
    for name, best in (("float32", False), (BEST, True)):
        mine = _prepared(ours, best)
        calls = {f"carrara, {name}": _carrara(mine, noise, strides)}
        if theirs is None:
            outcome.skip("diffusers", "not installed")
        else:
            calls[f"diffusers, {name}"] = _diffusers(_prepared(theirs, best), noise, strides)
            checks[f"difference, {name}"] = _difference(*(call() for call in calls.values()))
        (mine_name, mine_call), *others = calls.items()
        variants.append(Variant(mine_name, mine_call, strides, others[0][0] if others else None))
        variants += [Variant(label, call, strides) for label, call in others]
    try:
        variants.append(_lucidrains(shape, batch, strides))
    except peers.Missing as missing:
        outcome.skip("lucidrains Unet", str(missing))
    rounds = options.rounds or (2 if options.quick else 15)
    return measure(f"a DDIM step, batch {batch}", variants, rounds=rounds, warmup=1, budget=60, checks=checks)


def _prepared(network: nn.Module, best: bool) -> nn.Module:
    network = copy.deepcopy(network).eval().requires_grad_(False)
    return network.to(torch.bfloat16).to(memory_format=torch.channels_last) if best else network  # type: ignore[call-overload]


def _difference(mine: Tensor, theirs: Tensor) -> float:
    return float((mine.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def _denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, Process(LinearBetas()), Epsilon(), IntegerStep(1000))


def _carrara(network: nn.Module, noise: Tensor, strides: int) -> Callable[[], Tensor]:
    denoiser = _denoiser(network)
    times = leading(denoiser.process.schedule, steps=GRID)[: strides + 1]

    def call() -> Tensor:
        sampling = ddim(denoiser.process, noise, times, rng=Rng.seeds(range(len(noise))))
        return _finish(drive(guide(sampling, Plain(), denoiser)))

    return call


def _finish(steps: Iterator[Any]) -> Tensor:
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: Tensor = finished.value
            return result


def _diffusers(network: nn.Module, noise: Tensor, strides: int) -> Callable[[], Tensor]:
    # The body of DDIMPipeline.__call__, for the first strides of its grid.
    scheduler = peers.diffusers().DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    start = noise.to(next(network.parameters()).dtype)

    @torch.no_grad()
    def call() -> Tensor:
        scheduler.set_timesteps(GRID)
        image = start
        for t in scheduler.timesteps[:strides]:
            image = scheduler.step(network(image, t).sample, t, image, eta=0.0).prev_sample
        return image

    return call


def _lucidrains(shape: peers.Shape, batch: int, strides: int) -> Variant:
    package = peers.lucidrains()
    unet = package.Unet(dim=64 if shape == peers.FULL else 8, dim_mults=(1, 2, 4, 8))
    diffusion = package.GaussianDiffusion(unet, image_size=shape.size, sampling_timesteps=strides)
    size = (batch, 3, shape.size, shape.size)
    return Variant("lucidrains Unet, float32", lambda: diffusion.ddim_sample(size), strides, note="another network")


class _Free(nn.Module):
    """A network that costs nothing: its output is its input."""

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        return x


_SAMPLERS = {
    "ddim": (ddim, "DDIMScheduler"),
    "heun": (heun, "HeunDiscreteScheduler"),
    "dpmpp_2m": (dpmpp_2m, "DPMSolverMultistepScheduler"),
    "ancestral": (ancestral, "DDPMScheduler"),
}


def _samplers(shape: peers.Shape, batch: int, options: Options, outcome: Outcome) -> Table:
    noise = torch.randn(batch, 3, shape.size, shape.size, generator=torch.Generator().manual_seed(batch))
    strides = 5 if options.quick else GRID
    denoiser = _denoiser(_Free())
    times = leading(denoiser.process.schedule, steps=strides)
    variants = []
    for name, (sampler, theirs) in _SAMPLERS.items():
        mine = _ours_free(sampler, denoiser, noise, times)
        calls = 2 * strides - 1 if name == "heun" else strides  # its last stride ends at 0, where one is enough
        try:
            other = _theirs_free(theirs, noise, strides)
        except peers.Missing as missing:
            outcome.skip("diffusers", str(missing))
            variants.append(Variant(f"carrara {name}", mine, calls))
            continue
        variants.append(Variant(f"carrara {name}", mine, calls, peer=f"diffusers {theirs}"))
        variants.append(Variant(f"diffusers {theirs}", other, calls))
    rounds = options.rounds or (2 if options.quick else 31)
    return measure(f"the sampler alone, batch {batch}", variants, unit="us", rounds=rounds, warmup=2, budget=20)


def _ours_free(sampler: Any, denoiser: Denoiser, noise: Tensor, times: tuple[float, ...]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        sampling = sampler(denoiser.process, noise, times, rng=Rng.seeds(range(len(noise))))
        return _finish(drive(guide(sampling, Plain(), denoiser)))

    return call


def _theirs_free(name: str, noise: Tensor, strides: int) -> Callable[[], Tensor]:
    scheduler = getattr(peers.diffusers(), name)(num_train_timesteps=1000)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(noise))]
    drawing = {"generator": generators} if name == "DDPMScheduler" else {}

    @torch.no_grad()
    def call() -> Tensor:
        scheduler.set_timesteps(strides)
        image = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = scheduler.scale_model_input(image, t)
            image = scheduler.step(output, t, image, **drawing).prev_sample
        return image

    return call
