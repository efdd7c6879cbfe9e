r"""The network of a hierarchical VAE: up from the picture, down from the prior, level by level.

    z_l = m_l(h, c) + s_l(h, c) u_l,  u_l ~ N(0, I)        the prior p(z_l | z_1 .. z_l-1, c) = N(m_l, s_l^2)
    q(u_l | z_1 .. z_l-1, c, x) = N(d_l, e_l^2)            the posterior, residual: in units of the prior
    h -> h + W z_l -> ... -> the parameters of p(x | z, c)

h is what the levels before have made, c the condition. Prior and posterior share the way down (Sonderby et al. 2016);
the posterior says how it differs from the prior (Vahdat & Kautz 2020); blocks as in Child 2021. As the prior is an
affine map of u, KL(q(z_l) || p(z_l)) = KL(N(d_l, e_l^2) || N(0, I)), whatever m_l and s_l are. One level is the plain
VAE (Kingma & Welling 2014), with a prior that is told the condition.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import SpatialAttention
from carrara.nn.embed import check_part
from carrara.nn.layers import (
    NormKind,
    ResidualBlock,
    check_channels,
    check_counts,
    dtype_of,
    initialise,
    norm,
    zero,
)
from carrara.types import Condition

__all__ = ["LadderNetwork", "Residual"]

_LIMIT = 5.0  # of means and log standard deviations, softly (NVAE): what is beyond has no use, and no way back
_START_LOGSTD = -1.0  # of the posterior: before it is trained, it says something of the picture already
_NO_CONDITION = Condition()


class Residual(NamedTuple):
    """A level's posterior of u, whose prior is N(0, I), and the draw from it: each (B, latent, h, w) float32."""

    mean: Tensor
    logstd: Tensor
    u: Tensor


class _Level(nn.Module):
    """One level: h to p(z | h, c), with e also to q; then z into h."""

    def __init__(self, width: int, latent: int, embedding: int | None, kind: NormKind, dropout: float) -> None:
        super().__init__()

        def block(channels: int) -> ResidualBlock:
            return ResidualBlock(channels, width, embedding=embedding, kind=kind, dropout=dropout)

        self.prior, self.posterior, self.after = block(width), block(2 * width), block(width)
        prior, posterior = nn.Conv2d(width, 2 * latent, 1), nn.Conv2d(width, 2 * latent, 1)
        self.from_z = nn.Conv2d(latent, width, 1)
        initialise(posterior)
        initialise(self.from_z)
        with torch.no_grad():
            posterior.weight[latent:].zero_()
            cast(Tensor, posterior.bias)[latent:].fill_(_START_LOGSTD)
        self.to_prior, self.to_posterior = _head(kind, width, zero(prior)), _head(kind, width, posterior)

    def forward(
        self, h: Tensor, e: Tensor | None, noise: Tensor, told: Tensor | None
    ) -> tuple[Tensor, Residual | None]:
        """h to the next h. With features e the noise becomes a draw from the posterior, without it is u itself."""
        h = self.prior(h, told)
        mean, logstd = _pair(self.to_prior(h))
        residual, u = None, noise
        if e is not None:
            d, r = _pair(self.to_posterior(self.posterior(torch.cat((h, e), 1), told)))
            u = d + r.exp() * noise
            residual = Residual(d, r, u)
        h = h + self.from_z((mean + logstd.exp() * u).to(h.dtype))
        return self.after(h, told), residual


def _head(kind: NormKind, width: int, out: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(norm(kind, width), nn.SiLU(), out)


def _pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """A mean and a log standard deviation, in float32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, logstd = (_LIMIT * torch.tanh(x / _LIMIT)).chunk(2, dim=1)
    return mean, logstd


class _Up(nn.Module):
    """The way up: a picture to features at every resolution, finest first. It is not told the condition."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], kind: NormKind, dropout: float
    ) -> None:
        super().__init__()
        self.inward = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.halve = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1) for i in range(len(widths) - 1)
        )
        initialise(self)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width, kind=kind, dropout=dropout) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.blocks[0](self.inward(x))]
        for halve, blocks in zip(self.halve, list(self.blocks)[1:], strict=True):
            features.append(blocks(halve(features[-1])))
        return features


