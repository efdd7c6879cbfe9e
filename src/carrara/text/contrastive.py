r"""Text encoders: prompts become a Condition. One trained here on captions, class labels, or nothing at all.

`ContrastiveText` learns by CLIP's objective (Radford et al. 2021): a text tower and a picture tower map a caption and
its picture to unit vectors u_i, v_i, and over a batch the right pairs are told from the wrong ones,

    loss = 1/2 [ CE(s u_i . v_j, i) + CE(s v_i . u_j, i) ],      s = exp(learned scale), at most 100

Rows that share a caption are each other's right answers too. Such features gather in a few directions, in which a
generator cannot tell hundreds of concepts apart; what it reads is therefore whitened, to mean 0 and covariance near I
over the captions, measured once and stored with the weights. The null condition is the encoding of the empty prompt,
the same object in training and in sampling.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured, Role
from carrara.fingerprint import fingerprint
from carrara.types import Ask, Asset, Condition, Round, Rounds, Space

__all__ = [
    "ContrastiveText",
    "Cut",
    "Labels",
    "TextEncoder",
    "Unconditional",
    "Whitening",
    "contrastive_loss",
    "train_tokenizer",
]

_PAD, _START, _END = "[PAD]", "[START]", "[END]"


class TextEncoder(Protocol):
    """Prompts to a Condition, as one of the parts of a system."""

    @property
    def space(self) -> Space:
        """What it makes; its fingerprint tells one training from another."""
        ...

    def start(self, prompts: Sequence[str]) -> Rounds:
        """A request for the Condition of the prompts; the empty prompt is the null condition."""
        ...


class Cut(NamedTuple):
    """A prompt that is longer than the encoder reads: its number, and the words that are not read."""

    row: int
    lost: str


def train_tokenizer(captions: Sequence[str], *, vocabulary: int = 1024) -> Asset:
    """A lower-case byte-level BPE tokenizer learnt from captions (Sennrich et al. 2016), as a tokenizer.json.

    Any text can be encoded. The same captions give the same tokenizer, whatever their order.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocabulary < 300:
        raise ValueError(f"vocabulary = {vocabulary}; 256 bytes and three marks leave no room for words below 300")
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return Asset("tokenizer.json", tokenizer.to_str(pretty=False).encode())


