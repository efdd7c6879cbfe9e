"""The tokenizer of a pretrained encoder, as one tokenizer.json: its own, or made from the older files beside it.

    tokenizer.json              as it is
    vocab.json, merges.txt      CLIP's byte-level BPE (Radford et al. 2021)
    vocab.txt                   BERT's word pieces (Devlin et al. 2018)
    spiece.model                T5's pieces (Kudo and Richardson 2018)

Pipelines of several encoders keep them in folders of their own: text_encoder_2 beside tokenizer_2. The token that
stands for padding is what special_tokens_map.json or tokenizer_config.json says, else what tokenizer.json does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from carrara.errors import StorageError
from carrara.store.atomic import read_json, storage_errors
from carrara.store.transformers.sentencepiece import unigram_tokenizer
from carrara.types import Asset

__all__ = ["find_pad", "find_tokenizer"]

_NAME = "tokenizer.json"
# CLIP's own pattern: contractions, words, single digits, runs of other signs.
_CLIP_SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_CLIP_MARKS = ("<|startoftext|>", "<|endoftext|>")
_BERT_MARKS = ("[CLS]", "[SEP]")
_MOST = 64 << 20  # bytes of a spiece.model
_PADS = (_CLIP_MARKS[1], "<pad>")  # CLIP's and T5's, where nothing is said


def find_tokenizer(folder: Path) -> Asset:
    """The tokenizer of a model's folder; StorageError where there is none that can be read."""
    places = _places(folder)
    for place in places:
        with storage_errors(f"{place} cannot be read"):
            if (place / _NAME).is_file():
                return Asset(_NAME, (place / _NAME).read_bytes())
            if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
                return Asset(_NAME, _clip(place))
            if (place / "vocab.txt").is_file():
                return Asset(_NAME, _bert(place))
            if (place / "spiece.model").is_file():
                return Asset(_NAME, _t5(place))
    found = sorted(path.name for place in places for path in place.glob("*.model"))
    raise StorageError(
        f"{' and '.join(map(str, places))} {'have' if len(places) > 1 else 'has'} no {_NAME}"
        + (f", only {found[0]}" if found else "")
        + "; make one with transformers:  AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def find_pad(folder: Path, tokenizer: Asset) -> int:
    """The id of a model's padding; StorageError where it is no token of its tokenizer, or none is said."""
    from tokenizers import Tokenizer

    try:
        reader = Tokenizer.from_str(tokenizer.data.decode())
    except Exception as error:  # the library raises no class of its own
        raise StorageError(f"{folder}: {tokenizer.name} is no tokenizer: {error}") from error
    for place in _places(folder):
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if not (place / name).is_file():
                continue
            said = read_json(place / name).get("pad_token")
            if isinstance(token := said.get("content") if isinstance(said, Mapping) else said, str):
                if (number := reader.token_to_id(token)) is None:
                    raise StorageError(f'{place / name} says pad_token = "{token}", which its tokenizer does not have')
                return int(number)
    if reader.padding is not None:
        return int(reader.padding["pad_id"])
    for token in _PADS:
        if (number := reader.token_to_id(token)) is not None:
            return int(number)
    raise StorageError(f"{folder} does not say what its padding is; give `pad`, the id of a token")


def _places(folder: Path) -> list[Path]:
    """Where a model's tokenizer may be."""
    if not folder.name.startswith("text_encoder"):
        return [folder]
    return [folder, folder.with_name(folder.name.replace("text_encoder", "tokenizer"))]


def _clip(place: Path) -> bytes:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = read_json(place / "vocab.json")
    lines = (place / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    missing = [mark for mark in _CLIP_MARKS if mark not in vocabulary]
    if missing or any(len(pair) != 2 for pair in merges):
        raise StorageError(f"{place} has a vocab.json and merges.txt that are not CLIP's; only that one can be read so")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,  # type: ignore[arg-type]
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=_CLIP_MARKS[1],
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    start, end = ((mark, vocabulary[mark]) for mark in _CLIP_MARKS)
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    tokenizer.add_special_tokens(list(_CLIP_MARKS))
    return tokenizer.to_str(pretty=False).encode()


def _t5(place: Path) -> bytes:
    path = place / "spiece.model"
    told = read_json(place / "tokenizer_config.json") if (place / "tokenizer_config.json").is_file() else {}
    sentinels = told.get("extra_ids", 100)
    if type(sentinels) is not int or not 0 <= sentinels <= 1000:
        raise StorageError(f"{place / 'tokenizer_config.json'} says extra_ids = {sentinels!r}; expected 0 to 1000")
    if (size := path.stat().st_size) > _MOST:
        raise StorageError(f"{path} has {size:,} bytes; a tokenizer has {_MOST:,} at most")
    try:
        return unigram_tokenizer(path.read_bytes(), sentinels=sentinels)
    except Exception as error:  # the library that makes it raises no class of its own
        raise StorageError(f"{path} is no SentencePiece file that can be read: {error}") from error


def _bert(place: Path) -> bytes:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    lines = (place / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {word: number for number, word in enumerate(lines) if word}
    if missing := [mark for mark in (*_BERT_MARKS, "[UNK]") if mark not in vocabulary]:
        raise StorageError(f"{place / 'vocab.txt'} has no {missing[0]} and is none of BERT's")
    told = read_json(place / "tokenizer_config.json") if (place / "tokenizer_config.json").is_file() else {}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(told.get("tokenize_chinese_chars", True)),
        strip_accents=told.get("strip_accents"),
        lowercase=bool(told.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    end, start = ((mark, vocabulary[mark]) for mark in reversed(_BERT_MARKS))
    tokenizer.post_processor = processors.BertProcessing(end, start)
    tokenizer.add_special_tokens([mark for mark in ("[PAD]", "[UNK]", *_BERT_MARKS, "[MASK]") if mark in vocabulary])
    return tokenizer.to_str(pretty=False).encode()
