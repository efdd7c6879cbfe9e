r"""What decoders minimise, and how near their pictures are.

    l1, l2          mean |e|, mean e^2,                   e = decoded - x
    charbonnier     mean sqrt(e^2 + c^2) - c,             c = 0.01: as l1, and smooth at 0
    edges           l1 of the differences of neighbours, at full, half and quarter size
    kl              KL(q(z|x) || N(0, I)) a dimension     (Kingma & Welling 2014)
    hinge           of a discriminator D: max(0, 1 - D(x)) + max(0, 1 + D(decoded)); of a decoder: -D(decoded)

    psnr            10 log10(4 / mean e^2)                in dB, for pictures in [-1, 1]
    ssim            mean of (2 m_x m_y + C1)(2 s_xy + C2) / ((m_x^2 + m_y^2 + C1)(s_x^2 + s_y^2 + C2))
                    with means, variances and the covariance under a Gaussian window       (Wang et al. 2004)

An adversarial term is weighed against the others by how hard each pulls at the decoder's last layer (Esser et al. 2021,
equation 7): by |grad of reconstruction| / |grad of adversarial|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "AutoencoderLoss",
    "PictureLoss",
    "adaptive_weight",
    "hinge_discriminator",
    "hinge_generator",
    "psnr",
    "ssim",
]

_CHARBONNIER = 0.01
_LARGEST = 1e4  # of an adaptive weight
_WINDOW, _STD = 11, 1.5  # of SSIM: pixels, standard deviation
_K1, _K2, _RANGE = 0.01, 0.03, 2.0  # of SSIM; pictures span 2


@dataclass(frozen=True)
class PictureLoss:
    """What a decoder without a bottleneck minimises: the reconstruction alone, weighed as in `AutoencoderLoss`.

    By default the squared error, whose minimum is the mean of all that a small picture may stand for: the best PSNR.
    The others make it crisper, and farther from the mean.
    """

    l1: float = 0.0
    l2: float = 1.0
    edges: float = 0.0
    charbonnier: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self)

    def __call__(self, x: Tensor, decoded: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of each row (B,), and its parts' means."""
        return _weighed(self, _reconstruction(self, x, decoded))


@dataclass(frozen=True)
class AutoencoderLoss:
    """What a KL autoencoder minimises (Kingma & Welling 2014): reconstruction and a little KL(q(z|x) || N(0, I)).

    Weights a pixel and channel of the picture: `l1` and `l2` of the error, `edges` of the l1 error of horizontal and
    vertical differences at full, half and quarter size (it keeps outlines crisp), `charbonnier` of the smooth l1 error;
    `kl` a latent dimension.
    """

    l1: float = 1.0
    l2: float = 1.0
    edges: float = 1.0
    kl: float = 1e-6
    charbonnier: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self)

    def __call__(self, x: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of each row (B,), and its parts' means."""
        parts = _reconstruction(self, x, decoded)
        parts["kl"] = 0.5 * _mean(mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float())
        return _weighed(self, parts)


def _check_weights(weights: PictureLoss | AutoencoderLoss) -> None:
    for name, weight in asdict(weights).items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} = {weight}; expected 0 (off) or more")


def _reconstruction(weights: PictureLoss | AutoencoderLoss, x: Tensor, decoded: Tensor) -> dict[str, Tensor]:
    error = (decoded - x).float()
    parts = {"l1": _mean(error.abs()), "l2": _mean(error**2)}
    parts["edges"] = _edges(error)
    if weights.charbonnier:
        parts["charbonnier"] = _mean((error**2 + _CHARBONNIER**2).sqrt() - _CHARBONNIER)
    return parts


def _weighed(weights: object, parts: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
    rows = sum(getattr(weights, name) * part for name, part in parts.items())
    assert isinstance(rows, Tensor)
    return rows, {name: part.detach().mean() for name, part in parts.items()}


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def _edges(error: Tensor) -> Tensor:
    total = torch.zeros(len(error), device=error.device)
    for _ in range(3):
        total = total + _mean(error.diff(dim=2).abs()) + _mean(error.diff(dim=3).abs())
        error = F.avg_pool2d(error, 2)
    return total


def hinge_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """What a discriminator minimises, from its logits (B, ...) of real and of made pictures: (B,)."""
    return (_mean(F.relu(1 - real)) + _mean(F.relu(1 + made))) / 2


def hinge_generator(made: Tensor) -> Tensor:
    """What a decoder minimises, from a discriminator's logits (B, ...) of its pictures: (B,)."""
    return -_mean(made)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """|d reconstruction / d last| / |d adversarial / d last|: a detached number in [0, 10^4].

    The losses are numbers, and `last` a weight that both depend on; their graphs stay for the backward pass.
    """
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (pulls[0] / (pulls[1] + 1e-8)).clamp(max=_LARGEST).detach()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each row in dB, for pictures (B, C, H, W) in [-1, 1]: 10 log10(4 / mse)."""
    return 10 * torch.log10(4 / _mean((x - y).square()).clamp(min=1e-12))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each row (B,), up to 1, for pictures (B, C, H, W) in [-1, 1].

    Gaussian windows of 11 x 11 with a standard deviation of 1.5 that lie wholly within the picture, each channel by
    itself. Raises ValueError for pictures of fewer than 11 pixels a side.
    """
    if min(x.shape[2:]) < _WINDOW:
        raise ValueError(f"pictures of {x.shape[2]} x {x.shape[3]}; a window of SSIM has {_WINDOW} pixels a side")
    x, y = x.double(), y.double()  # variances are differences of near numbers
    places = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    row = torch.exp(-0.5 * (places / _STD) ** 2)
    row = row / row.sum()

    def blurred(image: Tensor) -> Tensor:
        planes = image.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(planes, row.view(1, 1, -1, 1)), row.view(1, 1, 1, -1)).view(
            *image.shape[:2], image.shape[2] - _WINDOW + 1, image.shape[3] - _WINDOW + 1
        )

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y, both = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2, blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    like = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return _mean(like / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).float()