class _Resolution(nn.Module):
    """The way down at one resolution: what comes from below, a learned map of places, attentions, levels, blocks."""

    def __init__(
        self,
        below: int | None,
        width: int,
        size: tuple[int, int],
        *,
        levels: int,
        latent: int,
        blocks: int,
        attends: bool,
        context: int | None,
        heads: int,
        embedding: int | None,
        kind: NormKind,
        dropout: float,
    ) -> None:
        super().__init__()
        self.size = size
        self.widen = None if below is None else nn.Conv2d(below, width, 1)
        initialise(self)
        self.place = nn.Parameter(torch.zeros(width, *size))
        self.attention = SpatialAttention(width, heads=heads) if attends else None
        crosses = attends and context is not None
        self.cross = SpatialAttention(width, heads=heads, context=context) if crosses else None
        self.levels = nn.ModuleList(_Level(width, latent, embedding, kind, dropout) for _ in range(levels))
        self.blocks = nn.ModuleList(
            ResidualBlock(width, embedding=embedding, kind=kind, dropout=dropout) for _ in range(blocks)
        )

    def begin(self, h: Tensor | None, rows: int, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the resolution starts from: places, and the resolution below enlarged (for the coarsest, the vector)."""
        place = self.place.expand(rows, -1, -1, -1)
        if h is None:
            h = place
        elif self.widen is None:
            h = place + h.view_as(place)
        else:
            h = place + F.interpolate(self.widen(h), size=self.size, mode="nearest")
        if self.attention is not None:
            h = self.attention(h)
        return h if self.cross is None else self.cross(h, tokens, mask)


class LadderNetwork(Configured, nn.Module):
    """A hierarchical VAE's encoder, prior and decoder in one, for pictures or latents of one size.

    in_channels: of x. out_channels: of what says p(x | z), which a likelihood reads.
    size: of x, (height, width). patch: pixels a side that are folded into channels before anything else.
    widths: channels at each resolution, finest first, each half as large as the one before.
    blocks: residual blocks at each resolution, on the way up and on the way down.
    levels: levels of z at each resolution; one level in all is the plain VAE. latent: channels of each z.
    vector: width of `condition.vector`, None without; context: width of `condition.tokens`, None without.
    attention: the resolutions, 0 the finest, where places attend to one another and to the tokens. heads: of each.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 6,
        size: int | tuple[int, int] = 64,
        patch: int = 1,
        widths: tuple[int, ...] = (64, 128, 256),
        blocks: tuple[int, ...] = (1, 1, 1),
        levels: tuple[int, ...] = (0, 1, 1),
        latent: int = 16,
        vector: int | None = None,
        context: int | None = None,
        attention: tuple[int, ...] = (),
        heads: int = 4,
        norm: NormKind = "group",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        check_counts(patch=patch, widths=widths, latent=latent, heads=heads)
        _check(height, width, patch, widths, blocks, levels, attention, context)
        self.in_channels, self.patch, self.size = in_channels, patch, (height, width)
        self.vector, self.context = vector, context
        sizes = [(height // patch, width // patch)]
        for _ in widths[1:]:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        self.latents = tuple(
            (latent, *sizes[i]) for i in reversed(range(len(widths))) for _ in range(levels[i])
        )  # the shape of each u, in the order in which they are drawn
        embedding = None if vector is None else 2 * max(widths)
        self.told = None if embedding is None else _told(cast(int, vector), embedding)
        # where the way down begins, each place by itself: the blocks tell all places of a condition the same
        self.begin = None if embedding is None else nn.Linear(embedding, widths[-1] * math.prod(sizes[-1]))
        self.token_norm = None if context is None else nn.LayerNorm(context)
        self.up = _Up(in_channels * patch**2, widths, blocks, norm, dropout)
        self.down = nn.ModuleList(
            _Resolution(
                widths[i + 1] if i + 1 < len(widths) else None,
                widths[i],
                sizes[i],
                levels=levels[i],
                latent=latent,
                blocks=blocks[i],
                attends=i in attention,
                context=context,
                heads=heads,
                embedding=embedding,
                kind=norm,
                dropout=dropout,
            )
            for i in reversed(range(len(widths)))
        )
        if self.begin is not None:
            initialise(self.begin)
        with torch.no_grad():
            cast(_Resolution, self.down[0]).place.normal_(std=0.1)
            for level in self._levels():
                level.from_z.weight /= math.sqrt(len(self.latents))  # all together change h as one would
        outward = zero(nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1))
        self.outward = _head(norm, widths[0], outward)

    def _levels(self) -> list[_Level]:
        return [cast(_Level, level) for part in self.down for level in cast(_Resolution, part).levels]

    def forward(
        self, x: Tensor, noise: tuple[Tensor, ...], condition: Condition = _NO_CONDITION
    ) -> tuple[Tensor, tuple[Residual, ...]]:
        """The parameters of p(x | z), (B, out_channels, H, W), for a draw of z from the posterior, and each level's.

        x is (B, in_channels, H, W), `noise` one standard normal tensor (B, *shape) for each shape in `latents`.
        Raises ValueError for sizes, channels and parts of the condition that do not fit.
        """
        check_channels(x, self.in_channels)
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"x is {x.shape[2]} x {x.shape[3]} and this network was built for {self.size[0]} x {self.size[1]}; "
                "its levels have places of their own, so give it that size"
            )
        features = self.up(F.pixel_unshuffle(x.to(dtype_of(self)), self.patch))
        return self._descend(features, noise, condition)

    def generate(self, condition: Condition, *noise: Tensor) -> Tensor:
        """The parameters of p(x | z), (B, out_channels, H, W), for u = noise: a draw of z from the prior."""
        return self._descend(None, noise, condition)[0]

    def _descend(
        self, features: list[Tensor] | None, noise: tuple[Tensor, ...], condition: Condition
    ) -> tuple[Tensor, tuple[Residual, ...]]:
        rows = self._check_noise(noise)
        told, tokens = self._read(condition, rows)
        left, residuals = list(noise), []
        h = None if self.begin is None or told is None else self.begin(told)
        for i, part in enumerate(cast(list[_Resolution], list(self.down))):
            h = part.begin(h, rows, tokens, condition.mask)
            e = None if features is None else features[-1 - i]
            for level in part.levels:
                h, residual = level(h, e, left.pop(0), told)
                residuals.append(residual)
            for block in part.blocks:
                h = block(h, told)
        output = F.pixel_shuffle(self.outward(cast(Tensor, h)), self.patch)
        return output.to(noise[0].dtype), tuple(cast(list[Residual], residuals))

    def _check_noise(self, noise: tuple[Tensor, ...]) -> int:
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in noise)
        if shapes != self.latents or len({len(tensor) for tensor in noise}) != 1:
            raise ValueError(
                f"noise has shapes {tuple(tuple(tensor.shape) for tensor in noise)} and this network's levels need "
                f"(B, ...) with {self.latents}"
            )
        return len(noise[0])

    def _read(self, condition: Condition, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """The embedding (B, E) of the vector, through its SiLU, and the normalised tokens."""
        tokens, vector = condition.tokens, condition.vector
        check_part("vector", vector, self.vector, "vector", axis=1, ndim=2, rows=rows)
        check_part("tokens", tokens, self.context, "context", axis=2, ndim=3, rows=rows)
        for name in ("image", "numbers", "controls", "adapters"):
            value = getattr(condition, name)
            if value is not None and len(value):
                raise ValueError(f"condition.{name} is not read by this network; drop it")
        dtype = dtype_of(self)
        told = F.silu(self.told(vector.to(dtype))) if self.told is not None and vector is not None else None
        if self.token_norm is None or tokens is None:
            return told, None
        return told, self.token_norm(tokens.to(dtype))


def _told(vector: int, embedding: int) -> nn.Sequential:
    told = nn.Sequential(nn.Linear(vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
    initialise(told)
    return told


def _check(
    height: int,
    width: int,
    patch: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    levels: tuple[int, ...],
    attention: tuple[int, ...],
    context: int | None,
) -> None:
    if height % patch or width % patch:
        raise ValueError(f"size {height} x {width} does not divide into patches of {patch}; choose another `patch`")
    for name, counts in (("blocks", blocks), ("levels", levels)):
        if len(counts) != len(widths) or any(count < 0 for count in counts):
            raise ValueError(f"{name}={counts} for {len(widths)} widths; give one number from 0 up for each width")
    if not sum(levels):
        raise ValueError(f"levels={levels} leaves no z at all; give at least one resolution a level")
    if not set(attention) <= set(range(len(widths))):
        raise ValueError(
            f"attention={attention} names resolutions and widths={widths} has {len(widths)}, numbered from 0; "
            "name those only"
        )
    if context is not None and not attention:
        raise ValueError(
            f"context={context} and no resolution attends to it; name some in `attention`, or leave `context` out"
        )
