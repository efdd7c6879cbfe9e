"""The residual UNet of DDPM (Ho et al. 2020): down through the resolutions, through the middle, and up again.

Each resolution has residual blocks told the level; at chosen ones the pixels also attend to one another and, when the
network has a context, to the condition's tokens. What every block makes on the way down is concatenated on the way up.
With its defaults this is the network of the paper for CIFAR-10, 35.7 million parameters at 32 x 32. With `Transformers`
in the place of attention it is that of latent diffusion (Rombach et al. 2022), of Stable Diffusion 1, 2 and XL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import SpatialAttention
from carrara.nn.embed import Conditioning, Embedding, Sinusoidal
from carrara.nn.layers import Downsample, ResidualBlock, Upsample, initialise, norm, zero
from carrara.nn.spatial_transformer import SpatialTransformer
from carrara.types import Condition

__all__ = ["Transformers", "UNet", "UNetDescent"]

_LEVEL = Sinusoidal(shift=1.0)
_NO_CONDITION = Condition()


@dataclass(frozen=True)
class Transformers:
    """Transformers after a UNet's residual blocks, which read `condition.tokens`.

    depth: rounds of attention at each resolution, finest first, 0 for none. heads: at each resolution, the last one's
    in the middle, too. middle: the depth there. kernels: that other programs' files keep the maps into and out of them
    as kernels of 1 x 1, to be written likewise; nothing computed depends on it.
    """

    depth: tuple[int, ...]
    heads: tuple[int, ...]
    middle: int = 1
    kernels: bool = False


class _Stage(nn.Module):
    """A residual block and what follows it, if anything: attentions, or a transformer."""

    def __init__(
        self,
        block: ResidualBlock,
        attention: SpatialAttention | None = None,
        cross: SpatialAttention | None = None,
        transformer: SpatialTransformer | None = None,
    ) -> None:
        super().__init__()
        self.block, self.attention, self.cross, self.transformer = block, attention, cross, transformer

    def forward(self, h: Tensor, c: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        h = self.block(h, c)
        if self.attention is not None:
            h = self.attention(h)
        if self.cross is not None:
            h = self.cross(h, tokens, mask)
        if self.transformer is not None:
            h = self.transformer(h, tokens, mask)
        return h


class UNetDescent(nn.Module):
    """A UNet's way down through the resolutions, and through the middle."""

    embed: Conditioning
    inward: nn.Conv2d
    down: nn.ModuleList
    downsample: nn.ModuleList
    middle: nn.ModuleList
    fourier: tuple[int, ...]

    def descend(
        self,
        x: Tensor,
        level: Tensor,
        condition: Condition,
        hint: Tensor | None = None,
        within: Sequence[Tensor] = (),
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None]:
        """What the middle makes, what every block before it has made, the vector through its SiLU, and the tokens.

        `hint` (B, channels, H, W) is added to the first of these, and each of `within` to the last of a resolution:
        before that is halved where there are transformers, after it where there are none; one more to the middle.
        """
        smallest, waves = 2 ** (len(self.down) - 1), self._waves(x)
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"x of {x.shape[2]} x {x.shape[3]} cannot be halved {len(self.down) - 1} times; "
                f"give it at least {smallest} x {smallest}, or build with fewer multipliers"
            )
        x, c, tokens = self.embed(x, level, condition)
        c, mask = F.silu(c), condition.mask
        h = self.inward(torch.cat((x, *(wave.to(x.dtype) for wave in waves)), 1) if waves else x)
        h = h if hint is None else h + hint
        skips, features = [h], list(within)
        for i, stages in enumerate(self.down):
            for stage in cast(nn.ModuleList, stages):
                h = stage(h, c, tokens, mask)
                skips.append(h)
            early = cast(_Stage, cast(nn.ModuleList, stages)[-1]).transformer is not None
            if features and early:
                h = skips[-1] = h + features.pop(0)
            if i < len(self.downsample):
                h = self.downsample[i](h)
                skips.append(h)
            if features and not early:
                h = skips[-1] = h + features.pop(0)
        for stage in self.middle:
            h = stage(h, c, tokens, mask)
        if len(features) > 1:
            raise ValueError(
                f"{len(within)} features were given to a UNet of {len(self.down)} resolutions; give one for each of "
                "them, and one for the middle at most"
            )
        return h + features[0] if features else h, skips, c, tokens

    def _waves(self, x: Tensor) -> list[Tensor]:
        # in float32 at least: 2^8 pi x in bfloat16 is off by whole turns
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return [wave(2.0**n * math.pi * x) for n in self.fourier for wave in (torch.sin, torch.cos)]


