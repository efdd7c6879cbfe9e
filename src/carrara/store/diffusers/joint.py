"""What the tables of SD3 and FLUX have in common: blocks in which patches and words attend to one another."""

from __future__ import annotations

from carrara.store.diffusers.tensors import Place, Stacked, Swapped

__all__ = ["attention", "both", "feed_forward", "joint_block", "pair", "swapped"]


def both(ours: str, theirs: str) -> dict[str, Place]:
    """A linear map's weight and bias."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def pair(ours: tuple[str, str], theirs: str) -> dict[str, Place]:
    """The two linear maps of an embedding."""
    return both(ours[0], f"{theirs}.linear_1") | both(ours[1], f"{theirs}.linear_2")


def attention(
    ours: str, there: tuple[str, str, str], out: str | None, norms: tuple[str, str] | None, width: int
) -> dict[str, Place]:
    """Attention to itself: `there` are the maps of queries, keys and values, `norms` the gains of the first two."""
    table: dict[str, Place] = {
        f"{ours}.qkv.{part}": Stacked(tuple(f"{name}.{part}" for name in there), (width,) * 3)
        for part in ("weight", "bias")
    }
    if norms is not None:
        table |= {f"{ours}.q_norm.weight": f"{norms[0]}.weight", f"{ours}.k_norm.weight": f"{norms[1]}.weight"}
    return table if out is None else table | both(f"{ours}.out", out)


def feed_forward(ours: str, theirs: str) -> dict[str, Place]:
    """Its two linear maps."""
    return both(f"{ours}.0", f"{theirs}.net.0.proj") | both(f"{ours}.2", f"{theirs}.net.2")


def joint_block(
    ours: str, theirs: str, *, width: int, qk_norm: bool, last: bool = False, dual: bool = False
) -> dict[str, Place]:
    """A `JointBlock`; the words of a last one make nothing, and their modulation begins with the scale."""
    to, added = f"{theirs}.attn.to_", f"{theirs}.attn.add_"
    patches, words, attn = f"{ours}.patches", f"{ours}.words", f"{theirs}.attn"
    table = {
        **both(f"{patches}.modulation", f"{theirs}.norm1.linear"),
        **attention(
            f"{patches}.attention",
            (f"{to}q", f"{to}k", f"{to}v"),
            f"{to}out.0",
            (f"{attn}.norm_q", f"{attn}.norm_k") if qk_norm else None,
            width,
        ),
        **feed_forward(f"{patches}.feed_forward", f"{theirs}.ff"),
        **attention(
            f"{words}.attention",
            (f"{added}q_proj", f"{added}k_proj", f"{added}v_proj"),
            None if last else f"{to}add_out",
            (f"{attn}.norm_added_q", f"{attn}.norm_added_k") if qk_norm else None,
            width,
        ),
    }
    if dual:
        second = f"{theirs}.attn2"
        table |= attention(
            f"{patches}.alone",
            (f"{second}.to_q", f"{second}.to_k", f"{second}.to_v"),
            f"{second}.to_out.0",
            (f"{second}.norm_q", f"{second}.norm_k") if qk_norm else None,
            width,
        )
    if last:
        return table | swapped(f"{words}.modulation", f"{theirs}.norm1_context.linear")
    table |= both(f"{words}.modulation", f"{theirs}.norm1_context.linear")
    return table | feed_forward(f"{words}.feed_forward", f"{theirs}.ff_context")


def swapped(ours: str, theirs: str) -> dict[str, Place]:
    """A linear map to (scale, shift) there, (shift, scale) here."""
    return {f"{ours}.{part}": Swapped(f"{theirs}.{part}") for part in ("weight", "bias")}
