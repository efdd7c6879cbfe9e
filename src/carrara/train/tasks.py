"""What can be trained, one task a part: a contrastive text encoder, an autoencoder, a diffusion generator.

Each is a recipe (a frozen object that a file can say) whose `create` makes the task for a data set. The loop sees only
`Task`; all of noise is in `carrara.diffusion`, all of text in `carrara.text`, all of latents in `carrara.decoder`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from carrara.config import Role, build
from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.decoder import AutoencoderLoss, Decoder, Latents, Pixels, psnr
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.draw import LogitNormal, TimeDistribution
from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
from carrara.diffusion.loss import DenoisingLoss, Objective, parts
from carrara.diffusion.parameterization import Flow, Level, Parameterization, ScaledTime
from carrara.diffusion.process import Process
from carrara.diffusion.schedule import Linear, Schedule
from carrara.errors import RecipeError, StorageError
from carrara.evaluate.card import card
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store import kinds, load_component, save_component
from carrara.system import System
from carrara.text import ContrastiveText, Labels, TextEncoder, Unconditional, contrastive_loss, train_tokenizer
from carrara.train.parallel import World
from carrara.train.task import Loss, Phase
from carrara.types import Batch, Condition

__all__ = [
    "AutoencoderRecipe",
    "AutoencoderTask",
    "ContrastiveRecipe",
    "ContrastiveTask",
    "DiffusionRecipe",
    "DiffusionTask",
    "PartTask",
    "TaskRecipe",
]

_CACHED_BYTES = 2 << 30  # encodings of a data set are kept in memory up to this size

Table = dict[str, Any]


class PartTask:
    """What the three tasks share: one phase, no further state, and a component that is saved with its card."""

    role: str
    phase_name: str
    separable = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.modules = nn.ModuleDict({self.role: module})
        parameters = tuple(p for p in module.parameters() if p.requires_grad)
        self.phases: tuple[Phase, ...] = (Phase(self.phase_name, parameters, self.loss, self.separable),)
        self.facts: dict[str, Any] = {}

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        raise NotImplementedError  # each task has its own

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out figures; each task has its own."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Nothing but the modules changes."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""

    def sample(self, rng_seed: int) -> Tensor | None:
        """No pictures."""
        return None

    def save(self, folder: Path) -> None:
        """Writes the component from the weights as they are."""
        save_component(folder, self.role, self.module, facts=self.facts, card=card(self._card(folder)))

    def _card(self, folder: Path) -> dict[str, Any]:
        shown = {
            key: value
            for key, value in self.facts.items()
            if key in ("trained_on", "training", "figures", "license", "attribution")
        }
        return {"name": folder.resolve().name, "what": f"A {self.role} of a Carrara system.", **shown}


class TaskRecipe:
    """The base of what `[task]` can be."""

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> PartTask:
        """The task for a data set, with weights initialised from the seed."""
        raise NotImplementedError


def _depth(pictures: Pictures) -> Literal[8, 16]:
    return 16 if pictures.depth == 16 else 8


def _built(role: str, table: Mapping[str, Any], where: str, seed: int, **derived: Any) -> nn.Module:
    """A network from its table, with what follows from the data filled in; the same weights for the same seed."""
    if clash := sorted(name for name in derived if name in table and table[name] != derived[name]):
        raise RecipeError(
            f"{where}.{clash[0]}: given {table[clash[0]]!r}, but data and parts make it {derived[clash[0]]!r}; "
            "leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module: nn.Module = build(Annotated[nn.Module, Role(role)], {**table, **derived}, kinds())
        except RecipeError as error:
            raise RecipeError("\n".join(f"{where}.{line}" for line in str(error).splitlines())) from error
    return module


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(TaskRecipe):
    """A text encoder and a picture encoder, trained to recognise each other's pairs."""

    vocabulary: int = 1024  # of the BPE tokenizer, at most
    length: int = 24  # tokens that are read, marks included
    network: Table = field(default_factory=lambda: {"kind": "transformer", "width": 256, "depth": 4, "heads": 4})
    picture: Table = field(default_factory=lambda: {"kind": "convolutional"})
    augment: Augment = field(default_factory=lambda: Augment(shift=0.06, scale=0.15))
    word_drop: float = (
        0.15  # share of a caption's words that a training row leaves out, so that each word says its part
    )

    def __post_init__(self) -> None:
        if not 0 <= self.word_drop < 1:
            raise ValueError(f"word_drop = {self.word_drop}; expected a share in [0, 1)")

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> ContrastiveTask:
        captions = [caption for i in pictures.train for caption in pictures.captions[i]]
        if not captions:
            raise RecipeError(
                "no picture has a caption, and a text encoder learns from captions; see `carrara data check`"
            )
        tokenizer = train_tokenizer(captions, vocabulary=self.vocabulary)
        table = {key: value for key, value in self.network.items() if key != "pooled"}
        width = self.network.get("pooled") or self.network.get("width", 256)
        from tokenizers import Tokenizer

        size = Tokenizer.from_str(tokenizer.data.decode()).get_vocab_size()
        network = _built(
            "text_network", {**table, "pooled": width}, "task.network", seed, vocabulary=size, length=self.length
        )
        picture = _built("picture_network", self.picture, "task.picture", seed, channels=pictures.channels, width=width)
        return ContrastiveTask(ContrastiveText(tokenizer, network, picture).to(device), self, captions)


