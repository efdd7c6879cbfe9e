"""What a network is told besides x, turned into vectors: the level, numbers, a pooled vector, positions.

A level (B,) becomes waves of many frequencies, which a small network then reads:

    Sinusoidal   f_k = scale * max_period ** (-k / (n - shift)),  k = 0 .. n - 1   (Vaswani et al. 2017; DDPM: shift 1)
    Fourier      f_k = 2 pi * bandwidth * k-th of n quantiles of N(0, 1)           (Tancik et al. 2020; EDM draws them)
    waves        (sin f_k level, cos f_k level),                                   n = width / 2

Everything here is computed in float32, also under autocast and in networks cast to half precision, and has no state:
there is nothing that a cast could spoil.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.nn.layers import check_channels, dtype_of, initialise
from carrara.types import Condition

__all__ = [
    "Conditioning",
    "Embedding",
    "Fourier",
    "Reader",
    "Sinusoidal",
    "check_numbers",
    "check_part",
    "place_waves",
    "position_grid",
]


def _waves(angles: Tensor, *, cosine_first: bool) -> Tensor:
    sine, cosine = angles.sin(), angles.cos()
    return torch.cat((cosine, sine) if cosine_first else (sine, cosine), -1)


def _check_even(width: int) -> None:
    if width % 2:
        raise ValueError(f"an embedding of width {width} has no half for its cosines; choose an even width")


class Embedding(ABC):
    """How numbers become waves."""

    @abstractmethod
    def __call__(self, values: Tensor, width: int) -> Tensor:
        """Waves: values of any shape to (..., width) float32; ValueError for an odd width."""


@dataclass(frozen=True)
class Sinusoidal(Embedding):
    """Waves of geometrically spaced frequencies, from `scale` down to about `scale / max_period` radians a unit."""

    max_period: float = 10000.0
    scale: float = 1.0
    shift: float = 0.0  # 1 ends exactly at scale / max_period, as DDPM does
    cosine_first: bool = False

    def __call__(self, values: Tensor, width: int) -> Tensor:
        """Waves: values of any shape to (..., width) float32."""
        _check_even(width)
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32, device=values.device) / max(half - self.shift, 1.0)
        frequencies = torch.exp(-math.log(self.max_period) * steps)
        return _waves(self.scale * values.float()[..., None] * frequencies, cosine_first=self.cosine_first)


@dataclass(frozen=True)
class Fourier(Embedding):
    """Waves of normally distributed frequencies, standard deviation `bandwidth` turns a unit.

    The frequencies are the quantiles of the normal distribution rather than draws from it, so none has to be stored.
    """

    bandwidth: float = 16.0

    def __call__(self, values: Tensor, width: int) -> Tensor:
        """Waves: values of any shape to (..., width) float32."""
        _check_even(width)
        half = width // 2
        quantiles = (torch.arange(half, dtype=torch.float32, device=values.device) + 0.5) / half
        frequencies = 2 * math.pi * self.bandwidth * torch.special.ndtri(quantiles)
        return _waves(values.float()[..., None] * frequencies, cosine_first=False)


# Frequencies from 100 to 0.0001 radians a unit: serves augmentation levels in [0, 1] and picture sizes in pixels alike.
_NUMBERS = Sinusoidal(max_period=1e6, scale=100.0)
_GUIDANCE = Sinusoidal(scale=1000.0, shift=1.0)  # as consistency models were distilled (Luo et al. 2023)


def position_grid(height: int, width: int, channels: int, *, trained: tuple[int, int], device: torch.device) -> Tensor:
    """Sine-cosine positions of a height x width grid: (height * width, channels) float32, channels a multiple of 4.

    Half of the channels speak of the row, half of the column (MAE, DiT). A grid other than `trained` is laid over the
    same extent, so a network sees at every size positions it was trained between.
    """

    def axis(count: int, extent: int) -> Tensor:
        places = (torch.arange(count, dtype=torch.float32, device=device) + 0.5) * (extent / count) - 0.5
        return Sinusoidal()(places, channels // 2)

    rows = axis(height, trained[0])[:, None].expand(height, width, -1)
    columns = axis(width, trained[1])[None].expand(height, width, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1)


def place_waves(rows: Tensor, columns: Tensor, channels: int) -> Tensor:
    """Sine-cosine positions as SD3 and PixArt have them: (H * W, channels) float32, channels a multiple of 4.

    rows (H,) and columns (W,) are the places. The first half of the channels speaks of the column, the second of the
    row; the angles are computed in float64.
    """
    frequencies = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64, device=rows.device) / (channels // 4))
    height, width = len(rows), len(columns)
    across = _waves(columns.double()[:, None] * frequencies, cosine_first=False)[None].expand(height, width, -1)
    down = _waves(rows.double()[:, None] * frequencies, cosine_first=False)[:, None].expand(height, width, -1)
    return torch.cat((across, down), -1).flatten(0, 1).float()


class Reader(nn.Module):
    """Numbers (B,) to (B, width): waves, linear, SiLU, linear."""

    def __init__(self, embedding: Embedding, features: int, width: int) -> None:
        super().__init__()
        self.embedding, self.features = embedding, features
        self.linear1 = nn.Linear(features, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, values: Tensor, joining: Tensor | None = None) -> Tensor:
        """`joining` (B, features) is added to the waves."""
        waves = self.embedding(values, self.features).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(waves if joining is None else waves + joining)))


class _GuidanceReader(nn.Module):
    """The scale (B,) of a guidance that was distilled into a network, 1 for none, to (B, width): waves, linear."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features, width, bias=False)

    def forward(self, scale: Tensor) -> Tensor:
        return self.linear(_GUIDANCE(scale - 1, self.features).to(self.linear.weight.dtype))


