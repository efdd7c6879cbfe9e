"""A frozen text encoder that others have trained: CLIP's, T5's, a sentence encoder's. Its weights are its own files.

`carrara.store.transformers` reads it from a folder; saved as a component, it is complete alone: weights, tokenizer, and
what both mean. So a model folder can be copied, and does not change when a file elsewhere does.

What a generator reads may be whitened (nn/whitening.py), measured once over captions. The fingerprint is that of the
weights, the tokenizer, how they are read, and those captions: measured again on another machine, the same captions give
the same whitening up to the rounding of float32, which is no other encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.fingerprint import fingerprint
from carrara.nn.whitening import Whitening
from carrara.text.base import Cut
from carrara.text.tokenizer import PromptTokenizer
from carrara.text.whitening import measure_both
from carrara.types import Ask, Asset, Condition, Round, Rounds, Space

__all__ = ["PretrainedText"]

_KEPT_BYTES = 64 << 20  # of encodings, by prompt


class PretrainedText(Configured, nn.Module):
    """A network over the tokens of a tokenizer file, of which `length` are read, marks included.

    `start` gives tokens (B, length, D) with their mask and the vector (B, D'). It is never trained, so that what a
    prompt has given is kept and given again. With `whiten`, `measure` comes first, or weights that have been measured.
    Raises ValueError for a tokenizer and a network that do not fit, and for a length that is too much for the network.
    """

    measured: Tensor

    def __init__(
        self,
        tokenizer: Asset,
        network: Annotated[nn.Module, Role("text_network")],
        length: int = 77,
        whiten: bool = True,
    ) -> None:
        super().__init__()
        self.tokenizer, self.network, self.length, self.whiten = tokenizer, network, length, whiten
        config: Any = network.config
        self._reader = PromptTokenizer(tokenizer, length)
        if self._reader.vocabulary > config["vocabulary"]:
            raise ValueError(
                f"the tokenizer has {self._reader.vocabulary} tokens and the network knows {config['vocabulary']}; "
                "give the tokenizer that it was trained with"
            )
        if (most := config.get("length")) and length > most:
            raise ValueError(f"length = {length}, and this encoder reads {most} tokens at most, marks included")
        if not self._reader([""])[1].any():
            raise ValueError("the tokenizer puts no mark around a prompt, so that an empty one would be nothing at all")
        self._widths = config["width"], config.get("pooled") or config["width"]
        self._vocabulary = config["vocabulary"]
        if whiten:
            self.whiten_tokens, self.whiten_vector = map(Whitening, self._widths)
            self.register_buffer("measured", torch.zeros(16, dtype=torch.uint8))  # a hash of the captions
        self.facts: dict[str, Any] = {}  # what should be known of it, for its card
        self._hashed: tuple[list[Any], str] = [], ""
        self._kept: OrderedDict[tuple[Any, ...], tuple[Tensor, ...]] = OrderedDict()
        self.requires_grad_(False).eval()

    @property
    def space(self) -> Space:
        return Space("text", (self.length, *self._widths), self._vocabulary, self._fingerprint())

    def _fingerprint(self) -> str:
        """Of what decides the Condition; hashed again only where a tensor is another, or was written to."""
        tensors = [*self.network.parameters(), *self.network.buffers(), *([self.measured] if self.whiten else [])]
        now = [(tensor, tensor.data_ptr(), tensor._version) for tensor in tensors]
        before, found = self._hashed
        same = [(id(tensor), *state) for tensor, *state in now] == [(id(tensor), *state) for tensor, *state in before]
        if not (found and same):
            how = [type(self.network).__name__, self.network.config, self.length, self.whiten]
            state = {**self.network.state_dict(), **({"measured": self.measured} if self.whiten else {})}
            found = fingerprint(state, self.tokenizer.data, json.dumps(how, sort_keys=True).encode())
            self._hashed = now, found
        return found

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

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # whitening enlarges small differences, which low precision would drown
        with torch.autocast(ids.device.type, enabled=False):
            tokens, vector = self.network(ids, mask)
        return tokens.float(), vector.float()

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D), zero where the mask is false, and the vector (B, D'), whitened where that is measured."""
        tokens, vector = self._read(ids, mask)
        if not self.whiten:
            return tokens, vector
        return self.whiten_tokens(tokens) * mask[:, :, None], self.whiten_vector(vector)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, length) int64, padded, and their mask (B, length) bool. What is too long is cut; see `cuts`."""
        ids, mask = self._reader(prompts)
        return ids.to(self._device), mask.to(self._device)

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, marks included; those above `length` are cut."""
        return self._reader.lengths(prompts)

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts that are longer than the encoder reads, with what is lost of each."""
        return self._reader.cuts(prompts)

    def start(self, prompts: Sequence[str]) -> Rounds:
        """The Condition of the prompts: at most one call of the network, for those that it has not read lately."""
        if self.whiten and not bool(self.measured.any()):
            raise ValueError(
                "this encoder's whitening has not been measured; call `measure` with captions, or make it with "
                "whiten = false"
            )
        key = (self._fingerprint(), self._device)
        found = {prompt: self._kept[*key, prompt] for prompt in prompts if (*key, prompt) in self._kept}
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]:
            ids, mask = self.tokenize(new)
            ((tokens, vector),) = yield Round((Ask(self.encode, (ids, mask)),))
            for row, prompt in enumerate(new):
                found[prompt] = self._kept[*key, prompt] = tokens[row].clone(), mask[row], vector[row].clone()
        self._forget()
        tokens, mask, vector = (torch.stack(rows) for rows in zip(*(found[prompt] for prompt in prompts), strict=True))
        return Condition(tokens=tokens, mask=mask, vector=vector)

    def _forget(self) -> None:
        """Drops the oldest encodings beyond a fixed size."""
        bytes_each = 4 * (self.length * self._widths[0] + self._widths[1])
        while len(self._kept) * bytes_each > _KEPT_BYTES:
            self._kept.popitem(last=False)
