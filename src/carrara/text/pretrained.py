"""A frozen text encoder that others have trained: CLIP's, T5's, a sentence encoder's. Its weights are its own files.

`carrara.store.transformers` reads it from a folder; saved as a component, it is complete alone: weights, tokenizer, and
what both mean. So a model folder can be copied, and does not change when a file elsewhere does.

What a generator reads may be whitened (nn/whitening.py), measured once over captions. The fingerprint is that of the
weights, the tokenizer, how they are read, and those captions: measured again on another machine, the same captions give
the same whitening up to the rounding of float32, which is no other encoder.

What a prompt means to networks that others have trained with it is its `Convention`. A long prompt may have the tokens
of several chunks; where prompts of a request differ in that, a mask hides what the shorter ones lack, so that no
picture depends on the prompts beside its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured, Role
from carrara.fingerprint import fingerprint
from carrara.nn.whitening import Whitening
from carrara.text.base import Cut, Reading
from carrara.text.convention import Convention
from carrara.text.emphasis import emphasise
from carrara.text.tokenizer import PromptTokenizer, TokenRows
from carrara.text.whitening import measure_both
from carrara.types import Ask, Asset, Condition, Round, Rounds, Space

__all__ = ["PretrainedText"]

_KEPT_BYTES = 64 << 20  # of encodings, by prompt
_OURS = Convention()
_AS_SAVED = Reading()
_LEARNT = ("masked", "vector", "zero_empty", "lower")  # beside `pad`, where that is read


class _Kept(NamedTuple):
    """The encoding of one prompt: tokens (L, D), their mask (L,), the vector (D',)."""

    tokens: Tensor
    mask: Tensor
    vector: Tensor


class PretrainedText(Configured, nn.Module):
    """A network over the tokens of a tokenizer file, of which `length` are read, marks included.

    `start` gives tokens (B, length, D) with their mask and the vector (B, D'), as `convention` says. It is never
    trained, so that what a prompt has given is kept and given again. With `whiten`, `measure` comes first, or weights
    that have been measured. Raises ValueError for a tokenizer and a network that do not fit, for a length that is too
    much for the network, and for a convention that is not for it.
    """

    measured: Tensor

    def __init__(
        self,
        tokenizer: Asset,
        network: Annotated[nn.Module, Role("text_network")],
        length: int = 77,
        whiten: bool = True,
        convention: Convention = _OURS,
    ) -> None:
        super().__init__()
        self.tokenizer, self.network, self.length, self.whiten = tokenizer, network, length, whiten
        self.convention = convention
        config: Any = network.config
        self._reader = PromptTokenizer(
            tokenizer, length, pad=convention.pad or 0, chunks=convention.chunks, emphasis=convention.emphasis
        )
        if self._reader.vocabulary > config["vocabulary"]:
            raise ValueError(
                f"the tokenizer has {self._reader.vocabulary} tokens and the network knows {config['vocabulary']}; "
                "give the tokenizer that it was trained with"
            )
        if self._reader.pad >= config["vocabulary"]:
            raise ValueError(f"pad = {self._reader.pad}, and the network knows ids below {config['vocabulary']}")
        if (most := config.get("length")) and length > most:
            raise ValueError(f"length = {length}, and this encoder reads {most} tokens at most, marks included")
        if not self._reader([""])[1].any():
            raise ValueError("the tokenizer puts no mark around a prompt, so that an empty one would be nothing at all")
        if whiten and not (convention.masked and convention.vector):
            raise ValueError("whitening is of real tokens and the vector: give whiten = false, or masked and vector")
        if not convention.masked and "padding" not in inspect.signature(network.forward).parameters:
            raise ValueError("masked = false is for networks that read padding, and this one does not; leave it out")
        self._widths = config["width"], config.get("pooled") or config["width"]
        self._vocabulary = config["vocabulary"]
        if whiten:
            self.whiten_tokens, self.whiten_vector = map(Whitening, self._widths)
            self.register_buffer("measured", torch.zeros(16, dtype=torch.uint8))  # a hash of the captions
        self.facts: dict[str, Any] = {}  # what should be known of it, for its card
        self._hashed: tuple[list[Any], str] = [], ""
        self._kept: OrderedDict[tuple[Any, ...], _Kept] = OrderedDict()
        self.requires_grad_(False).eval()

    @property
    def space(self) -> Space:
        widths = self._widths if self.convention.vector else self._widths[:1]
        return Space("text", (self.length, *widths), self._vocabulary, self._fingerprint())

    @property
    def skips(self) -> int:
        """The most layers that a `Reading` may skip; 0 for a network that has no such choice."""
        return int(getattr(self.network, "skips", 0))

    @property
    def skipped(self) -> int:
        """How many layers the tokens never go through."""
        config: Any = self.network.config
        return int(config.get("skip", 0))

    def _fingerprint(self) -> str:
        """Of what decides the Condition; hashed again only where a tensor is another, or was written to."""
        tensors = [*self.network.parameters(), *self.network.buffers(), *([self.measured] if self.whiten else [])]
        now = [(tensor, tensor.data_ptr(), tensor._version) for tensor in tensors]
        before, found = self._hashed
        same = [(id(tensor), *state) for tensor, *state in now] == [(id(tensor), *state) for tensor, *state in before]
        if not (found and same):
            how = [type(self.network).__name__, self.network.config, self.length, self.whiten, *self._unlike()]
            state = {**self.network.state_dict(), **({"measured": self.measured} if self.whiten else {})}
            found = fingerprint(state, self.tokenizer.data, json.dumps(how, sort_keys=True).encode())
            self._hashed = now, found
        return found

    def _unlike(self) -> list[dict[str, Any]]:
        """What of the convention a generator is trained with, where it is not our own.

        Chunks and emphasis are not: they say more of a prompt, and mean the same by it.
        """
        own, said = dataclasses.asdict(_OURS), dataclasses.asdict(self.convention)
        names = _LEARNT if said["masked"] else (*_LEARNT, "pad")
        unlike = {name: said[name] for name in names if said[name] != own[name]}
        return [unlike] if unlike else []

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.no_grad()
    def measure(self, prompts: Sequence[str]) -> None:
        """Measures the whitening over the different prompts, whatever their order."""
        if not self.whiten:
            raise ValueError("this encoder was made with whiten = false: there is nothing to measure")
        different = sorted(set(prompts))
        measure_both(self.whiten_tokens, self.whiten_vector, different, self._seen)
        digest = hashlib.sha256("\0".join(different).encode()).digest()[: len(self.measured)]
        self.measured.copy_(torch.tensor(list(digest), dtype=torch.uint8))

    def _seen(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenize(prompts)
        tokens, vector = self._read(ids, mask)
        return tokens[mask], vector

    def _read(self, ids: Tensor, mask: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
        skipping = () if skip is None else (skip,)
        padding = {}
        if not self.convention.masked:  # nothing is hidden; CLIP's vector is of the first end mark, even a prompt's own
            ends = (ids == self._reader.end).long()
            mask, padding = mask & (ends.cumsum(1) == ends), {"padding": True}
        # whitening enlarges small differences, which low precision would drown
        with torch.autocast(ids.device.type, enabled=False):
            tokens, vector = self.network(ids, mask, *skipping, **padding)
        return tokens.float(), vector.float()

    def encode(
        self, ids: Tensor, mask: Tensor, weights: Tensor | None = None, skip: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) and the vector (B, D'), whitened where that is measured, emphasised by weights (B, L).

        Where padding is masked it is zero. skip (B,) int64: layers that the tokens of a row skip.
        """
        tokens, vector = self._read(ids, mask, skip)
        if self.whiten:
            tokens, vector = self.whiten_tokens(tokens) * mask[:, :, None], self.whiten_vector(vector)
        if weights is not None:
            tokens = emphasise(tokens, weights, restore=self.convention.restore)
        return tokens, vector

    def _plain(self, prompts: Sequence[str]) -> Sequence[str]:
        return [prompt.lower().strip() for prompt in prompts] if self.convention.lower else prompts

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (R, length) int64, padded, and their mask (R, length) bool: a row a prompt, or a chunk of one.

        What is too long is cut; see `cuts`.
        """
        ids, mask = self._reader(self._plain(prompts))
        return ids.to(self._device), mask.to(self._device)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, marks included; those above `length` times the chunks are cut."""
        return self._reader.lengths(self._plain(prompts))

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts that are longer than the encoder reads, with what is lost of each."""
        return self._reader.cuts(self._plain(prompts))

    def start(self, prompts: Sequence[str], reading: Reading = _AS_SAVED) -> Rounds:
        """The Condition of the prompts: at most one call of the network, for those that it has not read lately."""
        if self.whiten and not bool(self.measured.any()):
            raise ValueError(
                "this encoder's whitening has not been measured; call `measure` with captions, or make it with "
                "whiten = false"
            )
        if reading.skip > self.skips:
            raise ValueError(f"skip = {reading.skip}, and of this text encoder {self.skips} layers can be skipped")
        key = (self._fingerprint(), self._device, reading)
        found = {prompt: self._kept[*key, prompt] for prompt in prompts if (*key, prompt) in self._kept}
        if self.convention.zero_empty:
            found[""] = self._nothing()
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]:
            rows = self._reader.read(self._plain(new))
            tokens, vector = yield from self._encoded(rows, reading)
            start = 0
            for prompt, count in zip(new, rows.chunks, strict=True):
                own = slice(start, start + count)
                mask = rows.mask[own] if self.convention.masked else torch.ones_like(rows.mask[own])
                kept = _Kept(tokens[own].flatten(0, 1).clone(), mask.flatten().to(tokens.device), vector[start].clone())
                found[prompt] = self._kept[*key, prompt] = kept
                start += count
        self._forget()
        return self._condition([found[prompt] for prompt in prompts])

    def _encoded(self, rows: TokenRows, reading: Reading) -> Rounds:
        """Tokens and vectors of rows, one call of the network."""
        ids, mask = rows.ids.to(self._device), rows.mask.to(self._device)
        weights = rows.weights.to(self._device) if self.convention.emphasis else None
        skip = torch.full((len(ids),), reading.skip, device=self._device) if reading.skip else None
        (found,) = yield Round((Ask(self.encode, (ids, mask, weights, skip)),))
        return found

    def _nothing(self) -> _Kept:
        place, (width, pooled) = self._device, self._widths
        mask = torch.ones(self.length, dtype=torch.bool, device=place)
        return _Kept(torch.zeros(self.length, width, device=place), mask, torch.zeros(pooled, device=place))

    def _condition(self, kept: Sequence[_Kept]) -> Condition:
        longest = max(len(one.tokens) for one in kept)
        tokens = torch.stack([F.pad(one.tokens, (0, 0, 0, longest - len(one.tokens))) for one in kept])
        mask = torch.stack([F.pad(one.mask, (0, longest - len(one.mask))) for one in kept])
        masked = self.convention.masked or any(len(one.mask) < longest for one in kept)
        vector = torch.stack([one.vector for one in kept]) if self.convention.vector else None
        return Condition(tokens=tokens, mask=mask if masked else None, vector=vector)

    def _forget(self) -> None:
        """Drops the oldest encodings beyond a fixed size."""
        bytes_each = 4 * (self.convention.chunks * self.length * self._widths[0] + self._widths[1])
        while len(self._kept) * bytes_each > _KEPT_BYTES:
            self._kept.popitem(last=False)
