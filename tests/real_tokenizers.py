"""The tokenizers that published pipelines have, with tiny random encoders behind them, as diffusers keeps them."""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tiny_text import randomise

transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install transformers")

DATA = Path(os.environ.get("CARRARA_TEST_DATA", "data"))
CLIP_FILE, T5_FILE = DATA / "clip_bpe_simple_vocab_16e6.txt.gz", DATA / "t5_tokenizer.json"
needs_vocabularies = pytest.mark.skipif(
    not (CLIP_FILE.is_file() and T5_FILE.is_file()), reason="CARRARA_TEST_DATA names no folder with the vocabularies"
)
END = "<|endoftext|>"
CLIP = {"vocab_size": 49408, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}  # fmt: skip
T5 = {"vocab_size": 32128, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}

PROMPTS = [
    "a red apple",
    "",
    " ",
    "cat " * 75,
    "cat " * 76,
    "a photograph of an astronaut riding a horse, " * 30,
    "  An  ÉTÉ\tnaïve\nphoto's 2024 isn't “it”…  漢字 ﬁ ",
    "🍎 👩🏽\u200d🚀 and 🇨🇭",
    "<|endoftext|> within, </s> too",
]


@functools.cache
def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """The published CLIP's tokens by number, and its merges: bytes, bytes that end a word, merges, two marks."""
    lines = gzip.decompress(CLIP_FILE.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(line.split()) for line in lines)]
    return {name: number for number, name in enumerate([*names, "<|startoftext|>", END])}, lines


def write_clip_tokenizer(folder: Path, pad: str = END) -> None:
    """As the folders of Stable Diffusion have it: vocab.json, merges.txt, and what the padding is."""
    folder.mkdir(parents=True)
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    said = {"pad_token": pad, "bos_token": "<|startoftext|>", "eos_token": END, "unk_token": END}
    config = {**said, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(said))


def write_t5_tokenizer(folder: Path) -> None:
    """As the folders of SD3 and FLUX have it: tokenizer.json and its class."""
    folder.mkdir(parents=True)
    shutil.copy(T5_FILE, folder / "tokenizer.json")
    said = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**said, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def add_clip(
    folder: Path, number: str, *, projected: bool, width: int = 24, act: str = "quick_gelu", pad: str = END
) -> tuple[Any, Any]:
    """text_encoder{number} and tokenizer{number} of a pipeline folder; transformers' own of both."""
    config = transformers.CLIPTextConfig(**CLIP, hidden_size=width, projection_dim=width, hidden_act=act)
    model = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = model(config).eval()
    randomise(theirs, seed=width)
    theirs.save_pretrained(folder / f"text_encoder{number}")
    write_clip_tokenizer(folder / f"tokenizer{number}", pad)
    return theirs, transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")


def add_t5(folder: Path, number: str, *, width: int = 32) -> tuple[Any, Any]:
    """The same with T5's encoder."""
    theirs = transformers.T5EncoderModel(transformers.T5Config(**T5, d_model=width)).eval()
    randomise(theirs, seed=width)
    theirs.save_pretrained(folder / f"text_encoder{number}")
    write_t5_tokenizer(folder / f"tokenizer{number}")
    return theirs, transformers.T5TokenizerFast.from_pretrained(folder / f"tokenizer{number}")
