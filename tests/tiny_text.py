"""Tiny pretrained text encoders of every family, made with transformers and saved as its users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install transformers")

WORDS = ["red", "green", "apple", "face", "cat", "with", "tears", "of", "joy", "a", "lady", "beetle", "grinning"]
MARKS = {"bert": ("[CLS]", "[SEP]"), "clip": ("<|startoftext|>", "<|endoftext|>"), "t5": ("", "</s>")}


def write_tokenizer(folder: Path, before: str, after: str) -> None:
    """Words to numbers, with marks around them; 0 and 1 are for padding, the last number is the end mark's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["[PAD]", "<pad>", "[UNK]", *WORDS, *([before] if before else []), after]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[(m, vocabulary[m]) for m in (before, after) if m]
    )
    tokenizer.enable_padding(length=20)  # as some files say, which is not ours to follow
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights with which nothing is nearly zero or nearly the same."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * (0.5 if parameter.ndim > 1 else 0.3))
            if parameter.ndim == 1:
                parameter.add_(0.7)


BERT = {"vocab_size": 20, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 18}  # fmt: skip
T5 = {"vocab_size": 20, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 3, "num_heads": 4,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}  # fmt: skip
CLIP = {"vocab_size": 20, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 16, "projection_dim": 12, "bos_token_id": 16, "eos_token_id": 17}  # fmt: skip
DISTIL = {"vocab_size": 20, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 18}

MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertModel", "BertConfig", BERT, "bert"),
    "bert-gelu-new": ("BertModel", "BertConfig", {**BERT, "hidden_act": "gelu_new"}, "bert"),
    "camembert": ("CamembertModel", "CamembertConfig", {**BERT, "pad_token_id": 1}, "bert"),
    "clip": ("CLIPTextModel", "CLIPTextConfig", CLIP, "clip"),
    "clip-gelu": ("CLIPTextModel", "CLIPTextConfig", {**CLIP, "hidden_act": "gelu"}, "clip"),
    "distilbert": ("DistilBertModel", "DistilBertConfig", DISTIL, "bert"),
    "mpnet": ("MPNetModel", "MPNetConfig", {**BERT, "relative_attention_num_buckets": 32}, "bert"),
    "mt5": ("MT5EncoderModel", "MT5Config", {**T5, "feed_forward_proj": "gated-gelu"}, "t5"),
    "roberta": ("RobertaModel", "RobertaConfig", {**BERT, "pad_token_id": 1, "type_vocab_size": 1}, "bert"),
    "t5": ("T5EncoderModel", "T5Config", T5, "t5"),
    "t5-1.1": ("T5EncoderModel", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"}, "t5"),
    "umt5": ("UMT5EncoderModel", "UMT5Config", {**T5, "feed_forward_proj": "gated-gelu"}, "t5"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", {**BERT, "pad_token_id": 1}, "bert"),
}


def make(folder: Path, name: str, seed: int = 0) -> Any:
    """A tiny model of a family, saved with a tokenizer."""
    model, config, sizes, marks = MODELS[name]
    theirs = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()
    randomise(theirs, seed)
    theirs.save_pretrained(folder)
    write_tokenizer(folder, *MARKS[marks])
    return theirs
