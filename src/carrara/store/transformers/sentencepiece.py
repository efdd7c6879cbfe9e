"""A SentencePiece file (Kudo and Richardson 2018) as a tokenizer.json: the unigram tokenizers of T5.

The file is one message of protocol buffers, of which this is read:

    1 piece, repeated    1 text, 2 score (float), 3 kind (2 unknown, 3 control)
    2 trainer            3 model (1 unigram), 40 id of the unknown
    3 normaliser         2 a compiled table of characters

A text is split into the pieces whose scores add up to the most. Behind the pieces come T5's sentinels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["unigram_tokenizer"]

_UNIGRAM, _UNKNOWN, _CONTROL = 1, 2, 3
_END = "</s>"
_SPACE = "\u2581"


def unigram_tokenizer(data: bytes, *, sentinels: int = 100) -> bytes:
    """The bytes of a tokenizer.json for those of a spiece.model; ValueError for bytes that are none."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces: list[tuple[str, float]] = []
    special: list[str] = []
    trainer: dict[int, int | bytes] = {}
    table = b""
    for number, value in _fields(data):
        if number == 1:
            text, score, kind = _piece(_bytes(value))
            pieces.append((text, score))
            special += [text] if kind in (_UNKNOWN, _CONTROL) else []
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            table = next((_bytes(said) for inner, said in _fields(_bytes(value)) if inner == 2), b"")
    unknown = trainer.get(40, 0)
    if trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise ValueError("its model is no unigram, which is what T5 has")
    extra = [f"<extra_id_{number}>" for number in range(sentinels - 1, -1, -1)]
    pieces += [(text, 0.0) for text in extra]
    ids = {text: number for number, (text, _) in enumerate(pieces)}
    if not isinstance(unknown, int) or unknown >= len(pieces) or _END not in ids or len(ids) < len(pieces):
        raise ValueError(f"it lacks {_END} or its unknown piece, or says a piece twice")
    tokenizer = Tokenizer(models.Unigram(pieces, unknown, False))
    spaces = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), _SPACE)]
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Precompiled(table)] if table else []), *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, ids[_END])])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in (*special, *extra)])
    return tokenizer.to_str(pretty=False).encode()


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            if len(_bytes(value)) != 4:
                raise ValueError("it has a score that is no number of four bytes")
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3 and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: their numbers, and a whole number or bytes each."""
    at = 0
    while at < len(data):
        key, at = _whole(data, at)
        number, form = key >> 3, key & 7
        if form == 0:
            value, at = _whole(data, at)
            yield number, value
            continue
        if form == 2:
            size, at = _whole(data, at)
        elif form in (1, 5):
            size = 8 if form == 1 else 4
        else:
            raise ValueError(f"it has a field of the form {form}")
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield number, data[at : at + size]
        at += size


def _whole(data: bytes, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = 0
    for place in range(10):
        if at + place >= len(data):
            raise ValueError("it is cut off")
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("it has a number of more than ten bytes")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("it has a number where bytes are expected")
    return value
