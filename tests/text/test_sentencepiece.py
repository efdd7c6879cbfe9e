"""T5's spiece.model: the same tokens as its published tokenizer.json, and no bytes that do harm."""

from __future__ import annotations

import base64
import json
import struct
import time
from pathlib import Path

import pytest

from carrara.errors import StorageError
from carrara.store.transformers.sentencepiece import unigram_tokenizer
from carrara.store.transformers.tokenizer import find_pad, find_tokenizer
from real_tokenizers import PROMPTS, T5_FILE, needs_vocabularies


def whole(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, float):
        return whole(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return whole(number << 3) + whole(value)
    return whole(number << 3 | 2) + whole(len(value)) + value


def piece(text: str, score: float, kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


SMALL = [piece("<pad>", 0.0, 3), piece("</s>", 0.0, 3), piece("<unk>", 0.0, 2), piece("\u2581", -2.0),
         piece("a", -3.0), piece("\u2581ab", -4.0), piece("b", -3.0)]  # fmt: skip
TRAINER = field(2, field(3, 1) + field(40, 2))


@needs_vocabularies
def test_the_published_pieces_give_the_published_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    published = json.loads(T5_FILE.read_text())
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    pieces = [piece(text, score, kinds.get(text, 1)) for text, score in published["model"]["vocab"][:32000]]
    table = base64.b64decode(published["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    normaliser = field(3, field(1, b"nmt_nfkc") + field(2, table) + field(3, 1))
    (tmp_path / "spiece.model").write_bytes(b"".join(pieces) + TRAINER + normaliser)
    asset = find_tokenizer(tmp_path)
    ours, theirs = Tokenizer.from_str(asset.data.decode()), Tokenizer.from_file(str(T5_FILE))
    for prompt in [*PROMPTS, "<extra_id_7> of 99", "</s>", "\u2581", "a" * 500, "① ㎏ ｶﾞ"]:
        assert ours.encode(prompt).ids == theirs.encode(prompt).ids, prompt
    assert ours.get_vocab() == theirs.get_vocab()
    assert find_pad(tmp_path, asset) == 0


def test_a_small_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    (tmp_path / "spiece.model").write_bytes(b"".join(SMALL) + TRAINER)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 2}))
    tokenizer = Tokenizer.from_str(find_tokenizer(tmp_path).data.decode())
    assert tokenizer.encode("ab  a x").tokens == ["\u2581ab", "\u2581", "a", "\u2581", "x", "</s>"]
    assert tokenizer.encode("<extra_id_1>").ids == [7, 1]
    assert tokenizer.get_vocab_size() == 9
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 10**9}))
    with pytest.raises(StorageError, match="extra_ids = 1000000000; expected 0 to 1000"):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "lacks </s>"),
        (b"".join(SMALL[:1] + SMALL[2:]) + TRAINER, "lacks </s>"),
        (b"".join(SMALL) + field(2, field(40, 99999)), "or its unknown piece"),
        (b"".join(SMALL) + SMALL[4] + TRAINER, "says a piece twice"),
        (b"".join(SMALL) + field(2, field(3, 2)), "no unigram"),
        (b"".join(SMALL)[:-3], "cut off"),
        (field(1, 7), "a number where bytes are expected"),
        (field(1, field(1, b"\xff\xfe")), "codec"),
        (b"\xff" * 40, "more than ten bytes"),
        (field(1, field(2, b"123456")), "no number of four bytes"),
        (b"\x0b", "of the form 3"),
        (whole(1 << 3 | 2) + whole(2**60), "cut off"),
        (b"".join(SMALL) + TRAINER + field(3, field(2, b"\x04\0\0\0x")), "is no SentencePiece file"),
        (bytes(range(256)) * 4000, "is no SentencePiece file"),
    ],
)
def test_bytes_that_are_none(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(data)
    began = time.process_time()
    with pytest.raises(StorageError, match=says):
        find_tokenizer(tmp_path)
    assert time.process_time() - began < 2


def test_every_prefix_is_refused_or_read() -> None:
    """Cut anywhere, the file raises nothing but ValueError."""
    data = b"".join(SMALL) + TRAINER
    for length in range(len(data)):
        try:
            unigram_tokenizer(data[:length])
        except ValueError:
            continue
