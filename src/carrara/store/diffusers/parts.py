"""The tensors of the layers that several of diffusers' networks are made of, under our names and theirs."""

from __future__ import annotations

from carrara.store.diffusers.tensors import Place, Pointwise, Stacked

__all__ = ["attention", "both", "residual", "transformer"]


def both(ours: str, theirs: str) -> dict[str, Place]:
    """A weight and a bias."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def residual(ours: str, theirs: str, *, embedding: bool, shortcut: bool) -> dict[str, Place]:
    """A residual block: `layers.ResidualBlock`."""
    table: dict[str, Place] = {}
    for name in ("norm1", "conv1", "norm2", "conv2"):
        table |= both(f"{ours}.{name}", f"{theirs}.{name}")
    if embedding:
        table |= both(f"{ours}.embed", f"{theirs}.time_emb_proj")
    if shortcut:
        table |= both(f"{ours}.shortcut", f"{theirs}.conv_shortcut")
    return table


def attention(ours: str, theirs: str, *, width: int) -> dict[str, Place]:
    """Attention of pixels to one another: `attention.SpatialAttention`."""
    table = both(f"{ours}.norm", f"{theirs}.group_norm") | both(f"{ours}.attention.out", f"{theirs}.to_out.0")
    for part in ("weight", "bias"):
        table[f"{ours}.attention.qkv.{part}"] = _stacked(theirs, "qkv", part, width)
    return table


def transformer(ours: str, theirs: str, *, width: int, depth: int, kernels: bool) -> dict[str, Place]:
    """A `spatial_transformer.SpatialTransformer`; with `kernels` the maps into and out of it are convolutions there."""
    table = both(f"{ours}.norm", f"{theirs}.norm")
    for mine, name in (("into", "proj_in"), ("out", "proj_out")):
        table |= both(f"{ours}.{mine}", f"{theirs}.{name}")
        if kernels:
            table[f"{ours}.{mine}.weight"] = Pointwise(f"{theirs}.{name}.weight")
    for i in range(depth):
        mine, name = f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}"
        for norm in ("norm1", "norm2", "norm3"):
            table |= both(f"{mine}.{norm}", f"{name}.{norm}")
        table[f"{mine}.attention.qkv.weight"] = _stacked(f"{name}.attn1", "qkv", "weight", width)
        table[f"{mine}.cross.q.weight"] = f"{name}.attn2.to_q.weight"
        table[f"{mine}.cross.kv.weight"] = _stacked(f"{name}.attn2", "kv", "weight", width)
        table |= both(f"{mine}.attention.out", f"{name}.attn1.to_out.0")
        table |= both(f"{mine}.cross.out", f"{name}.attn2.to_out.0")
        table |= both(f"{mine}.hidden", f"{name}.ff.net.0.proj") | both(f"{mine}.back", f"{name}.ff.net.2")
    return table


def _stacked(theirs: str, which: str, part: str, width: int) -> Stacked:
    return Stacked(tuple(f"{theirs}.to_{one}.{part}" for one in which), (width,) * len(which))
