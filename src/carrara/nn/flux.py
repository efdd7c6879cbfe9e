"""FLUX's transformer (Black Forest Labs 2024): joint blocks, then blocks in which words and patches are one stream.

With c = embedding(level) + embedding(guidance) + map(vector), patches h and words w, the first blocks are those of
`MMDiT`. The others read both as one sequence s = (h, w), and attend and feed forward at the same time, of one input:

    y  =  (1 + scale(c)) * norm(s) + shift(c)
    s +=  gate(c) * W (Attention(y), GELU(V y))

Places are rotary, along the three axes (0, row, column) for a patch; those of words are zero. x is a latent, whose
patches of 2 x 2 the network makes and takes apart itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import HeadRms, attend
from carrara.nn.dit import PatchTransformer, modulate
from carrara.nn.embed import Conditioning, Sinusoidal
from carrara.nn.layers import initialise, zero
from carrara.nn.mmdit import JointBlock
from carrara.nn.rotary import rotate, turns
from carrara.types import Condition

__all__ = ["Flux"]

_NO_CONDITION = Condition()


class _SingleBlock(nn.Module):
    """Attention and feed-forward side by side, over words and patches alike."""

    def __init__(self, width: int, *, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads, self.widths = heads, (3 * width, round(width * ratio))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 3 * width))
        self.inward = nn.Linear(width, sum(self.widths))
        self.q_norm, self.k_norm = HeadRms(width // heads), HeadRms(width // heads)
        self.outward = nn.Linear(width + self.widths[1], width)
        initialise(self.inward)
        initialise(self.outward)

    def forward(self, s: Tensor, c: Tensor, mask: Tensor | None, turn: Tensor) -> Tensor:
        """The next s (B, N, width), told c (B, 1, width) through its SiLU; mask (B, N), true where to look."""
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        qkv, hidden = self.inward(modulate(self.norm(s), shift, scale)).split(self.widths, dim=-1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = attend(rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn), v, mask)
        both = torch.cat((found.transpose(1, 2).flatten(2), F.gelu(hidden, approximate="tanh")), -1)
        return torch.addcmul(s, gate, self.outward(both))


class Flux(Configured, PatchTransformer):
    """A transformer over patches and words with rotary places, for latents of any size that `patch` divides.

    in_channels, out_channels: of x and of the output. width, heads: of the transformer; heads must divide width.
    depth, single: numbers of joint blocks and of those of one stream. context: width of `condition.tokens`.
    vector: width of `condition.vector`. guidance: it reads `condition.numbers["guidance"]`, the scale of a guidance
    that it was trained to have done already. axes: entries of a head that turn with each of the three places; even
    numbers, together a head. image_channels: of `condition.image`, which joins x. ratio: hidden width over `width`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        context: int,
        vector: int,
        patch: int = 2,
        width: int = 3072,
        depth: int = 19,
        single: int = 38,
        heads: int = 24,
        axes: tuple[int, int, int] = (16, 56, 56),
        guidance: bool = False,
        image_channels: int = 0,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if sum(axes) * heads != width or any(axis < 0 or axis % 2 for axis in axes):
            raise ValueError(
                f"axes = {axes} for {heads} heads and a width of {width}; "
                "give even numbers whose sum times the heads is the width"
            )
        self.patch, self.axes = patch, axes
        waves = Sinusoidal(cosine_first=True)
        self.embed = Conditioning(
            width=width,
            features=256,
            embedding=waves,
            in_channels=in_channels,
            context=context,
            vector=vector,
            vector_hidden=True,
            image_channels=image_channels,
            numbers=("guidance",) if guidance else (),
            number_waves=Sinusoidal(scale=1000.0, cosine_first=True),
            token_norm=False,
        )
        self.inward = nn.Linear(self.embed.channels * patch**2, width)
        self.words = nn.Linear(context, width)
        self.blocks = nn.ModuleList(
            JointBlock(width, heads=heads, qk_norm=True, ratio=ratio, activation="gelu-tanh") for _ in range(depth)
        )
        self.single = nn.ModuleList(_SingleBlock(width, heads=heads, ratio=ratio) for _ in range(single))
        self.make_end(out_channels, width)
        initialise(self.words)

    def forward(self, x: Tensor, level: Tensor, condition: Condition = _NO_CONDITION) -> Tensor:
        """F(x, level, condition): x (B, in_channels, H, W) and level (B,) to (B, out_channels, H, W).

        The level is a thousand times the flow's. Returns x's dtype. Raises ValueError for sizes, channels and parts of
        the condition that do not fit.
        """
        h, c, tokens = self.patches(x, level, condition)
        w, mask, c = self.words(tokens), condition.mask, F.silu(c)[:, None]
        if mask is not None:
            mask = F.pad(mask, (h.shape[1], 0), value=True)
        turn = self._turns(x.shape[2] // self.patch, x.shape[3] // self.patch, w.shape[1], x.device)
        for block in self.blocks:
            h, w = block(h, w, c, mask, turn)
        s = torch.cat((h, w), 1)
        for block in self.single:
            s = block(s, c, mask, turn)
        return self.end(s[:, : h.shape[1]], c, x)

    def _turns(self, height: int, width: int, words: int, device: torch.device) -> Tensor:
        """The rotary places of height x width patches and so many words."""
        rows = torch.arange(height, device=device).repeat_interleave(width)
        columns = torch.arange(width, device=device).repeat(height)
        places = (torch.zeros_like(rows), rows, columns)
        return turns([F.pad(place, (0, words)) for place in places], self.axes)