class ContrastiveTask(PartTask):
    """CLIP's objective on captions and pictures."""

    role, phase_name, separable = "text", "contrastive", False

    def __init__(self, module: ContrastiveText, recipe: ContrastiveRecipe, captions: Sequence[str]) -> None:
        self.text, self.recipe = module, recipe
        self.captions = sorted({*captions} - {""})
        super().__init__(module)
        self.networks = (module.network, module.picture)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        images = self.recipe.augment(batch.images, rng.fork("augment"))
        captions = _thinned(batch.captions, self.recipe.word_drop, rng.fork("words"))
        text, pictures = self.text.text_features(captions), self.text.picture_features(images)
        same = _same(batch, text.device)
        rows = contrastive_loss(text, pictures, self.text.log_scale, same)
        top1 = _top1((text @ pictures.T).detach(), same)
        return Loss(rows, {"top1": top1, "scale": self.text.log_scale.detach().exp()})

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss, and how often the right caption is the nearest among the batch's."""
        text, pictures = self.text.text_features(batch.captions), self.text.picture_features(batch.images)
        same = _same(batch, text.device)
        rows = contrastive_loss(text, pictures, self.text.log_scale, same)
        return {"loss": rows.mean().item(), "top1": _top1(pictures @ text.T, same).item()}

    def save(self, folder: Path) -> None:
        """Measures the whitening over the training captions, then writes the component."""
        rows = self.captions
        if len(rows) > 16384:
            rows = [rows[i] for i in permutation(len(rows), 0, "measure")[:16384]]
        self.text.measure(["", *rows])  # the null prompt is read as often as any
        super().save(folder)


def _top1(likeness: Tensor, same: Tensor) -> Tensor:
    """How often a row's best match is a right one; rows that share a caption are each other's, as in the loss."""
    return same.gather(1, likeness.argmax(1, keepdim=True)).float().mean()


def _thinned(captions: Sequence[str], share: float, rng: Rng) -> list[str]:
    """The captions without a share of their words, of which at least one stays."""
    split = [caption.split() for caption in captions]
    longest = max(1, *map(len, split)) if share else 0
    if not longest:
        return list(captions)
    kept = (rng.uniform((longest,)) >= share).tolist()
    thin = [
        [word for word, keep in zip(words, row, strict=False) if keep] for words, row in zip(split, kept, strict=True)
    ]
    return [" ".join(words or whole) for words, whole in zip(thin, split, strict=True)]


def _same(batch: Batch, device: torch.device) -> Tensor:
    """(B, B): rows that are each other's right answers, having one picture or one caption."""
    names = {caption: number for number, caption in enumerate(dict.fromkeys(batch.captions))}
    caption = torch.tensor([names[c] for c in batch.captions], device=device)
    index = torch.tensor(batch.index, device=device)
    return (caption[:, None] == caption[None]) | (index[:, None] == index[None])


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(TaskRecipe):
    """A KL autoencoder, whose decoding half decodes a generator's latents."""

    autoencoder: Table = field(default_factory=lambda: {"kind": "kl"})
    loss: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    augment: Augment = field(default_factory=Augment)

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> AutoencoderTask:
        network = _built("autoencoder", self.autoencoder, "task.autoencoder", seed, channels=pictures.channels)
        try:
            latents = Latents(network, size=pictures.size, depth=_depth(pictures))
        except ValueError as error:
            raise RecipeError(f"task.autoencoder: {error}") from error
        return AutoencoderTask(latents.to(device), self, pictures)