class ContrastiveText(Configured, nn.Module):
    """A transformer over BPE tokens, trained beside a picture tower.

    `start` gives tokens (B, L, D) with their mask and the pooled vector (B, D'). `picture_features` and `text_features`
    are the unit vectors whose product says how well a picture and a prompt fit.
    """

    def __init__(
        self,
        tokenizer: Asset,
        network: Annotated[nn.Module, Role("text_network")],
        picture: Annotated[nn.Module, Role("picture_network")],
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.network = network
        self.picture = picture
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        config: Any = network.config
        width, pooled = config["width"], config["pooled"] or config["width"]
        self.whiten_tokens, self.whiten_vector = Whitening(width), Whitening(pooled)

    @cached_property
    def _encoder(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer.data.decode())

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
        features = []
        for i in range(0, len(prompts), 256):
            ids, mask = (tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts[i : i + 256]))
            tokens, vector = self._read(ids, mask)
            features.append((tokens[mask], vector))
        self.whiten_tokens.measure(torch.cat([tokens for tokens, _ in features]))
        self.whiten_vector.measure(torch.cat([vector for _, vector in features]))

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
        start, end, pad = (self._encoder.token_to_id(mark) for mark in (_START, _END, _PAD))
        ids = torch.full((len(prompts), self.length), pad, dtype=torch.int64)
        for row, encoding in enumerate(self._encoder.encode_batch(list(prompts))):
            words = [start, *encoding.ids[: self.length - 2], end]
            ids[row, : len(words)] = torch.tensor(words)
        return ids, ids != pad

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, the two marks included; those above `length` are cut."""
        return [len(encoding.ids) + 2 for encoding in self._encoder.encode_batch(list(prompts))]

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts that are longer than the encoder reads, with what is lost of each."""
        encodings = self._encoder.encode_batch(list(prompts))
        return [
            Cut(row, self._encoder.decode(encoding.ids[self.length - 2 :]).strip())
            for row, encoding in enumerate(encodings)
            if len(encoding.ids) > self.length - 2
        ]

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The Condition of the prompts: one call of the text tower."""
        ids, mask = (tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts))
        ((tokens, pooled),) = yield Round((Ask(self.encode, (ids, mask)),))
        return Condition(tokens=tokens, mask=mask, vector=pooled)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D')."""
        ids, mask = (tensor.to(self.log_scale.device) for tensor in self.tokenize(prompts))
        return F.normalize(self.network(ids, mask)[1].float(), dim=-1)

    def picture_features(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D') of pictures (B, C, H, W) in [-1, 1]."""
        return F.normalize(self.picture(images).float(), dim=-1)


class Whitening(nn.Module):
    """x -> (x - mean) C^(-1/2) with the covariance C of data, a ten-thousandth of its largest eigenvalue added to all.

    Where few captions span few directions, a prompt that lies off them would be enlarged a hundredfold: no row is made
    longer than four times the usual sqrt(D). Before `measure` nothing else is done.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))
        self._longest = 4 * math.sqrt(width)

    @torch.no_grad()
    def measure(self, x: Tensor) -> None:
        """Measures mean and covariance of the rows of x (N, D)."""
        rows = x.double().cpu()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1))
        scale = (values.clamp(min=0) + 1e-4 * values.max().clamp(min=1e-12)).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_((vectors * scale) @ vectors.T)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D), whitened, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            white = (x.float() - self.mean) @ self.matrix
            return white * (self._longest / white.norm(dim=-1, keepdim=True).clamp(min=self._longest))


def contrastive_loss(text: Tensor, pictures: Tensor, log_scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's loss of each row: (B,). `text` and `pictures` are unit vectors (B, D); `same` (B, B) marks right pairs."""
    logits = log_scale.clamp(max=math.log(100.0)).exp() * text @ pictures.T
    target = same.to(logits.dtype)
    target = target / target.sum(1, keepdim=True)
    of_text = -(target * logits.log_softmax(1)).sum(1)
    of_pictures = -(target * logits.T.log_softmax(1)).sum(1)  # `same` is symmetric
    return (of_text + of_pictures) / 2


class Labels(Configured, nn.Module):
    """Class names as one-hot vectors (B, K + 1); the last place is the null class, which the empty prompt names.

    It has no weights: the generator's own projection of the vector is the embedding.
    """

    _here: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        if not names or len(set(names)) < len(names):
            raise ValueError(f"{len(names)} class names with {len(set(names))} different ones; expected distinct names")
        self.names = names
        self.register_buffer("_here", torch.empty(0), persistent=False)  # knows the device

    @property
    def space(self) -> Space:
        return Space("text", (len(self.names) + 1,), len(self.names), fingerprint({}, json.dumps(self.names).encode()))

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The Condition of the labels; ValueError with the nearest name for an unknown one."""
        places = {name: place for place, name in enumerate(self.names)} | {"": len(self.names)}
        for prompt in prompts:
            if prompt not in places:
                near = difflib.get_close_matches(prompt, self.names, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"the classes are {', '.join(self.names[:20])}"
                raise ValueError(f'"{prompt}" is no class of this model; {hint}')
        index = torch.tensor([places[prompt] for prompt in prompts], device=self._here.device)
        yield from ()
        return Condition(vector=F.one_hot(index, len(self.names) + 1).float())


class Unconditional(Configured, nn.Module):
    """No condition at all: prompts must be empty."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def space(self) -> Space:
        return Space("text", ())

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The empty Condition; ValueError for a prompt, which would otherwise be ignored."""
        if told := [prompt for prompt in prompts if prompt]:
            raise ValueError(f'this model has no text encoder and cannot read "{told[0]}"; give empty prompts')
        yield from ()
        return Condition()
