"""What a training step costs: forward, backward, clipping, the optimiser and the weights' average, batch 16.

The 35.7-million-parameter UNet of DDPM for CIFAR-10 in Carrara's own step, in the loop of diffusers' example
train_unconditional, and in that of lucidrains' Trainer; each with the optimiser, clipping and average that it comes
with. The batch lies in memory: reading pictures is another benchmark.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Options, Table, Variant, measure
from benchmarks.outcome import Outcome
from carrara.data import DataSettings, Loader, open_pictures
from carrara.decoder import Pixels
from carrara.diffusion import DenoisingLoss, Epsilon, IntegerStep, LinearBetas, Steps
from carrara.rng import keyed
from carrara.text import Unconditional
from carrara.train import Training
from carrara.train.parallel import World
from carrara.train.state import State
from carrara.train.step import train_step
from carrara.train.tasks import DiffusionRecipe
from carrara.types import Batch

__all__ = ["ABOUT", "run"]

ABOUT = "A training step of the 35.7-million-parameter CIFAR-10 UNet"
NOTES = (
    "carrara: `train_step` on a diffusion task (fused AdamW, clipping at 1, average at every step, keyed noise, checks "
    "for numbers that are not finite).",
    "diffusers: the loop of examples/unconditional_image_generation/train_unconditional.py with its defaults and "
    "--use_ema (Accelerator, AdamW, clipping at 1, EMAModel at every step); bfloat16 is --mixed_precision bf16.",
    "lucidrains: the loop of denoising-diffusion-pytorch's Trainer with its defaults (float32, Adam, clipping at 1). "
    "Its average moves every tenth step only, which medians do not see.",
    "Its own Unet(64, dim_mults=(1, 2, 4, 8)) is another network; its loop round diffusers' UNet2DModel trains the "
    "same network as the others.",
    peers.STUB,
    "Batches lie in memory; reading, augmenting and logging are left out of every loop.",
)

Precision = Literal["float32", "bfloat16"]


def run(options: Options) -> Outcome:
    """Measures all tables."""
    outcome = Outcome(notes=NOTES)
    shape = peers.TINY if options.quick else peers.FULL
    for batch in options.batches or ((4,) if options.quick else (16,)):
        outcome.tables.append(_steps(shape, batch, options, outcome))
    return outcome


def _steps(shape: peers.Shape, batch: int, options: Options, outcome: Outcome) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        loaded = _batch(Path(folder), shape, batch)
        variants = _variants(shape, loaded, Path(folder), outcome)
        rounds = options.rounds or (2 if options.quick else 9)
        return measure(f"a training step, batch {batch}", variants, rounds=rounds, warmup=2, budget=150)


def _variants(shape: peers.Shape, batch: Batch, folder: Path, outcome: Outcome) -> list[Variant]:
    makers: list[tuple[str, Callable[[], Callable[[], object]], str | None, str]] = []
    for precision, mixed in (("float32", "no"), ("bfloat16", "bf16")):
        theirs = f"diffusers loop, {precision}"
        makers += [
            (f"carrara, {precision}", lambda p=precision: _carrara(shape, batch, folder, p), theirs, ""),
            (theirs, lambda m=mixed: _diffusers(shape, batch.images, m), None, ""),
        ]
    own, same = "lucidrains loop, its own network", "lucidrains loop, same network"
    makers += [
        (same, lambda: _lucidrains(shape, batch.images, own=False), None, "float32"),
        (own, lambda: _lucidrains(shape, batch.images, own=True), None, "float32, another network"),
    ]
    made: dict[str, tuple[Callable[[], object], str | None, str]] = {}
    for name, make, peer, note in makers:
        try:
            made[name] = (make(), peer, note)
        except peers.Missing as missing:
            outcome.skip(name, str(missing))
    return [Variant(name, call, 1, peer if peer in made else None, note) for name, (call, peer, note) in made.items()]


def _batch(folder: Path, shape: peers.Shape, rows: int) -> Batch:
    """A batch of noise pictures, through files, cache and loader as any other."""
    from PIL import Image

    pictures = folder / "pictures"
    pictures.mkdir()
    draw = keyed(0, "benchmark")
    for number in range(rows):
        pixels = draw.integers(256, size=(shape.size, shape.size, 3), dtype="uint8")
        Image.fromarray(pixels).save(pictures / f"{number:03}.png")
    return Loader(_open(folder, shape), rows, 0).batch(0)


def _open(folder: Path, shape: peers.Shape) -> Any:
    return open_pictures(DataSettings(str(folder / "pictures"), size=shape.size, heldout=0.0), folder / "cache")


def _carrara(shape: peers.Shape, batch: Batch, folder: Path, precision: Precision) -> Callable[[], object]:
    recipe = DiffusionRecipe(
        network={"kind": "unet", "channels": shape.channels, "multipliers": list(shape.multipliers)}
        | {"blocks": shape.blocks, "groups": shape.groups},
        schedule=LinearBetas(),
        parameterization=Epsilon(),
        level=IntegerStep(),
        objective=DenoisingLoss(Steps()),
    )
    device = torch.device("cpu")
    decoder = Pixels(channels=3, size=(shape.size, shape.size))
    task = recipe.create_with(Unconditional(), decoder, _open(folder, shape), 0, device)
    training = Training(batch=len(batch), precision=precision, learning_rate=1e-4)
    state = State(task, training, device, precision)
    return lambda: train_step(state, batch, World())


def _diffusers(shape: peers.Shape, images: Tensor, mixed_precision: str) -> Callable[[], object]:
    package = peers.diffusers()
    accelerator = peers.accelerator(mixed_precision)
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    _, network = peers.pair(shape)
    if network is None:
        raise peers.Missing("diffusers is not installed")
    model: Any = network.train().requires_grad_(True)
    config = model.config
    ema = EMAModel(
        model.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=3 / 4,
        model_cls=package.UNet2DModel,
        model_config=config,
    )
    scheduler = package.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates: Any = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    model, optimizer, rates = accelerator.prepare(model, optimizer, rates)
    dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32

    def call() -> float:
        clean = images.to(dtype)
        noise = torch.randn(clean.shape, dtype=dtype, device=clean.device)
        steps = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),), device=clean.device).long()
        noisy = scheduler.add_noise(clean, noise, steps)
        with accelerator.accumulate(model):
            output = model(noisy, steps).sample
            loss = F.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ema.step(model.parameters())
        return loss.detach().item()

    return call


class _Adapted(nn.Module):
    """diffusers' UNet2DModel with the face that GaussianDiffusion expects of a network."""

    channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 3, 3, False, False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        output: Tensor = self.network(x, time).sample
        return output


def _lucidrains(shape: peers.Shape, images: Tensor, *, own: bool) -> Callable[[], object]:
    package = peers.lucidrains()
    accelerator = peers.accelerator("no")
    if own:
        network = package.Unet(dim=64 if shape == peers.FULL else 8, dim_mults=(1, 2, 4, 8))
    else:
        _, theirs = peers.pair(shape)
        if theirs is None:
            raise peers.Missing("diffusers is not installed")
        network = _Adapted(theirs.train().requires_grad_(True))
    diffusion = package.GaussianDiffusion(network, image_size=shape.size)
    optimizer = package.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = package.EMA(diffusion, beta=0.995, update_every=10)
    model, optimizer = accelerator.prepare(diffusion, optimizer)
    data = (images + 1) / 2  # it normalises pictures in [0, 1] itself

    def call() -> float:
        model.train()
        with accelerator.autocast():
            loss = model(data)
            total: float = loss.item()
        accelerator.backward(loss)
        accelerator.wait_for_everyone()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.wait_for_everyone()
        ema.update()
        return total

    return call