class AutoencoderTask(PartTask):
    """Reconstruction and a little KL; the latents' scale is measured when the component is saved."""

    role, phase_name = "decoder", "autoencoder"

    def __init__(self, module: Latents, recipe: AutoencoderRecipe, pictures: Pictures) -> None:
        self.latents, self.recipe, self.pictures = module, recipe, pictures
        super().__init__(module)
        self.networks = (module.autoencoder.encoder, module.autoencoder.decoder)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        images = self.recipe.augment(batch.images, rng.fork("augment"))
        mean, logvar = self.latents.autoencoder.encode(images)  # type: ignore[operator]
        z = mean + (logvar.float() / 2).exp() * rng.fork("latent").normal_like(mean)
        decoded = self.latents.autoencoder.decode(z)  # type: ignore[operator]
        return Loss(*self.recipe.loss(images, decoded, mean, logvar))

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss, and PSNR in dB of the picture decoded from its mean latent."""
        mean, logvar = self.latents.autoencoder.encode(batch.images)  # type: ignore[operator]
        decoded = self.latents.autoencoder.decode(mean)  # type: ignore[operator]
        rows, _ = self.recipe.loss(batch.images, decoded, mean, logvar)
        return {"loss": rows.mean().item(), "psnr_db": psnr(batch.images, decoded.float().clamp(-1, 1)).mean().item()}

    def sample(self, rng_seed: int) -> Tensor | None:
        """Eight pictures above their reconstructions: held-out ones where there are any."""
        chosen = (self.pictures.heldout if len(self.pictures.heldout) else self.pictures.train)[:8]
        images = self.pictures.tensor(chosen).to(self.latents.mean.device)
        decoded = self.latents.autoencoder(images)
        return torch.cat([images, decoded.float().clamp(-1, 1)])

    def save(self, folder: Path) -> None:
        """Measures the latents' mean and scale over the training pictures, then writes the component."""
        rows = self.pictures.train
        if len(rows) > 4096:
            rows = rows[permutation(len(rows), 0, "measure")[:4096]]
        self.latents.measure(self.pictures.tensor(rows[i : i + 64]) for i in range(0, len(rows), 64))
        super().save(folder)


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(TaskRecipe):
    """A diffusion or flow generator in the space of a decoder, under the conditions of a text encoder.

    `text` and `decoder` are component folders; or for text "labels" (class folders) or "unconditional", and for the
    decoder "pixels".
    """

    text: str = "unconditional"
    decoder: str = "pixels"
    network: Table = field(default_factory=lambda: {"kind": "unet"})
    schedule: Schedule = field(default_factory=Linear)
    parameterization: Parameterization = field(default_factory=Flow)
    level: Level = field(default_factory=ScaledTime)
    objective: Objective = field(default_factory=lambda: DenoisingLoss(LogitNormal()))
    learned_variance: bool = False  # taught by "hybrid", or "bound" with variance "learned"
    drop: float = 0.1  # share of rows trained on the null condition, for classifier-free guidance
    part: float = 0.0  # share of rows told only a part of their caption, so that its words also speak for themselves
    settings: SamplingSettings = field(default_factory=SamplingSettings)  # how it is sampled unless told otherwise
    prompts: tuple[str, ...] = ()  # of the sample grid; none: captions of the data

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> DiffusionTask:
        return self.create_with(self._text(pictures, device), self._decoder(pictures, device), pictures, seed, device)

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> DiffusionTask:
        """The task with parts that are at hand, whatever `text` and `decoder` name."""
        channels, height, width = decoder.space.shape
        derived: dict[str, Any] = {"in_channels": channels, "out_channels": channels * (1 + self.learned_variance)}
        if self.network.get("kind") == "dit":
            derived["size"] = height if height == width else [height, width]
        null = finish(text.start([""]))
        if null.tokens is not None:
            derived["context"] = null.tokens.shape[2]
        if null.vector is not None:
            derived["vector"] = null.vector.shape[1]
        network = _built("network", self.network, "task.network", seed, **derived)
        process = Process(copy.deepcopy(self.schedule))  # a learned one is this task's own
        try:
            denoiser = Denoiser(
                network, process, self.parameterization, self.level, learned_variance=self.learned_variance
            )
        except ValueError as error:
            raise RecipeError(f"task.parameterization: {error}") from error
        try:
            self.objective.check(denoiser)
            _check_levels(self.objective, decoder)
        except ValueError as error:
            raise RecipeError(f"task.objective: {error}") from error
        generator = DiffusionGenerator(denoiser, decoder.space, reads=text.space, settings=self.settings)
        return DiffusionTask(generator.to(device), self, pictures, text, decoder)

    def _text(self, pictures: Pictures, device: torch.device) -> TextEncoder:
        if self.text == "unconditional":
            return Unconditional()
        if self.text == "labels":
            if not pictures.classes:
                raise RecipeError('task.text: "labels" needs pictures in class folders; none were found')
            return Labels(pictures.classes).to(device)
        return _trained(self.text, "text").to(device)

    def _decoder(self, pictures: Pictures, device: torch.device) -> Decoder:
        if self.decoder == "pixels":
            return Pixels(channels=pictures.channels, size=pictures.size, depth=_depth(pictures))
        decoder = _trained(self.decoder, "decoder").to(device)
        if decoder.pictures.shape != (pictures.channels, *pictures.size):
            raise RecipeError(
                f"task.decoder: {self.decoder} makes pictures of {decoder.pictures.shape} (channels, height, width); "
                f"the data has {(pictures.channels, *pictures.size)}; prepare the data alike or train another decoder"
            )
        return decoder


