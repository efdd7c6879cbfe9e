"""The text encoder's task: captions and pictures recognise each other's pairs (CLIP, Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from carrara.data.augment import Augment
from carrara.data.pictures import Pictures
from carrara.errors import RecipeError
from carrara.rng import Rng
from carrara.text import ContrastiveText, contrastive_loss, known_words, train_tokenizer
from carrara.train.task import Loss
from carrara.train.tasks.part import PartTask, Table, TaskRecipe, built
from carrara.train.tasks.pretrained import measured_captions
from carrara.types import Batch

__all__ = ["ContrastiveRecipe", "ContrastiveTask"]

_MEASURED = 16384  # captions


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
        network = built(
            "text_network", {**table, "pooled": width}, "task.network", seed, vocabulary=size, length=self.length
        )
        picture = built("picture_network", self.picture, "task.picture", seed, channels=pictures.channels, width=width)
        text = ContrastiveText(tokenizer, network, picture, known_words(captions))
        return ContrastiveTask(text.to(device), self, captions)


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
        self.text.measure(measured_captions(self.captions, _MEASURED))
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
