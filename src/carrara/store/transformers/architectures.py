"""Which network a config.json means, and which tensor of its files is which of the network's.

clip, clip_text_model                                       CLIP's text tower
t5, mt5, umt5                                               T5's encoder
bert, camembert, distilbert, mpnet, roberta, xlm-roberta    BERT and its kin
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from carrara.errors import RecipeError, StorageError
from carrara.store.transformers import keys
from carrara.store.transformers.sentences import pooling_of
from carrara.store.transformers.source import PretrainedSource
from carrara.store.transformers.weights import Positions, Source
from carrara.store.weights import WeightFiles

__all__ = ["Architecture", "architecture"]

_T5 = ("mt5", "t5", "umt5")
_ROBERTA = ("camembert", "roberta", "xlm-roberta")
_BERT = ("bert", "distilbert", "mpnet", *_ROBERTA)
_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "quick_gelu": "quick-gelu",
    "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip

_Config = Mapping[str, Any]


class Architecture(NamedTuple):
    """A network as a table with its kind, and where each of its tensors is from."""

    network: dict[str, Any]
    tensors: dict[str, Source]


def architecture(config: _Config, source: PretrainedSource, files: WeightFiles) -> Architecture:
    """What the config.json of these files means; RecipeError for another model, or a setting that it does not have."""
    family = str(config.get("model_type"))
    if family in ("clip", "clip_text_model"):
        if source.pooling is not None or source.unit is not None:
            raise RecipeError("pooling and unit are not for CLIP, whose vector is the end mark's; leave them out")
        return _clip(config.get("text_config", config) if family == "clip" else config, source, files)
    if family not in (*_T5, *_BERT):
        known = ", ".join(sorted(("clip", "clip_text_model", *_T5, *_BERT)))
        raise RecipeError(f'the model is a "{family}"; those that are read: {known}')
    if source.skip or not source.normed:
        raise RecipeError(f"skip and normed are for CLIP's text tower, and this is a {family}; leave them out")
    return (_t5 if family in _T5 else _bert)(config, family, source, files)


def _clip(config: _Config, source: PretrainedSource, files: WeightFiles) -> Architecture:
    depth = config.get("num_hidden_layers", 12)
    tensors, prefix = _named(files, keys.CLIP, depth, "embeddings.token_embedding.weight")
    tensors["positions"] = Positions(f"{prefix}{keys.CLIP['positions']}")
    network = {
        "kind": "clip",
        "vocabulary": config.get("vocab_size", 49408),
        "width": config.get("hidden_size", 512),
        "depth": depth,
        "heads": config.get("num_attention_heads", 8),
        "hidden": config.get("intermediate_size", 2048),
        "length": config.get("max_position_embeddings", 77),
        "activation": _activation(config.get("hidden_act", "quick_gelu")),
        "eps": config.get("layer_norm_eps", 1e-5),
        "skip": source.skip,
        "normed": source.normed,
    }
    if (projection := "text_projection.weight") in files.names:
        tensors["projection.weight"] = projection
        network["pooled"] = len(files.read(projection))
    return Architecture(network, tensors)


def _t5(config: _Config, family: str, source: PretrainedSource, files: WeightFiles) -> Architecture:
    pooling, unit = pooling_of(files.folder, source)
    if pooling != "mean":
        raise RecipeError(f'pooling is "{pooling}", and T5 has no first token that stands for the whole; give "mean"')
    depth = config.get("num_layers", 6)
    tensors, prefix = _named(files, keys.T5, depth, "final_layer_norm.weight")
    words = ("shared.weight", f"{prefix}embed_tokens.weight")  # the second where only the encoder was saved
    tensors["words.weight"] = next((name for name in words if name in files.names), words[0])
    *gated, activation = str(config.get("feed_forward_proj", "relu")).split("-")
    for i in range(depth):
        inner = f"{prefix}block.{i}.layer.1.DenseReluDense."
        tensors[f"blocks.{i}.hidden.weight"] = f"{inner}wi_0.weight" if gated else f"{inner}wi.weight"
        if gated:
            tensors[f"blocks.{i}.gate.weight"] = f"{inner}wi_1.weight"
    for i in range(depth if family == "umt5" else 1):
        inner = f"{prefix}block.{i}.layer.0.SelfAttention."
        tensors[f"distances.{i}.table.weight"] = f"{inner}relative_attention_bias.weight"
    network = {
        "kind": "t5",
        "vocabulary": config.get("vocab_size", 32128),
        "width": config.get("d_model", 512),
        "depth": depth,
        "heads": config.get("num_heads", 8),
        "head": config.get("d_kv", 64),
        "hidden": config.get("d_ff", 2048),
        "activation": "gelu-tanh" if gated and activation == "gelu" else _activation(activation),
        "gated": bool(gated),
        "buckets": config.get("relative_attention_num_buckets", 32),
        "distance": config.get("relative_attention_max_distance", 128),
        "shared": family != "umt5",
        "eps": config.get("layer_norm_epsilon", 1e-6),
        "unit": unit,
    }
    return Architecture(network, tensors)


def _bert(config: _Config, family: str, source: PretrainedSource, files: WeightFiles) -> Architecture:
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise RecipeError("config.json asks for relative positions or a decoder; only BERT's own encoders are read")
    if family == "distilbert":
        names = {"width": "dim", "depth": "n_layers", "heads": "n_heads", "hidden": "hidden_dim"}
        names["activation"] = "activation"
    else:
        names = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
        names |= {"hidden": "intermediate_size", "activation": "hidden_act"}
    usual = {"width": 768, "depth": 6 if family == "distilbert" else 12, "heads": 12, "hidden": 3072}
    sizes = {ours: config.get(theirs, usual.get(ours, "gelu")) for ours, theirs in names.items()}
    tables = {"distilbert": keys.DISTILBERT, "mpnet": keys.MPNET}
    table = tables.get(family, keys.BERT)
    tensors, prefix = _named(files, table, sizes["depth"], "embeddings.word_embeddings.weight")
    # RoBERTa's positions begin behind the number that means padding; MPNet's always behind 1.
    first = 2 if family == "mpnet" else (config.get("pad_token_id") or 1) + 1 if family in _ROBERTA else 0
    types = f"{prefix}embeddings.token_type_embeddings.weight"
    tensors["positions"] = Positions(f"{prefix}{table['positions']}", first, types if types in files.names else None)
    pooling, unit = pooling_of(files.folder, source)
    network = {
        "kind": "bert",
        "vocabulary": config.get("vocab_size", 30522),
        **sizes,
        "activation": _activation(sizes["activation"]),
        "length": config.get("max_position_embeddings", 512) - first,
        "eps": 1e-12 if family == "distilbert" else config.get("layer_norm_eps", 1e-12),
        "pooling": pooling,
        "unit": unit,
    }
    if family == "mpnet":
        network["buckets"] = config.get("relative_attention_num_buckets", 32)
    return Architecture(network, tensors)


def _named(files: WeightFiles, table: keys.Table, layers: int, anchor: str) -> tuple[dict[str, Source], str]:
    """The table with the names that these files use, and what stands before each of them."""
    for prefix in keys.PREFIXES:
        if prefix + anchor in files.names:
            return {ours: keys.renamed(theirs, prefix) for ours, theirs in keys.expand(table, layers).items()}, prefix
    raise StorageError(f"{files.title} has no tensor {anchor}; its weights are not those of its config.json")


def _activation(name: object) -> str:
    if name not in _ACTIVATIONS:
        raise RecipeError(f'the activation is "{name}"; those that are read: {", ".join(_ACTIVATIONS)}')
    return _ACTIVATIONS[str(name)]
