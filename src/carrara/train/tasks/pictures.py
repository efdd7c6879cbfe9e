"""What the tasks of decoders share: pictures made from pictures, and judged by more than their pixels.

    perceptual     a distance as a trained network sees it, from a file of its weights
    adversarial    a discriminator of parts of a picture, trained in turns with the decoder (Esser et al. 2021)

The discriminator begins late, when the pictures are nearly right. Its term then pulls at the decoder's last layer
`weight` times as hard as all the others together, whatever the size of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from carrara.decoder.loss import adaptive_weight, hinge_discriminator, hinge_generator, psnr, ssim
from carrara.errors import RecipeError
from carrara.nn.perceptual import PerceptualDistance
from carrara.rng import Rng
from carrara.store.weights import read_tensors
from carrara.train.parallel import World
from carrara.train.task import Loss, Phase
from carrara.train.tasks.part import PartTask, Table, built
from carrara.types import Batch

__all__ = ["Adversarial", "Judges", "Perceptual", "PictureTask", "likeness"]

_SSIM_LEAST = 11  # pixels a side


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """A term for how different pictures look to a trained network, whose weights are in these files.

    VGG-16, AlexNet, either with LPIPS's learnt weights, or EfficientNet-Lite0: .safetensors, or as torch.save
    writes them.
    """

    weights: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights is empty; name the file of a network's weights")
        if not self.weight > 0:
            raise ValueError(f"weight = {self.weight}; expected more than 0, or leave `perceptual` out")

    def distance(self) -> PerceptualDistance:
        """The distance. Raises StorageError for files that cannot be read, ValueError for other networks."""
        tensors: dict[str, Tensor] = {}
        for name in self.weights:
            tensors |= read_tensors(Path(name))
        return PerceptualDistance.of(tensors)


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """A term by a discriminator, from step `start` on; `weight` is in shares of the other terms' pull."""

    discriminator: Table = field(default_factory=lambda: {"kind": "patch"})
    weight: float = 0.5
    start: int = 1000

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight = {self.weight}; expected more than 0, or leave `adversarial` out")
        if self.start < 0:
            raise ValueError(f"start = {self.start}; expected a number of steps, 0 or more")


class Judges:
    """The perceptual and the adversarial term of a training, those of them that it has."""

    def __init__(
        self,
        perceptual: Perceptual | None,
        adversarial: Adversarial | None,
        *,
        channels: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.perceptual, self.adversarial = perceptual, adversarial
        self.steps = 0  # done
        self._all = False
        self.distance: PerceptualDistance | None = None
        if perceptual is not None:
            if channels not in (1, 3):
                raise RecipeError(f"task.perceptual: pictures of {channels} channels; its networks see colour or grey")
            try:
                self.distance = perceptual.distance().to(device)
            except ValueError as error:
                raise RecipeError(f"task.perceptual.weights: {error}") from error
        self.discriminator: nn.Module | None = None
        if adversarial is not None:
            table, where = adversarial.discriminator, "task.adversarial.discriminator"
            self.discriminator = built("patch_discriminator", table, where, seed, channels=channels).to(device)

    @property
    def active(self) -> bool:
        """Whether the discriminator has begun."""
        return self.adversarial is not None and (self._all or self.steps >= self.adversarial.start)

    @contextmanager
    def fully(self) -> Iterator[None]:
        """A time in which the discriminator has begun, whatever the step."""
        self._all = True
        try:
            yield
        finally:
            self._all = False

    def added(self, loss: Loss, images: Tensor, made: Tensor, network: Any) -> Loss:
        """The loss of what a network made of `images`, with these terms; its `last` is the weight of its last layer."""
        rows, parts = loss.rows, dict(loss.parts)
        if self.perceptual is not None and self.distance is not None:
            distance = self.distance(made, images)
            rows, parts["perceptual"] = rows + self.perceptual.weight * distance, distance.detach().mean()
        if self.adversarial is not None and self.discriminator is not None and self.active:
            fooled = hinge_generator(self.discriminator(made))
            share = adaptive_weight(rows.mean(), fooled.mean(), network.last)
            rows = rows + self.adversarial.weight * share * fooled
            parts |= {"adversarial": fooled.detach().mean(), "adaptive": share}
        return Loss(rows, parts)

    def judging(self, images: Tensor, made: Tensor) -> Loss:
        """The discriminator's own loss."""
        discriminator = cast(nn.Module, self.discriminator)
        real, fake = discriminator(images), discriminator(made)
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return Loss(hinge_discriminator(real, fake), {"right": right.detach()})


class PictureTask(PartTask):
    """A decoder that is trained on pictures that it makes from pictures, with a discriminator as a second phase."""

    role = "decoder"

    def __init__(self, module: nn.Module, judges: Judges) -> None:
        self.judges = judges
        super().__init__(module)
        if judges.discriminator is None:
            return
        self.modules["discriminator"] = judges.discriminator
        # the adaptive weight compares whole losses
        self.phases = (
            self.phases[0]._replace(separable=False),
            Phase("discriminator", tuple(judges.discriminator.parameters()), self.judging, active=self.judging_begun),
        )

    def pairs(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """The pictures that should have been made, and those that were."""
        raise NotImplementedError  # each task has its own

    def judging(self, batch: Batch, rng: Rng) -> Loss:
        """The discriminator's phase."""
        with torch.no_grad():
            images, made = self.pairs(batch, rng)
        return self.judges.judging(images, made)

    def judging_begun(self) -> bool:
        """Whether the discriminator takes part in the step."""
        return self.judges.active

    def fully(self) -> Any:
        """See carrara.train.task.Task."""
        return self.judges.fully()

    def after_step(self, world: World) -> None:
        """Counts."""
        self.judges.steps += 1

    def state(self) -> dict[str, Tensor]:
        """How many steps are done, where something waits for that."""
        return {} if self.judges.adversarial is None else {"steps": torch.tensor(self.judges.steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the count."""
        self.judges.steps = int(state.get("steps", 0))


def likeness(x: Tensor, y: Tensor) -> dict[str, float]:
    """PSNR in dB and, of pictures with a side of 11 or more, SSIM of pictures (B, C, H, W) that should be alike."""
    y = y.float().clamp(-1, 1)
    figures = {"psnr_db": psnr(x, y).mean().item()}
    return figures | ({"ssim": ssim(x, y).mean().item()} if min(x.shape[2:]) >= _SSIM_LEAST else {})
