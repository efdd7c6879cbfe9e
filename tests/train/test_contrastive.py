"""The contrastive task's figures: what is counted as right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.data.augment import Augment
from carrara.rng import Rng
from carrara.train.tasks import ContrastiveRecipe, ContrastiveTask
from carrara.types import Batch


class Towers(nn.Module):
    """Text and pictures of fixed features, a row each."""

    def __init__(self, text: Tensor, pictures: Tensor) -> None:
        super().__init__()
        self.text, self.pictures = F.normalize(text, dim=1), F.normalize(pictures, dim=1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.network, self.picture = nn.Identity(), nn.Identity()

    def text_features(self, prompts: object) -> Tensor:
        return self.text

    def picture_features(self, images: object) -> Tensor:
        return self.pictures


def batch(captions: tuple[str, ...]) -> Batch:
    rows = len(captions)
    return Batch(images=torch.zeros(rows, 3, 4, 4), captions=captions, index=tuple(range(rows)),
                 sample=tuple(range(rows)), labels=("",) * rows)  # fmt: skip


@pytest.mark.parametrize("captions, share", [(("cat", "cat", "dog"), 1.0), (("cat", "tom", "dog"), 2 / 3)])
def test_rows_of_one_caption_are_each_others_right_answers(captions: tuple[str, ...], share: float) -> None:
    """The first two texts, and pictures, prefer each other's partner where captions are shared: both are right."""
    text = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    pictures = torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 1.0]])
    recipe = ContrastiveRecipe(augment=Augment(), word_drop=0.0)
    task = ContrastiveTask(Towers(text, pictures), recipe, captions)  # type: ignore[arg-type]
    rows = batch(captions)
    loss = task.loss(rows, Rng.samples(0, rows.sample))
    assert float(loss.parts["top1"]) == pytest.approx(share)
    assert task.validate(rows, Rng.samples(0, rows.sample))["top1"] == pytest.approx(share)
