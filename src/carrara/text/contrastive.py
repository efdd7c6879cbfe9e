r"""A text encoder that is trained here: captions and pictures recognise each other's pairs.

`ContrastiveText` learns by CLIP's objective (Radford et al. 2021): a text tower and a picture tower map a caption and
its picture to unit vectors u_i, v_i, and over a batch the right pairs are told from the wrong ones,

    loss = 1/2 [ CE(s u_i . v_j, i) + CE(s v_i . u_j, i) ],      s = exp(learned scale), at most 100

Rows that share a caption are each other's right answers too. What a generator reads is whitened (nn/whitening.py).
The null condition is the encoding of the empty prompt, the same object in training and in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured, Role
from carrara.fingerprint import fingerprint
from carrara.nn.whitening import Whitening
from carrara.text.base import Cut
from carrara.text.tokenizer import MARKS, PromptTokenizer
from carrara.text.whitening import measure_both
from carrara.text.words import Unknown, read_words, unknown
from carrara.types import Ask, Asset, Condition, Round, Rounds, Space

__all__ = ["ContrastiveText", "contrastive_loss"]


class ContrastiveText(Configured, nn.Module):
    """A transformer over BPE tokens, trained beside a picture tower.

    `start` gives tokens (B, L, D) with their mask and the pooled vector (B, D'). `picture_features` and `text_features`
    are the unit vectors whose product says how well a picture and a prompt fit. `words` are those of the captions
    (`known_words`); without them it cannot be said that a prompt has none of them.
    """

    def __init__(
        self,
        tokenizer: Asset,
        network: Annotated[nn.Module, Role("text_network")],
        picture: Annotated[nn.Module, Role("picture_network")],
        words: Asset | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.words = tokenizer, words
        self.network = network
        self.picture = picture
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        config: Any = network.config
        width, pooled = config["width"], config["pooled"] or config["width"]
        self.whiten_tokens, self.whiten_vector = Whitening(width), Whitening(pooled)

    @cached_property
    def _reader(self) -> PromptTokenizer:
        return PromptTokenizer(self.tokenizer, self.length, marks=MARKS)

    @cached_property
    def _known(self) -> frozenset[str]:
        return read_words(self.words) if self.words else frozenset()

    @cached_property
    def length(self) -> int:
        """The longest sequence of tokens that is read, marks included."""
        return int(self.network.config["length"])  # type: ignore[index]

    @property
    def space(self) -> Space:
        config: Any = self.network.config
        return Space(
            "text",
            (self.length, config["width"], config["pooled"] or config["width"]),
            config["vocabulary"],
            fingerprint(self._encoding_state(), self.tokenizer.data),
        )

    def _encoding_state(self) -> dict[str, Tensor]:
        """What decides the Condition; the picture tower and the scale do not."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith(("picture.", "log_scale"))}

    @torch.no_grad()
    def measure(self, prompts: Sequence[str]) -> None:
        """Measures the whitening over the different prompts, before which `start` gives the features as they are."""
        measure_both(self.whiten_tokens, self.whiten_vector, prompts, self._seen)

    def _seen(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = (tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts))
        tokens, vector = self._read(ids, mask)
        return tokens[mask], vector

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # whitening enlarges small differences, which low precision would drown
        with torch.autocast(ids.device.type, enabled=False):
            tokens, vector = self.network(ids, mask)
        return tokens.float(), vector.float()

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened tokens (B, L, D), zero where the mask is false, and the whitened vector (B, D')."""
        tokens, vector = self._read(ids, mask)
        return self.whiten_tokens(tokens) * mask[:, :, None], self.whiten_vector(vector)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, length) int64, padded, and their mask (B, length) bool. What is too long is cut; see `cuts`."""
        return self._reader(prompts)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, the two marks included; those above `length` are cut."""
        return self._reader.lengths(prompts)

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts that are longer than the encoder reads, with what is lost of each."""
        return self._reader.cuts(prompts)

    def unknown(self, prompts: Sequence[str]) -> list[Unknown]:
        """The prompts of which no word was in the captions that it learnt from, where those words are known."""
        return unknown(prompts, self._known) if self._known else []

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The Condition of the prompts: one call of the text tower."""
        ids, mask = (tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts))
        ((tokens, pooled),) = yield Round((Ask(self.encode, (ids, mask)),))
        return Condition(tokens=tokens, mask=mask, vector=pooled)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D')."""
        return self._features(*(tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts)))

    def _features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.network(ids, mask)[1].float(), dim=-1)

    def picture_features(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D') of pictures (B, C, H, W) in [-1, 1]."""
        return F.normalize(self.picture(images).float(), dim=-1)

    def match(self, images: Tensor, prompts: Sequence[str]) -> Rounds:
        """A request for how well each picture (B, C, H, W) fits its prompt: (B,), the product of their unit vectors."""
        ids, mask = (tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts))
        asks = (Ask(self.picture_features, (images,)), Ask(self._features, (ids, mask)))
        (seen,), (read,) = yield Round(asks)
        return (seen * read).sum(1)


def contrastive_loss(text: Tensor, pictures: Tensor, log_scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's loss of each row: (B,). `text` and `pictures` are unit vectors (B, D); `same` (B, B) marks right pairs."""
    logits = log_scale.clamp(max=math.log(100.0)).exp() * text @ pictures.T
    target = same.to(logits.dtype)
    target = target / target.sum(1, keepdim=True)
    of_text = -(target * logits.log_softmax(1)).sum(1)
    of_pictures = -(target * logits.T.log_softmax(1)).sum(1)  # `same` is symmetric
    return (of_text + of_pictures) / 2
