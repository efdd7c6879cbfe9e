"""Prompts as token ids of one length, and what of a long prompt is not read.

A tokenizer is a file (tokenizer.json of the `tokenizers` library), trained here on captions or a pretrained encoder's
own. Every prompt stands between the encoder's marks; what is too long is cut at its end, the marks stay. Of several
chunks each is such a row of its own, with its own marks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.text.base import Cut
from carrara.text.emphasis import Weighted, parse_emphasis
from carrara.types import Asset

__all__ = ["MARKS", "PromptTokenizer", "TokenRows", "train_tokenizer"]

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


class TokenRows(NamedTuple):
    """The tokens of prompts, a row a chunk: the first rows are the first prompt's."""

    ids: Tensor  # (R, length) int64
    mask: Tensor  # (R, length) bool, true for tokens, false for padding
    weights: Tensor  # (R, length) float32, 1 where nothing is emphasised
    chunks: tuple[int, ...]  # of each prompt


class _Prompt(NamedTuple):
    """A prompt without its brackets and its marks."""

    text: str
    ids: list[int]
    weights: list[float]
    places: list[int]  # where in the text each token begins


class PromptTokenizer:
    """Prompts to ids and their mask, as the tokenizer in `asset` splits them.

    `marks` are the names of the tokens before and after each prompt; None takes what the file itself puts there. `pad`
    is the id of padding. Of a long prompt `chunks` rows are read. With `emphasis` the brackets of a prompt are weights.
    Raises ValueError for a file that is no tokenizer, for a length that leaves no room between the marks, and for a
    prompt that is no text.
    """

    def __init__(
        self,
        asset: Asset,
        length: int,
        *,
        marks: tuple[str, str] | None = None,
        pad: int = 0,
        chunks: int = 1,
        emphasis: bool = False,
    ) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(asset.data.decode())
        except Exception as error:  # the library raises no class of its own
            raise ValueError(f"{asset.name} is no tokenizer of the `tokenizers` library: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length, self.pad, self.chunks, self.emphasis = length, pad, chunks, emphasis
        self._before, self._after = _marks(self._tokenizer, marks)
        self._room = length - len(self._before) - len(self._after)
        if self._room < 1:
            raise ValueError(f"length = {length}, and each prompt has {length - self._room} marks; give more")

    @property
    def vocabulary(self) -> int:
        """How many different ids there are."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def end(self) -> int:
        """The id of the first mark after a prompt; -1 where there is none."""
        return self._after[0] if self._after else -1

    def _encodings(self, prompts: Sequence[str]) -> list[Any]:
        for prompt in prompts:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the prompt {prompt!r} is no text: it has bytes that are not UTF-8") from None
        return list(self._tokenizer.encode_batch(list(prompts), add_special_tokens=False))

    def _read(self, prompts: Sequence[str]) -> list[_Prompt]:
        """The tokens of each prompt; of one with emphasis those of each part, as if it stood alone."""
        parts = [parse_emphasis(prompt) if self.emphasis else (Weighted(prompt, 1.0),) for prompt in prompts]
        texts = [part.text.strip() if self.emphasis else part.text for some in parts for part in some]
        encodings = iter(self._encodings(texts))
        return [self._joined(some, encodings) for some in parts]

    def _joined(self, parts: Sequence[Weighted], encodings: Iterator[Any]) -> _Prompt:
        found = _Prompt("".join(part.text for part in parts), [], [], [])
        start = 0
        for part, encoding in zip(parts, encodings, strict=False):  # the iterator goes on to the next prompt
            blanks = len(part.text) - len(part.text.lstrip()) if self.emphasis else 0
            found.ids.extend(encoding.ids)
            found.weights.extend([part.weight] * len(encoding.ids))
            found.places.extend(start + blanks + begin for begin, _ in encoding.offsets)
            start += len(part.text)
        return found

    def read(self, prompts: Sequence[str]) -> TokenRows:
        """The tokens of prompts, in as many rows as each needs, at most `chunks`; what is too long is cut."""
        found, room = self._read(prompts), self._room
        chunks = tuple(min(self.chunks, max(1, -(-len(prompt.ids) // room))) for prompt in found)
        ids = torch.full((sum(chunks), self.length), self.pad, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        weights = torch.ones(ids.shape)
        rows = ((prompt, n * room) for prompt, count in zip(found, chunks, strict=True) for n in range(count))
        first = len(self._before)
        for row, (prompt, begin) in enumerate(rows):
            tokens = [*self._before, *prompt.ids[begin : begin + room], *self._after]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
            said = torch.tensor(prompt.weights[begin : begin + room])
            weights[row, first : first + len(said)] = said
        return TokenRows(ids, mask, weights, chunks)

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (R, length) int64, padded, and their mask (R, length) bool, true for tokens: a row a chunk."""
        return self.read(prompts)[:2]

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """How many tokens each prompt has, its marks included; those above `length` times `chunks` are cut."""
        marks = len(self._before) + len(self._after)
        counts = [len(prompt.ids) for prompt in self._read(prompts)]
        return [count + marks * min(self.chunks, max(1, -(-count // self._room))) for count in counts]

    def cuts(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts that are longer than is read, each with the end of it that is not."""
        most = self._room * self.chunks
        found = [
            Cut(row, prompt.text[prompt.places[most] :].strip())
            for row, prompt in enumerate(self._read(prompts))
            if len(prompt.ids) > most
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