class UNet(Configured, UNetDescent):
    """The network F of pixel diffusion; defaults are DDPM's for CIFAR-10.

    in_channels, out_channels: of x and of the output; out_channels is 2C when the variance is learned.
    channels: at full size; multipliers: of it at each resolution, finest first, each half as large as the one before.
    blocks: residual blocks a resolution on the way down, one more on the way up.
    attention: the resolutions with attention, 0 the finest; the middle has it, too. heads: of every attention, or
    head_width: of each head, their number following from the channels. middle: residual blocks there, 0 for no middle;
    attention follows all but the last. transformers: in the place of the middle's attention, and at other resolutions.
    context: width of `condition.tokens`, None without. vector: width of `condition.vector`, None without.
    image_channels: of `condition.image`, which joins x, and controls: of each of `condition.controls`, which do, too.
    numbers: names in `condition.numbers`. adapters: widths of `condition.adapters`.
    token_norm: normalise the tokens first. joint_features: waves a number; all are then read together with the vector.
    guidance_features: waves of one number more, "guidance", for networks that were distilled from a guided one.
    vector_bias: of the map of the vector, which a table of classes has not.
    groups: of the norms, at most. group_width: channels that a group has at least.
    asymmetric: pad downsampling below and right only, as the original does.
    embedding: how the level, an integer step for DDPM, becomes waves.
    fourier: octaves n of sin and cos of 2^n pi x that join x, so that the last bits of a nearly clean picture can be
    read (Kingma et al. 2021, appendix C: 7 and 8 for 256 grey levels in [-1, 1]).
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        heads: int = 1,
        context: int | None = None,
        vector: int | None = None,
        image_channels: int = 0,
        numbers: tuple[str, ...] = (),
        controls: dict[str, int] | None = None,
        adapters: dict[str, int] | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        eps: float = 1e-6,
        asymmetric: bool = True,
        embedding: Embedding = _LEVEL,
        fourier: tuple[int, ...] = (),
        head_width: int | None = None,
        middle: int = 2,
        transformers: Transformers | None = None,
        token_norm: bool = True,
        joint_features: int | None = None,
        group_width: int = 4,
        guidance_features: int | None = None,
        vector_bias: bool = True,
    ) -> None:
        super().__init__()
        self.fourier = fourier
        if not multipliers or not set(attention) <= set(range(len(multipliers))):
            raise ValueError(
                f"attention={attention} names resolutions and multipliers={multipliers} has {len(multipliers)}, "
                f"numbered from 0; name those only"
            )
        _check_transformers(transformers, len(multipliers), context)
        width = 4 * channels
        self.embed = Conditioning(
            width=width,
            features=channels,
            embedding=embedding,
            in_channels=in_channels,
            context=context,
            vector=vector,
            image_channels=image_channels,
            numbers=numbers,
            controls=controls,
            adapters=adapters,
            token_norm=token_norm,
            joint_features=joint_features,
            guidance_features=guidance_features,
            vector_bias=vector_bias,
        )
        grouped = {"groups": groups, "group_width": group_width}

        def stage(before: int, after: int, attend: bool, depth: int = 0, transformer_heads: int = 1) -> _Stage:
            count = heads if head_width is None else max(1, after // head_width)

            def attends(to: int | None) -> SpatialAttention:
                return SpatialAttention(after, heads=count, context=to, eps=eps, **grouped)

            def transforms(to: int) -> SpatialTransformer:
                return SpatialTransformer(after, depth=depth, heads=transformer_heads, context=to, **grouped)

            return _Stage(
                ResidualBlock(
                    before, after, embedding=width, groups=groups, group_width=group_width, eps=eps, dropout=dropout
                ),
                attends(None) if attend else None,
                attends(context) if attend and context is not None else None,
                transforms(context) if depth and context is not None else None,
            )

        none = (0,) * len(multipliers)
        depths, counts = (none, none) if transformers is None else (transformers.depth, transformers.heads)

        self.inward = nn.Conv2d(self.embed.channels + 2 * len(fourier) * in_channels, channels, 3, padding=1)
        initialise(self.inward)
        widths = [channels * m for m in multipliers]
        here, skips = channels, [channels]
        self.down = nn.ModuleList()
        self.downsample = nn.ModuleList()
        for i, there in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(here, there, i in attention, depths[i], counts[i]))
                here = there
                skips.append(here)
            self.down.append(stages)
            if i < len(widths) - 1:
                self.downsample.append(Downsample(here, asymmetric=asymmetric))
                skips.append(here)

        self.middle = nn.ModuleList()
        for i in range(middle):
            attend = i < middle - 1
            if transformers is None:
                self.middle.append(stage(here, here, attend))
            else:
                self.middle.append(stage(here, here, False, transformers.middle * attend, counts[-1]))

        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for i, there in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(here + skips.pop(), there, i in attention, depths[i], counts[i]))
                here = there
            self.up.append(stages)
            if i:
                self.upsample.append(Upsample(here))

        self.norm = norm("group", here, eps=eps, **grouped)
        self.outward = zero(nn.Conv2d(here, out_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        condition: Condition = _NO_CONDITION,
        added: Sequence[Tensor] = (),
        within: Sequence[Tensor] = (),
    ) -> Tensor:
        """F(x, level, condition): x (B, in_channels, H, W) and level (B,) to (B, out_channels, H, W).

        `added` joins what the way down has made: a feature map for each of them, in order, and one for the middle;
        `within` joins it on the way: one for each resolution, and one for the middle at most.
        Returns x's dtype. Any H and W of at least 2^(resolutions - 1). Raises ValueError for sizes, channels and parts
        of the condition that do not fit.
        """
        h, skips, c, tokens = self.descend(x, level, condition, within=within)
        if added:
            *beside, below = added
            h, skips = h + below, [skip + more for skip, more in zip(skips, beside, strict=True)]
        for i, stages in enumerate(self.up):
            for stage in cast(nn.ModuleList, stages):
                h = stage(torch.cat((h, skips.pop()), 1), c, tokens, condition.mask)
            if i < len(self.upsample):
                h = self.upsample[i](h, skips[-1].shape[2:])
        return self.outward(F.silu(self.norm(h))).to(x.dtype)


def _check_transformers(transformers: Transformers | None, resolutions: int, context: int | None) -> None:
    if transformers is None:
        return
    if context is None:
        raise ValueError("transformers read tokens and context=None says that there are none; give their width")
    if len(transformers.depth) != resolutions or len(transformers.heads) != resolutions:
        raise ValueError(
            f"depth={transformers.depth} and heads={transformers.heads} of the transformers are for {resolutions} "
            "resolutions; give one of each for every one, finest first"
        )
