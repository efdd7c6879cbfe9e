"""Which tensor of a published file is which of ours; {i} counts layers, several sources are put one below the other.

T5's files begin with "encoder.", those of other models with their library's name for the whole, or with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["BERT", "CLIP", "DISTILBERT", "MPNET", "PREFIXES", "T5", "Table", "expand", "renamed"]

Table = Mapping[str, str | tuple[str, ...]]


def _linear(ours: str, *theirs: str) -> dict[str, str | tuple[str, ...]]:
    """The weight and the bias of a linear map or a norm."""
    return {
        f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs) if len(theirs) > 1 else f"{theirs[0]}.{part}"
        for part in ("weight", "bias")
    }


def _layer(layer: str, *, q: str, k: str, v: str, out: str, norm1: str, hidden: str, back: str, norm2: str) -> Table:
    return {
        **_linear("blocks.{i}.attention.qkv", *(layer + name for name in (q, k, v))),
        **_linear("blocks.{i}.attention.out", layer + out),
        **_linear("blocks.{i}.norm1", layer + norm1),
        **_linear("blocks.{i}.hidden", layer + hidden),
        **_linear("blocks.{i}.back", layer + back),
        **_linear("blocks.{i}.norm2", layer + norm2),
    }


CLIP: Table = {
    "words.weight": "embeddings.token_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    **_layer(
        "encoder.layers.{i}.",
        **{part: f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")},
        norm1="layer_norm1", hidden="mlp.fc1", back="mlp.fc2", norm2="layer_norm2",
    ),
    **_linear("norm", "final_layer_norm"),
}  # fmt: skip

T5: Table = {
    "blocks.{i}.attention.qkv.weight": tuple(f"block.{{i}}.layer.0.SelfAttention.{part}.weight" for part in "qkv"),
    "blocks.{i}.attention.out.weight": "block.{i}.layer.0.SelfAttention.o.weight",
    "blocks.{i}.norm1.weight": "block.{i}.layer.0.layer_norm.weight",
    "blocks.{i}.back.weight": "block.{i}.layer.1.DenseReluDense.wo.weight",
    "blocks.{i}.norm2.weight": "block.{i}.layer.1.layer_norm.weight",
    "norm.weight": "final_layer_norm.weight",
}

_EMBEDDINGS: Table = {
    "words.weight": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    **_linear("norm", "embeddings.LayerNorm"),
}

_BERT_FEED_FORWARD = {"hidden": "intermediate.dense", "back": "output.dense", "norm2": "output.LayerNorm"}

BERT: Table = {
    **_EMBEDDINGS,
    **_layer(
        "encoder.layer.{i}.",
        q="attention.self.query", k="attention.self.key", v="attention.self.value",
        out="attention.output.dense", norm1="attention.output.LayerNorm", **_BERT_FEED_FORWARD,
    ),
}  # fmt: skip

MPNET: Table = {
    **_EMBEDDINGS,
    "distances.table.weight": "encoder.relative_attention_bias.weight",
    **_layer(
        "encoder.layer.{i}.",
        q="attention.attn.q", k="attention.attn.k", v="attention.attn.v",
        out="attention.attn.o", norm1="attention.LayerNorm", **_BERT_FEED_FORWARD,
    ),
}  # fmt: skip

DISTILBERT: Table = {
    **_EMBEDDINGS,
    **_layer(
        "transformer.layer.{i}.",
        q="attention.q_lin", k="attention.k_lin", v="attention.v_lin", out="attention.out_lin",
        norm1="sa_layer_norm", hidden="ffn.lin1", back="ffn.lin2", norm2="output_layer_norm",
    ),
}  # fmt: skip

PREFIXES = ("", "text_model.text_model.", "text_model.", "encoder.", "bert.", "roberta.", "mpnet.", "distilbert.",
            "0.auto_model.")  # fmt: skip


def expand(table: Table, layers: int) -> dict[str, str | tuple[str, ...]]:
    """The table for a network of so many layers."""

    def numbered(theirs: str | tuple[str, ...], i: int) -> str | tuple[str, ...]:
        return _each(theirs, lambda name: name.replace("{i}", str(i)))

    return {
        ours.replace("{i}", str(i)): numbered(theirs, i)
        for ours, theirs in table.items()
        for i in (range(layers) if "{i}" in ours else (0,))
    }


def renamed(theirs: str | tuple[str, ...], prefix: str) -> str | tuple[str, ...]:
    """The names with something before each."""
    return _each(theirs, lambda name: prefix + name)


def _each(names: str | tuple[str, ...], change: Callable[[str], str]) -> str | tuple[str, ...]:
    return change(names) if isinstance(names, str) else tuple(map(change, names))
