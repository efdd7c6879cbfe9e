"""Prompts as token ids of one length, and what of a long prompt is not read.

A tokenizer is a file (tokenizer.json of the `tokenizers` library), trained here on captions or a pretrained encoder's
own. Every prompt stands between the encoder's marks; what is too long is cut at its end, the marks stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from carrara.text.base import Cut
from carrara.types import Asset

__all__ = ["MARKS", "PromptTokenizer", "train_tokenizer"]

_PAD = "[PAD]"
MARKS = ("[START]", "[END]")
"""What stands around every prompt for a tokenizer of `train_tokenizer`."""


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
        special_tokens=[_PAD, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    return Asset("tokenizer.json", tokenizer.to_str(pretty=False).encode())


class PromptTokenizer:
    """Prompts to ids (B, length) and their mask, as the tokenizer in `asset` splits them.

    `marks` are the names of the tokens before and after each prompt; None takes what the file itself puts there.
    Raises ValueError for a file that is no tokenizer, for a length that leaves no room between the marks, and for a
    prompt that is no text.
    """

    def __init__(self, asset: Asset, length: int, *, marks: tuple[str, str] | None = None) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(asset.data.decode())
        except Exception as error:  # the library raises no class of its own
            raise ValueError(f"{asset.name} is no tokenizer of the `tokenizers` library: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length = length
        self._before, self._after = _marks(self._tokenizer, marks)
        self._room = length - len(self._before) - len(self._after)
        if self._room < 1:
            raise ValueError(f"length = {length}, and each prompt has {length - self._room} marks; give more")

    @property
    def vocabulary(self) -> int:
        """How many different ids there are."""
        return int(self._tokenizer.get_vocab_size())

    def _encodings(self, prompts: Sequence[str]) -> list[Any]:
        for prompt in prompts:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the prompt {prompt!r} is no text: it has bytes that are not UTF-8") from None
        return list(self._tokenizer.encode_batch(list(prompts), add_special_tokens=False))

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, length) int64, zero where there is nothing, and their mask (B, length) bool, true for tokens."""
        ids = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for row, encoding in enumerate(self._encodings(prompts)):
            tokens = [*self._before, *encoding.ids[: self._room], *self._after]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, its marks included; those above `length` are cut."""
        marks = len(self._before) + len(self._after)
        return [len(encoding.ids) + marks for encoding in self._encodings(prompts)]

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts that are longer than `length`, each with the end of it that is not read."""
        found = [
            Cut(row, prompts[row][encoding.offsets[self._room][0] :].strip())
            for row, encoding in enumerate(self._encodings(prompts))
            if len(encoding.ids) > self._room
        ]
        return [cut for cut in found if cut.lost]  # blanks at the end are no loss


def _marks(tokenizer: Any, marks: tuple[str, str] | None) -> tuple[list[int], list[int]]:
    """The ids before and after a prompt: of the named tokens, or what the file's own post-processor puts there."""
    if marks is not None:
        before, after = ([tokenizer.token_to_id(mark)] for mark in marks)
        return before, after
    encoding = tokenizer.encode("a", add_special_tokens=True)
    said = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    if not said:
        raise ValueError('the tokenizer makes no token of "a"')
    return list(encoding.ids[: said[0]]), list(encoding.ids[said[-1] + 1 :])
