"""What the tasks of all generators share: a text encoder and a decoder that are trained already, and what they encode.

A generator learns to make z, the decoder's encoding of a picture, told the text encoder's condition of its caption. A
share of rows is told nothing, so that the null condition is one of those that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from carrara.data.pictures import Pictures
from carrara.decoder import Decoder, Pixels
from carrara.errors import RecipeError, StorageError
from carrara.rng import Rng, permutation
from carrara.run import finish
from carrara.store import load_component, save_component
from carrara.system import Generator, System
from carrara.text import Labels, TextEncoder, Unconditional
from carrara.train.tasks.part import PartTask, TaskRecipe, depth
from carrara.types import Batch, Condition

__all__ = ["GeneratorRecipe", "GeneratorTask", "condition_widths"]

_CACHED_BYTES = 2 << 30  # encodings of a data set are kept in memory up to this size


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe(TaskRecipe):
    """A generator in the space of a decoder, under the conditions of a text encoder.

    `text` and `decoder` are component folders; or for text "labels" (class folders) or "unconditional", and for the
    decoder "pixels".
    """

    text: str = "unconditional"
    decoder: str = "pixels"
    drop: float = 0.1  # share of rows trained on the null condition, for classifier-free guidance
    part: float = 0.0  # share of rows told only a part of their caption, so that its words also speak for themselves
    prompts: tuple[str, ...] = ()  # of the sample grid; none: captions of the data

    def create(self, pictures: Pictures, seed: int, device: torch.device) -> GeneratorTask:
        return self.create_with(self._text(pictures, device), self._decoder(pictures, device), pictures, seed, device)

    def create_with(
        self, text: TextEncoder, decoder: Decoder, pictures: Pictures, seed: int, device: torch.device
    ) -> GeneratorTask:
        """The task with parts that are at hand, whatever `text` and `decoder` name."""
        raise NotImplementedError

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
            return Pixels(channels=pictures.channels, size=pictures.size, depth=depth(pictures))
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
    """Pictures as z and captions as conditions, encoded once where they fit into memory; each family has its loss."""

    role = "generator"

    def __init__(
        self,
        module: nn.Module,
        recipe: GeneratorRecipe,
        pictures: Pictures,
        text: TextEncoder,
        decoder: Decoder,
    ) -> None:
        self.shared, self.pictures = recipe, pictures
        self.text, self.decoder = text, decoder
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
                f"the run was begun with another text encoder or decoder than {self.shared.text} and "
                f"{self.shared.decoder} are now; give those back, or train into a new folder"
            )

    # What the parts make of data

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
        if self.shared.part and not isinstance(self.text, Labels):
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
        """What the rows are told in training: some a part of their caption, some nothing."""
        condition = self._condition(self._partly_said(batch, rng.fork("part")))
        if self.shared.drop and not isinstance(self.text, Unconditional):
            keep = rng.fork("drop").uniform() >= self.shared.drop
            condition = condition.where(keep, self.null.rows([0] * len(batch)))
        return condition

    def told(self, batch: Batch) -> Condition:
        """The condition of the rows' captions."""
        return self._condition(self._said(batch))

    # Looking and saving

    def sample(self, rng_seed: int) -> Tensor | None:
        """Sixteen pictures of the recipe's prompts, or of captions of the data."""
        prompts = self.prompts(16)
        generator: Generator = self.module  # type: ignore[assignment]
        system = System(self.text, generator, self.decoder)
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
        return [*self.shared.prompts, *(drawn[i % len(drawn)] for i in range(count))][:count]
