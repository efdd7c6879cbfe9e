"""What the tasks of all generators share: a text encoder and a decoder that are trained already, and what they encode.

A generator learns to make z, the decoder's encoding of a picture, told the text encoder's condition of its caption. A
share of rows is told nothing, so that the null condition is one of those that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from carrara.conditions import Input
from carrara.data.pictures import Pictures
from carrara.decoder import Decoder, Pixels
from carrara.errors import CarraraError, RecipeError, StorageError
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store import load_component, save_component
from carrara.store.transformers import PretrainedSource, pretrained_source
from carrara.system import Generator, System
from carrara.text import Labels, PretrainedText, TextEncoder, Unconditional
from carrara.train.tasks.part import PartTask, Table, TaskRecipe, depth
from carrara.train.tasks.pretrained import pretrained_text, save_pretrained
from carrara.types import Batch, Condition

__all__ = [
    "GeneratorRecipe",
    "GeneratorTask",
    "TaughtRecipe",
    "check_pictures",
    "check_text",
    "condition_widths",
    "text_encoder",
]

_CACHED_BYTES = 2 << 30  # encodings of a data set are kept in memory up to this size


@dataclass(frozen=True, kw_only=True)
class TaughtRecipe(TaskRecipe):
    """What is learnt under captions: how much of them, and what the sample grid shows."""

    drop: float = 0.1  # share of rows trained on the null condition, for classifier-free guidance
    part: float = 0.0  # share of rows told only a part of their caption, so that its words also speak for themselves
    prompts: tuple[str, ...] = ()  # of the sample grid; none: captions of the data

    def __post_init__(self) -> None:
        for name in ("drop", "part"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}; expected a share of rows in [0, 1]")

    @property
    def parts(self) -> str:
        """What the recipe names that is trained already, for people."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe(TaughtRecipe):
    """A generator in the space of a decoder, under the conditions of a text encoder.

    `text` and `decoder` are component folders; or for text "labels" (class folders), "unconditional",
    "pretrained:PATH" or a table (`PretrainedSource`), and for the decoder "pixels".
    """

    makes: ClassVar[tuple[str, ...]] = ("pixels", "latent")  # the spaces in which such a generator can be trained

    text: str | Table = "unconditional"
    decoder: str = "pixels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self.text)

    @property
    def parts(self) -> str:
        return f"{self.text} and {self.decoder}"

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> GeneratorTask:
        text, decoder = self._text(pictures, device), self._decoder(pictures, device)
        if (kind := decoder.space.kind) not in self.makes:
            other = 'task.kind = "autoregressive" does' if kind == "tokens" else 'kind = "tokens" trains one of those'
            raise RecipeError(
                f"task.decoder: {self.decoder} decodes {kind}, which this generator does not make; it makes "
                f"{' or '.join(self.makes)}, and {other}"
            )
        return self.create_with(text, decoder, pictures, seed, device)

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> GeneratorTask:
        """The task with parts that are at hand, whatever `text` and `decoder` name."""
        raise NotImplementedError

    def _text(self, pictures: Pictures, device: torch.device) -> TextEncoder:
        return text_encoder(self.text, pictures, device)

    def _decoder(self, pictures: Pictures, device: torch.device) -> Decoder:
        if self.decoder == "pixels":
            return Pixels(channels=pictures.channels, size=pictures.size, depth=depth(pictures))
        decoder = _trained(self.decoder, "decoder").to(device)
        check_pictures(decoder, pictures, f"task.decoder: {self.decoder}")
        return decoder


def check_text(told: str | Table) -> PretrainedSource | None:
    """The pretrained encoder that `text` names, if it names one; RecipeError for a table with anything wrong in it."""
    try:
        return pretrained_source(told)
    except RecipeError as error:
        raise RecipeError("\n".join(f"text.{line}" for line in str(error).splitlines())) from error


def text_encoder(name: str | Table, pictures: Pictures, device: torch.device) -> TextEncoder:
    """What a recipe's `text` names: a component folder, "labels" (class folders), "unconditional", a pretrained one."""
    if name == "unconditional":
        return Unconditional()
    if name == "labels":
        if not pictures.classes:
            raise RecipeError(
                'task.text: "labels" needs pictures in class folders, or a column label in their metadata; neither is '
                "there"
            )
        return Labels(pictures.classes).to(device)
    if source := check_text(name):
        return pretrained_text(source, pictures, device)
    encoder: TextEncoder = _trained(str(name), "text").to(device)
    return encoder


def check_pictures(decoder: Decoder, pictures: Pictures, what: str) -> None:
    """Raises RecipeError for a decoder of other pictures than the data has."""
    if decoder.pictures.shape != (pictures.channels, *pictures.size):
        raise RecipeError(
            f"{what} makes pictures of {decoder.pictures.shape} (channels, height, width); "
            f"the data has {(pictures.channels, *pictures.size)}; prepare the data alike or train another decoder"
        )


