"""What decoders minimise and are measured by, against written-out formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor, nn

from carrara.decoder.loss import (
    AutoencoderLoss,
    PictureLoss,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    psnr,
    ssim,
)


def pair(size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, size, size + 5, generator=generator) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def written_out(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two planes in [-1, 1] as Wang et al. (2004) say it, over the windows that lie within."""
    places = np.arange(-5, 6)
    window = np.exp(-(places**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(plane: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(plane, window, 0), window, 1)[5:-5, 5:-5]

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, xy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(np.mean((2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def test_ssim_is_the_papers() -> None:
    x, y = pair()
    wanted = [np.mean([written_out(a, b) for a, b in zip(*planes, strict=True)]) for planes in zip(
        x.double().numpy(), y.double().numpy(), strict=True)]  # fmt: skip
    torch.testing.assert_close(ssim(x, y), torch.tensor(wanted, dtype=torch.float32), rtol=0, atol=1e-6)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    torch.testing.assert_close(ssim(x, x), torch.ones(2))


def test_ssim_refuses_what_no_window_fits_into() -> None:
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_psnr_of_a_known_error() -> None:
    x = torch.zeros(1, 3, 4, 4)
    assert float(psnr(x, x + 0.2)) == pytest.approx(20.0, abs=1e-4)  # an error of a tenth of the range


@pytest.mark.parametrize("loss", [PictureLoss, AutoencoderLoss])
@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weights_that_make_no_sense_are_refused(loss: type[PictureLoss | AutoencoderLoss], weight: float) -> None:
    for name in ("l1", "l2", "edges", "charbonnier"):
        with pytest.raises(ValueError, match=f"{name} = {weight}; expected 0"):
            loss(**{name: weight})


def test_each_part_of_the_loss() -> None:
    """A constant error has known parts, and its differences are none."""
    x = torch.zeros(2, 3, 8, 8)
    made = x + torch.tensor([0.5, -0.1]).view(2, 1, 1, 1)
    off = {"l1": 0.0, "l2": 0.0, "edges": 0.0}
    known = {
        "l1": (0.5, 0.1),
        "l2": (0.25, 0.01),
        "edges": (0.0, 0.0),
        "charbonnier": tuple(math.sqrt(e * e + 1e-4) - 0.01 for e in (0.5, 0.1)),
    }
    for name, wanted in known.items():
        rows, parts = PictureLoss(**{**off, name: 2.0})(x, made)
        torch.testing.assert_close(rows, 2 * torch.tensor(wanted))
        torch.testing.assert_close(parts[name], torch.tensor(wanted).mean())
    mean, logvar = torch.full((2, 1), 2.0), torch.zeros(2, 1)
    rows, _ = AutoencoderLoss(**off, kl=1.0)(x, made, mean, logvar)
    torch.testing.assert_close(rows, torch.full((2,), 2.0))  # KL(N(m, 1) || N(0, 1)) = m^2 / 2


def test_charbonnier_is_logged_only_where_it_counts() -> None:
    x, y = pair()
    assert "charbonnier" not in PictureLoss()(x, y)[1]
    assert "charbonnier" in PictureLoss(charbonnier=1.0)(x, y)[1]


def test_hinges() -> None:
    real, made = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.5]])
    # real: 0 and 0.5; made: 0 and 1.5
    torch.testing.assert_close(hinge_discriminator(real, made), torch.tensor([(0.25 + 0.75) / 2]))
    torch.testing.assert_close(hinge_generator(made), torch.tensor([1.25]))


def test_the_adaptive_weight_is_the_ratio_of_gradients_worked_out_by_hand() -> None:
    """made = w h: d mean (made - x)^2 / dw = 2 mean (made - x) h, and d(-a mean made) / dw = -a mean h."""
    h, x, a = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.5, 0.0, 1.0]), 3.0
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.7)
    made = layer(h[:, None])[:, 0]
    weight = adaptive_weight((made - x).square().mean(), -a * made.mean(), layer.weight)
    by_hand = abs(float((2 * (0.7 * h - x) * h).mean())) / abs(float((-a * h).mean()))
    assert float(weight) == pytest.approx(by_hand, rel=1e-5)
    assert not weight.requires_grad
    made.sum().backward()  # the graph is still there


def test_an_adversary_that_pulls_nowhere_has_a_bounded_weight() -> None:
    layer = nn.Linear(1, 1, bias=False)
    made = layer(torch.ones(1, 1))
    assert float(adaptive_weight(made.square().sum(), 0 * made.sum(), layer.weight)) <= 1e4