class _JointReader(nn.Module):
    """A vector (B, vector) and numbers (B,), the waves of all side by side, to (B, width): linear, SiLU, linear."""

    def __init__(self, embedding: Embedding, features: int, *, vector: int, numbers: int, width: int) -> None:
        super().__init__()
        self.embedding, self.features = embedding, features
        self.linear1 = nn.Linear(vector + numbers * features, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, vector: Tensor, numbers: Sequence[Tensor]) -> Tensor:
        waves = [self.embedding(number, self.features).to(vector.dtype) for number in numbers]
        return self.linear2(F.silu(self.linear1(torch.cat((vector, *waves), 1))))


class Conditioning(nn.Module):
    """The one place where a generator network reads its level and its `Condition`, and refuses what does not fit.

    level (B,) -> waves (B, features) -> linear, SiLU, linear -> (B, width); to which are added, where the network was
    built for them, a linear map of `condition.vector` (B, vector), one such small network a name in `numbers`, and for
    each name in `adapters` a linear map without bias of the mean of `condition.adapters` (B, L, adapters[name]).
    `condition.image`, and after it `condition.controls` (B, controls[name], H, W) in the order of `controls`, join x
    along the channels; `condition.tokens` (B, L, context) are layer-normalised.

    vector_hidden: the vector goes through linear, SiLU, linear. number_waves: how numbers become waves. token_norm:
    False leaves the tokens as they are. joint_features: the vector and the numbers are
    read together, by one small network that sees the vector beside so many of each number's waves (SDXL, Podell et al.
    2023). guidance_features: of `condition.numbers["guidance"]`, the scale of a distilled guidance, so many waves join
    the level's by a linear map (Meng et al. 2023). vector_bias: of the linear map of the vector.
    """

    def __init__(
        self,
        *,
        width: int,
        features: int,
        embedding: Embedding,
        in_channels: int,
        context: int | None = None,
        vector: int | None = None,
        image_channels: int = 0,
        numbers: Sequence[str] = (),
        controls: Mapping[str, int] | None = None,
        adapters: Mapping[str, int] | None = None,
        vector_hidden: bool = False,
        number_waves: Embedding = _NUMBERS,
        token_norm: bool = True,
        joint_features: int | None = None,
        guidance_features: int | None = None,
        vector_bias: bool = True,
    ) -> None:
        super().__init__()
        if joint_features is not None and (vector is None or not numbers):
            raise ValueError(
                f"joint_features={joint_features} reads a vector and numbers together, and there is vector={vector} "
                f"and numbers={tuple(numbers)}; give both"
            )
        alone = joint_features is None
        self.context, self.vector_width = context, vector
        self.in_channels, self.image_channels, self.numbers = in_channels, image_channels, tuple(numbers)
        self.guided = () if guidance_features is None else ("guidance",)
        self.controls, self.adapters = dict(controls or {}), dict(adapters or {})
        self.level = Reader(embedding, features, width)
        self.vector: nn.Module | None = None
        if alone and vector is not None:
            self.vector = nn.Linear(vector, width, bias=vector_bias)
        if alone and vector is not None and vector_hidden:
            self.vector = nn.Sequential(nn.Linear(vector, width), nn.SiLU(), nn.Linear(width, width))
        self.number = nn.ModuleDict({name: Reader(number_waves, features, width) for name in numbers if alone})
        self.joint: _JointReader | None = None
        if joint_features is not None and vector is not None:
            count = len(self.numbers)
            self.joint = _JointReader(embedding, joint_features, vector=vector, numbers=count, width=width)
        self.adapter = nn.ModuleDict({name: nn.Linear(size, width, bias=False) for name, size in self.adapters.items()})
        self.guidance = None if guidance_features is None else _GuidanceReader(guidance_features, features)
        self.token_norm = nn.LayerNorm(context) if context is not None and token_norm else None
        initialise(self)

    @property
    def channels(self) -> int:
        """Of x with all that joins it."""
        return self.in_channels + self.image_channels + sum(self.controls.values())

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x with the condition's pictures, the vector (B, width), and the tokens, all in the network's dtype."""
        self._check(x, level, condition)
        dtype = dtype_of(self)
        joining = [] if condition.image is None else [condition.image]
        joining += [condition.controls[name] for name in self.controls]
        if joining:
            x = torch.cat((x, *(image.to(x.dtype) for image in joining)), 1)
        h = self.level(level, None if self.guidance is None else self.guidance(condition.numbers["guidance"]))
        if self.vector is not None and condition.vector is not None:
            h = h + self.vector(condition.vector.to(dtype))
        for name, network in self.number.items():
            h = h + network(condition.numbers[name])
        if self.joint is not None and condition.vector is not None:
            h = h + self.joint(condition.vector.to(dtype), [condition.numbers[name] for name in self.numbers])
        for name, linear in self.adapter.items():
            h = h + linear(condition.adapters[name].to(dtype).mean(1))
        tokens = None if condition.tokens is None else condition.tokens.to(dtype)
        if self.token_norm is not None and tokens is not None:
            tokens = self.token_norm(tokens)
        return x.to(dtype), h, tokens

    def _check(self, x: Tensor, level: Tensor, condition: Condition) -> None:
        check_channels(x, self.in_channels)
        rows = x.shape[0]
        if level.shape != (rows,):
            raise ValueError(f"level has shape {tuple(level.shape)} for {rows} rows; give one number a row, ({rows},)")
        check_part("tokens", condition.tokens, self.context, "context", axis=2, ndim=3, rows=rows)
        check_part("vector", condition.vector, self.vector_width, "vector", axis=1, ndim=2, rows=rows)
        channels = self.image_channels or None
        check_part("image", condition.image, channels, "image_channels", axis=1, ndim=4, rows=rows)
        _check_names("controls", condition.controls, self.controls)
        _check_names("adapters", condition.adapters, self.adapters)
        for name, size in self.controls.items():
            check_part(f"controls[{name!r}]", condition.controls[name], size, "controls", axis=1, ndim=4, rows=rows)
        for name, size in self.adapters.items():
            check_part(f"adapters[{name!r}]", condition.adapters[name], size, "adapters", axis=2, ndim=3, rows=rows)
        for image in (condition.image, *condition.controls.values()):
            if image is not None and image.shape[2:] != x.shape[2:]:
                raise ValueError(
                    f"a picture of the condition has {tuple(image.shape[2:])} pixels and x has {tuple(x.shape[2:])}; "
                    "resize it to x's size first"
                )
        mask, tokens = condition.mask, condition.tokens
        if mask is not None and (tokens is None or mask.shape != tokens.shape[:2]):
            wanted = None if tokens is None else tuple(tokens.shape[:2])
            raise ValueError(f"condition.mask has shape {tuple(mask.shape)} and the tokens need {wanted}")
        check_numbers(condition.numbers, (*self.numbers, *self.guided), rows)


def check_numbers(given: Mapping[str, Tensor], wanted: Collection[str], rows: int) -> None:
    """Refuse anything but exactly the numbers of these names, (rows,) each."""
    _check_names("numbers", given, wanted)
    for name, number in given.items():
        if number.shape != (rows,):
            raise ValueError(
                f"condition.numbers[{name!r}] has shape {tuple(number.shape)}; give one number a row, ({rows},)"
            )


def _check_names(part: str, given: Mapping[str, Tensor], wanted: Collection[str]) -> None:
    if set(given) != set(wanted):
        raise ValueError(
            f"condition.{part} has {sorted(given)} and this network reads {sorted(wanted)}; "
            f"give it exactly those, or build it with others in `{part}`"
        )


def check_part(
    name: str, given: Tensor | None, size: int | None, option: str, *, axis: int, ndim: int, rows: int
) -> None:
    """Refuse a condition's part that the network was not built for (`option`=`size` on `axis`), or the lack of one."""
    if given is None and size is None:
        return
    if given is None:
        raise ValueError(f"condition.{name} is missing: this network was built with {option}={size}; give it that part")
    if size is None:
        raise ValueError(f"condition.{name} was given to a network built without `{option}`; drop it, or build with it")
    if given.ndim != ndim or given.shape[axis] != size or given.shape[0] != rows:
        raise ValueError(
            f"condition.{name} has shape {tuple(given.shape)}; this network was built with {option}={size} and x has "
            f"{rows} rows, so it needs {ndim} axes with {rows} first and {size} on axis {axis}"
        )
