"""The diffusion transformer with joint attention (MM-DiT, Esser et al. 2024): words and patches as one sequence.

Each of the two has weights of its own, and both attend to both. With c = embedding(level) + map(vector) + ..., for the
patches h and the words w alike:

    h, w  +=  gate_1(c) * Attention over (h, w) of (1 + scale_1(c)) * norm + shift_1(c)
    h, w  +=  gate_2(c) * FeedForward((1 + scale_2(c)) * norm + shift_2(c))

So the words change from block to block with what is seen, which cross-attention leaves as they are. The last block
makes none. Shifts, scales and gates start at zero. Positions, patches and the modulation are those of `DiT`.

Stable Diffusion 3 and 3.5 are this network: words and vector as they come, tanh GELU, places out of a stored table,
and in 3.5 first blocks whose patches also attend to themselves alone, at the same time:

    h     +=  gate_3(c) * Attention over h of (1 + scale_3(c)) * norm + shift_3(c)
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import Attention, attend
from carrara.nn.dit import PatchTransformer, modulate
from carrara.nn.embed import Conditioning, Embedding, Sinusoidal, place_waves
from carrara.nn.layers import Activation, check_counts, feed_forward, initialise, zero
from carrara.nn.rotary import rotate
from carrara.types import Condition

__all__ = ["JointBlock", "MMDiT"]

_LEVEL = Sinusoidal(cosine_first=True)
_NO_CONDITION = Condition()


class _Stream(nn.Module):
    """What patches, or words, have of their own in a block; `last`: only what the others attend to.

    dual: a second attention, to itself alone. spare: a last one's gain on its queries, which nothing reads, is there.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        qk_norm: bool,
        ratio: float,
        activation: Activation,
        last: bool = False,
        dual: bool = False,
        spare: bool = False,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, qk_norm=qk_norm)
        self.alone = Attention(width, heads=heads, qk_norm=qk_norm) if dual else None
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.parts = 2 if last else 9 if dual else 6
        self.modulation = zero(nn.Linear(width, self.parts * width))
        self.feed_forward = None if last else feed_forward(width, ratio, activation)
        if self.feed_forward is None:
            self.attention.out = cast(nn.Linear, nn.Identity())  # has no answer
            if not spare:
                self.attention.q_norm = nn.Identity()
        else:
            initialise(self.feed_forward)

    def ask(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """The block's modulations, and queries, keys and values."""
        m = self.modulation(c).chunk(self.parts, dim=-1)
        return m, self.attention.project(modulate(self.norm(x), m[0], m[1]))

    def answer(self, x: Tensor, m: tuple[Tensor, ...], found: Tensor) -> Tensor:
        """x with what the heads found (B, heads, N, d), and then with its feed-forward."""
        if self.feed_forward is None:
            return x
        h = torch.addcmul(x, m[2], self.attention.merge(found))
        if self.alone is not None:
            h = torch.addcmul(h, m[8], self.alone(modulate(self.norm(x), m[6], m[7])))
        return torch.addcmul(h, m[5], self.feed_forward(modulate(self.norm(h), m[3], m[4])))


class JointBlock(nn.Module):
    """Patches and words attend to one another, then each goes through a network of its own.

    last: makes no words. dual: the patches also attend to themselves alone. spare: as a last block of others' files,
    it keeps a gain on the words' queries, which nobody asks.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        qk_norm: bool,
        ratio: float,
        activation: Activation,
        last: bool = False,
        dual: bool = False,
        spare: bool = False,
    ) -> None:
        super().__init__()
        options = {"heads": heads, "qk_norm": qk_norm, "ratio": ratio, "activation": activation}
        self.patches = _Stream(width, **options, dual=dual)  # type: ignore[arg-type]
        self.words = _Stream(width, **options, last=last, spare=spare)  # type: ignore[arg-type]

    def forward(
        self, h: Tensor, w: Tensor, c: Tensor, mask: Tensor | None, turn: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next h (B, N, width) and w (B, L, width), told c (B, 1, width) through its SiLU.

        mask (B, N + L) is true where to look; `turn` are the rotary positions of all N + L.
        """
        m, mine = self.patches.ask(h, c)
        n, theirs = self.words.ask(w, c)
        q, k, v = (torch.cat(pair, 2) for pair in zip(mine, theirs, strict=True))
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        found = attend(q, k, v, mask)
        return self.patches.answer(h, m, found[:, :, : h.shape[1]]), self.words.answer(w, n, found[:, :, h.shape[1] :])


class MMDiT(Configured, PatchTransformer):
    """A transformer over patches and words, for pixels or latents; its parameters are those of `DiT`.

    context: width of `condition.tokens`, which there have to be; token_norm: whether they are layer-normalised.
    vector_hidden: the vector goes through two linear maps with a SiLU between them, not one.
    table: side of a square table of places that is stored with the weights; it is laid over the extent of `size`, and
    what is given lies in its middle, of up to so many patches a side. None computes the places of `DiT`.
    dual: numbers of the blocks, from 0, whose patches also attend to themselves alone.
    spare: the last block keeps a gain on the words' queries, which nothing reads and others' files hold.
    """

    table: Tensor | None

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        context: int,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        vector: int | None = None,
        image_channels: int = 0,
        numbers: tuple[str, ...] = (),
        controls: dict[str, int] | None = None,
        adapters: dict[str, int] | None = None,
        qk_norm: bool = True,
        ratio: float = 4.0,
        activation: Activation = "gelu",
        embedding: Embedding = _LEVEL,
        features: int = 256,
        token_norm: bool = True,
        vector_hidden: bool = False,
        table: int | None = None,
        dual: tuple[int, ...] = (),
        spare: bool = False,
    ) -> None:
        super().__init__()
        self.make_begin(size, patch, width)
        self.positions = None
        if not set(dual) <= set(range(depth)):
            raise ValueError(f"dual = {dual} names blocks that are not there; choose from 0 to {depth - 1}")
        self.register_buffer("table", None if table is None else self._make_table(table, width))
        self.embed = Conditioning(
            width=width,
            features=features,
            embedding=embedding,
            in_channels=in_channels,
            context=context,
            vector=vector,
            image_channels=image_channels,
            numbers=numbers,
            controls=controls,
            adapters=adapters,
            vector_hidden=vector_hidden,
            token_norm=token_norm,
        )
        self.inward = nn.Linear(self.embed.channels * patch**2, width)
        self.words = nn.Linear(context, width)
        self.blocks = nn.ModuleList(
            JointBlock(
                width,
                heads=heads,
                qk_norm=qk_norm,
                ratio=ratio,
                activation=activation,
                last=number == depth - 1,
                dual=number in dual,
                spare=spare,
            )
            for number in range(depth)
        )
        self.make_end(out_channels, width)
        initialise(self.words)

    def forward(self, x: Tensor, level: Tensor, condition: Condition = _NO_CONDITION) -> Tensor:
        """F(x, level, condition): x (B, in_channels, H, W) and level (B,) to (B, out_channels, H, W).

        Returns x's dtype. Raises ValueError for sizes, channels and parts of the condition that do not fit.
        """
        h, c, tokens = self._begin(x, level, condition)
        w, mask = self.words(tokens), condition.mask
        if mask is not None:
            mask = F.pad(mask, (h.shape[1], 0), value=True)
        for block in self.blocks:
            h, w = block(h, w, c, mask)
        return self.end(h, c, x)

    def _begin(self, x: Tensor, level: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.table is None:
            return self.begin(x, level, condition)
        h, c, tokens = self.patches(x, level, condition)
        height, width = x.shape[2] // self.patch, x.shape[3] // self.patch
        side = math.isqrt(self.table.shape[1])
        if max(height, width) > side:
            raise ValueError(f"x has {height} x {width} patches and this network has {side} places a side; give less")
        top, left = (side - height) // 2, (side - width) // 2
        places = self.table.unflatten(1, (side, side))[:, top : top + height, left : left + width]
        return h + places.flatten(1, 2).to(h.dtype), F.silu(c)[:, None], tokens

    def _make_table(self, side: int, width: int) -> Tensor:
        """Sine-cosine positions (1, side * side, width) over the extent of `size`."""
        check_counts(table=side)
        rows, columns = (torch.arange(side, dtype=torch.float32) / (side / count) for count in self.grid)
        return place_waves(rows, columns, width)[None]