def _trained(folder: str, role: str) -> Any:
    """The part of a folder that a recipe names; StorageError says how to train one that is not there."""
    path = Path(folder)
    if not any((path / name).exists() for name in ("component.json", "model.json")):
        recipe = path.with_name(f"{path.name}.toml")
        train = f"train it first: carrara train {recipe}" if recipe.is_file() else "name the folder of a trained one"
        raise StorageError(f"task.{role}: {folder} is not a trained part; {train}")
    try:
        return load_component(path, role)
    except CarraraError as error:
        raise type(error)(f"task.{role}: {error}") from error


def condition_widths(text: TextEncoder) -> dict[str, int]:
    """What a network that reads the conditions is built with: of `context` and `vector` those that there are."""
    null = finish(text.start([""]))
    widths = {"context": null.tokens, "vector": null.vector}
    return {name: value.shape[-1] for name, value in widths.items() if value is not None}


def _parts(caption: str) -> list[str]:
    """Parts of a caption: all but one of its words, and each word alone."""
    words = caption.split()
    if len(words) < 2:
        return []
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    return list(dict.fromkeys([*without, *words]))


class GeneratorTask(PartTask):
    """Pictures as z and captions as conditions, encoded once where they fit into memory; each family has its loss.

    `conditions` are what is told beside captions; those of a generator's task are in its own `conditions`, too.
    """

    role = "generator"

    def __init__(
        self,
        module: nn.Module,
        recipe: TaughtRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
        conditions: Sequence[Input] = (),
    ) -> None:
        self.shared, self.pictures = recipe, pictures
        self.text, self.decoder, self.conditions = text, decoder, tuple(conditions)
        super().__init__(module)
        self.device = next(module.parameters()).device
        self._spaces = torch.tensor(list(repr((text.space, decoder.space)).encode()), dtype=torch.uint8)
        self.null: Condition = self._encode_text([""])
        self._prompts = self._encode_prompts()
        self._encodings = self._encode_pictures()

    def state(self) -> dict[str, Tensor]:
        """Which text encoder and decoder it is trained with, by their spaces' fingerprints."""
        return {"spaces": self._spaces}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuses to go on with other parts than the run was begun with."""
        found = state.get("spaces")
        if found is not None and not torch.equal(found.cpu(), self._spaces):
            raise RecipeError(
                f"the run was begun with another text encoder or decoder than {self.shared.parts} are now; "
                "give those back, or train into a new folder"
            )

    # What the parts make of data

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> Condition:
        return finish(self.text.start(list(prompts)))

    def _said(self, batch: Batch) -> Sequence[str]:
        if isinstance(self.text, Unconditional):
            return [""] * len(batch)
        return batch.labels if isinstance(self.text, Labels) else batch.captions

    def _further_prompts(self) -> list[str]:
        """What is said of pictures beside their captions."""
        return []

    def _encode_prompts(self) -> tuple[dict[str, int], Condition] | None:
        """Every different caption once, encoded; None when they are too many to keep."""
        if isinstance(self.text, Unconditional):
            return None
        all_said = (
            self.pictures.labels
            if isinstance(self.text, Labels)
            else [c for said in self.pictures.captions for c in said]
        )
        if self.shared.part and not isinstance(self.text, Labels):
            all_said = [part for caption in all_said for part in (caption, *_parts(caption))]
        different = list(dict.fromkeys([*all_said, *self._further_prompts(), ""]))
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

    def _partly_said(self, batch: Batch, rng: Rng) -> Sequence[str]:
        said = self._said(batch)
        if not self.shared.part or isinstance(self.text, Labels):
            return said
        draws = rng.uniform((2,)).tolist()
        choices = [(caption, _parts(caption)) for caption in said]
        return [
            parts[int(which * len(parts))] if parts and whether < self.shared.part else caption
            for (caption, parts), (whether, which) in zip(choices, draws, strict=True)
        ]

    # What the families' losses take

    def z(self, batch: Batch) -> Tensor:
        """The rows' encodings."""
        if self._encodings is None:
            return self._encode(batch.images)
        return self._encodings[list(batch.index)]

    def taught(self, batch: Batch, rng: Rng) -> Condition:
        """What the rows are told in training: some a part of their caption, some nothing, and not all of every input.

        Half of the rows that are told nothing of their caption are told nothing of the inputs that may be left out.
        """
        condition = self._condition(self._partly_said(batch, rng.fork("part")))
        keep = torch.ones(len(batch), dtype=torch.bool)
        if self.shared.drop and not isinstance(self.text, Unconditional):
            keep = rng.fork("drop").uniform() >= self.shared.drop
            condition = condition.where(keep, self.null.rows([0] * len(batch)))
        if not self.conditions:
            return condition
        streams = rng.fork("inputs")
        some = keep | (streams.uniform() < 0.5)
        kept = {
            c.name: (streams.fork(c.name, "drop").uniform() >= c.drop) & (some | (c.drop == 0)) for c in self.conditions
        }
        return self._with_inputs(condition, batch, streams, kept)

    def told(self, batch: Batch) -> Condition:
        """The condition of the rows' captions, and all inputs; what has to be drawn is the same whenever asked for."""
        condition = self._condition(self._said(batch))
        if not self.conditions:
            return condition
        return self._with_inputs(condition, batch, Rng.samples(0, batch.index, "told"), {})

    @torch.no_grad()
    def _with_inputs(self, condition: Condition, batch: Batch, rng: Rng, kept: Mapping[str, Tensor]) -> Condition:
        """The condition with the rows' inputs, at their nulls where `kept` says so."""
        parts: dict[str, Any] = {"controls": {}, "adapters": {}}
        with torch.autocast(self.device.type, enabled=False):
            for one in self.conditions:
                encoding = one.encode(*one.of(batch.images, batch.inputs, rng.fork(one.name)))
                if one.name in kept:
                    row = kept[one.name].to(encoding.device, encoding.dtype)
                    encoding = encoding * row.view(-1, *[1] * (encoding.ndim - 1))
                parts[one.part][one.name] = encoding
        return replace(condition, **parts)

    # Looking and saving

    @property
    def system(self) -> System:
        """What is being trained, as a part of the system that it is for."""
        generator: Generator = self.module  # type: ignore[assignment]
        return System(self.text, generator, self.decoder)

    def sample(self, rng_seed: int) -> Tensor | None:
        """Sixteen pictures of the recipe's prompts, or of captions of the data; with inputs eight, each beside them."""
        if self.conditions:
            return self._sample_with_inputs(rng_seed, 8)
        prompts = self.prompts(16)
        *_, last = self.system.generate(prompts, seeds=[rng_seed + i for i in range(len(prompts))])
        return last.images

    def _sample_with_inputs(self, rng_seed: int, count: int) -> Tensor:
        """(B (k + 1), C, H, W): the k inputs of a picture of the data, then what is made under them and its caption."""
        rows = (self.pictures.heldout if len(self.pictures.heldout) else self.pictures.train)[:count].tolist()
        seeds = [rng_seed + i for i in range(len(rows))]
        said = [*self.shared.prompts, *(self._own(row) for row in rows[len(self.shared.prompts) :])][: len(rows)]
        given, shown = self.inputs(rows, Rng.seeds(seeds, "inputs"))
        *_, last = self.system.generate(said, seeds=seeds, inputs=given)
        columns = [_like(picture, last.images) for picture in shown]
        return torch.stack([*columns, last.images], 1).flatten(0, 1)

    def _own(self, row: int) -> str:
        """What is said of a picture of the data."""
        if isinstance(self.text, Unconditional):
            return ""
        said = self.pictures.captions[row]
        return self.pictures.labels[row] if isinstance(self.text, Labels) else said[0] if said else ""

    @torch.no_grad()
    def inputs(self, rows: Sequence[int], rng: Rng) -> tuple[dict[str, Tensor], list[Tensor]]:
        """What a request that is told of pictures of the data gives, by name, and how each input looks."""
        images = self.pictures.tensor(rows).to(self.device)
        beside = {name: x.to(self.device) for name, x in self.pictures.input_tensors(rows).items()}
        given: dict[str, Tensor] = {}
        shown = []
        with torch.autocast(self.device.type, enabled=False):
            for one in self.conditions:
                pictures = one.of(images, beside, rng.fork(one.name))
                given |= dict(zip(one.needs, pictures, strict=True))
                shown.append(one.shown(*pictures))
        return given, shown

    def save(self, folder: Path) -> None:
        """Writes the generator, and beside it the parts that have no run of their own."""
        super().save(folder)
        if isinstance(self.text, Labels | Unconditional):
            save_component(folder / "text", "text", self.text)
        elif isinstance(self.text, PretrainedText) and self.text.facts:  # read for this run: it has no other folder
            save_pretrained(folder / "text", self.text)
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
        return [*self.shared.prompts, *(drawn[i % len(drawn)] for i in range(count))][:count]


def _like(picture: Tensor, images: Tensor) -> Tensor:
    """An input's picture with as many channels as images (B, C, H, W) have, and of their size."""
    if picture.shape[1] != images.shape[1]:
        picture = picture.mean(1, keepdim=True).expand(-1, images.shape[1], -1, -1)
    return torch.nn.functional.interpolate(picture.to(images), size=images.shape[2:], mode="nearest")