def _trained(folder: str, role: str) -> Any:
    """The part of a folder that a recipe names; StorageError says how to train one that is not there."""
    path = Path(folder)
    if not any((path / name).exists() for name in ("component.json", "model.json")):
        recipe = path.with_name(f"{path.name}.toml")
        train = f"train it first: carrara train {recipe}" if recipe.is_file() else "name the folder of a trained one"
        raise StorageError(f"task.{role}: {folder} is not a trained part; {train}")
    return load_component(path, role)


def _check_levels(objective: Objective, decoder: Decoder) -> None:
    levels = objective.grey_levels
    if levels is None:
        return
    if decoder.space.kind != "pixels":
        raise ValueError(
            f"the bound is of data on {levels} grey levels, and the decoder's {decoder.space.kind} have none; "
            'use "denoising", or "hybrid" with levels = 0'
        )
    if levels != 2**decoder.depth:
        raise ValueError(f"levels = {levels}, and pictures of {decoder.depth} bits have {2**decoder.depth}")


def _parts(caption: str) -> list[str]:
    """Parts of a caption: all but one of its words, and each word alone."""
    words = caption.split()
    if len(words) < 2:
        return []
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    return list(dict.fromkeys([*without, *words]))


class DiffusionTask(PartTask):
    """The recipe's objective on encoded pictures, under encoded prompts of which a share is dropped.

    What an objective learns (a weight's uncertainty) is in `modules` beside the generator, what it remembers (losses,
    for importance sampling) in `state`; a learned schedule is the generator's own.
    """

    role, phase_name = "generator", "denoising"

    def __init__(
        self,
        module: DiffusionGenerator,
        recipe: DiffusionRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
    ) -> None:
        self.generator, self.recipe, self.pictures = module, recipe, pictures
        self.text, self.decoder = text, decoder
        self.objective = copy.deepcopy(recipe.objective)
        self._draws = dict(parts(self.objective, TimeDistribution))  # type: ignore[type-abstract]
        super().__init__(module)
        for name, part in parts(self.objective, nn.Module):
            self.modules[name] = part.to(next(module.parameters()).device)
        trained = tuple(p for p in self.modules.parameters() if p.requires_grad)
        self.phases = (Phase(self.phase_name, trained, self.loss, self.separable),)
        self.networks = (module.denoiser.network,)
        self.device = next(module.parameters()).device
        self._spaces = torch.tensor(list(repr((text.space, decoder.space)).encode()), dtype=torch.uint8)
        self.null: Condition = self._encode_text([""])
        self._prompts = self._encode_prompts()
        self._encodings = self._encode_pictures()

    def state(self) -> dict[str, Tensor]:
        """Which text encoder and decoder it is trained with, by their spaces' fingerprints; and what draws remember."""
        return {"spaces": self._spaces} | {
            f"{name}/{key}": value for name, draw in self._draws.items() for key, value in draw.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuses to go on with other parts than the run was begun with."""
        found = state.get("spaces")
        if found is not None and not torch.equal(found.cpu(), self._spaces):
            raise RecipeError(
                f"the run was begun with another text encoder or decoder than {self.recipe.text} and "
                f"{self.recipe.decoder} are now; give those back, or train into a new folder"
            )
        for name, draw in self._draws.items():
            mine = {key: state[f"{name}/{key}"] for key in draw.state() if f"{name}/{key}" in state}
            if mine:
                draw.load_state(mine)

    def after_step(self, world: World) -> None:
        """Draws that remember take in what this step's rows have lost, in all processes alike."""
        for draw in self._draws.values():
            draw.commit(world.gather)

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> Condition:
        return finish(self.text.start(list(prompts)))

    def _said(self, batch: Batch) -> Sequence[str]:
        if isinstance(self.text, Unconditional):
            return [""] * len(batch)
        return batch.labels if isinstance(self.text, Labels) else batch.captions

    def _encode_prompts(self) -> tuple[dict[str, int], Condition] | None:
        """Every different caption once, encoded; None when they are too many to keep."""
        if isinstance(self.text, Unconditional):
            return None
        all_said = (
            self.pictures.labels
            if isinstance(self.text, Labels)
            else [c for said in self.pictures.captions for c in said]
        )
        if self.recipe.part and not isinstance(self.text, Labels):
            all_said = [part for caption in all_said for part in (caption, *_parts(caption))]
        different = list(dict.fromkeys([*all_said, ""]))
        if self.null.tokens is not None and len(different) * self.null.tokens.nbytes > _CACHED_BYTES:
            return None
        parts = [self._encode_text(different[i : i + 256]) for i in range(0, len(different), 256)]
        return {prompt: row for row, prompt in enumerate(different)}, Condition.stack(parts)

    @torch.no_grad()
    def _encode_pictures(self) -> Tensor | None:
        """Every picture's z, in order; None when they are too large to keep, or change from epoch to epoch."""
        settings = self.pictures.settings
        size = 4 * len(self.pictures) * Tensor.numel(torch.empty(self.decoder.space.shape))
        if isinstance(self.decoder, Pixels) or settings.flip or settings.fit == "random-crop" or size > _CACHED_BYTES:
            return None
        rows = range(0, len(self.pictures), 64)
        whole = [self._encode(self.pictures.tensor(range(i, min(i + 64, len(self.pictures))))) for i in rows]
        return torch.cat(whole)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.decoder.encode(images.to(self.device))

    def _condition(self, prompts: Sequence[str]) -> Condition:
        if self._prompts is None:
            return self._encode_text(prompts)
        rows, conditions = self._prompts
        return conditions.rows([rows[prompt] for prompt in prompts])

    def _z(self, batch: Batch) -> Tensor:
        if self._encodings is None:
            return self._encode(batch.images)
        return self._encodings[list(batch.index)]

    def _partly_said(self, batch: Batch, rng: Rng) -> Sequence[str]:
        said = self._said(batch)
        if not self.recipe.part or isinstance(self.text, Labels):
            return said
        draws = rng.uniform((2,)).tolist()
        choices = [(caption, _parts(caption)) for caption in said]
        return [
            parts[int(which * len(parts))] if parts and whether < self.recipe.part else caption
            for (caption, parts), (whether, which) in zip(choices, draws, strict=True)
        ]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        condition = self._condition(self._partly_said(batch, rng.fork("part")))
        if self.recipe.drop and not isinstance(self.text, Unconditional):
            keep = rng.fork("drop").uniform() >= self.recipe.drop
            condition = condition.where(keep, self.null.rows([0] * len(batch)))
        return Loss(self.objective(self.generator.denoiser, self._z(batch), condition, rng))

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        """Held-out loss at four times and noises a row, the same whenever it is measured."""
        condition, z = self._condition(self._said(batch)), self._z(batch)
        draws = [self.objective(self.generator.denoiser, z, condition, rng.fork("validate", i)) for i in range(4)]
        return {"loss": torch.stack(draws).mean().item()}

    def sample(self, rng_seed: int) -> Tensor | None:
        """Sixteen pictures of the recipe's prompts, or of captions of the data."""
        prompts = self.prompts(16)
        system = System(self.text, self.generator, self.decoder)
        *_, last = system.generate(prompts, seeds=[rng_seed + i for i in range(len(prompts))])
        return last.images

    def save(self, folder: Path) -> None:
        """Writes the generator, and beside it the parts without weights, which have no run of their own."""
        super().save(folder)
        if isinstance(self.text, Labels | Unconditional):
            save_component(folder / "text", "text", self.text)
        if isinstance(self.decoder, Pixels):
            save_component(folder / "decoder", "decoder", self.decoder)

    def prompts(self, count: int) -> list[str]:
        """What the sample grid shows: the recipe's prompts, then captions or classes of the data, keyed."""
        if isinstance(self.text, Unconditional):
            return [""] * count
        if isinstance(self.text, Labels):
            known = list(self.pictures.classes)
        else:
            known = list(dict.fromkeys(said[0] for said in self.pictures.captions if said))
        drawn = [known[i] for i in permutation(len(known), 0, "prompts")] if known else [""]
        return [*self.recipe.prompts, *(drawn[i % len(drawn)] for i in range(count))][:count]
