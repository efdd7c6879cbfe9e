"""What generator networks are told: padding is nothing, and what does not fit is refused with a sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from carrara.nn import DiT, Fourier, Sinusoidal, TextTransformer, UNet
from carrara.nn.attention import Attention, attend
from carrara.nn.embed import position_grid
from carrara.types import Condition
from nn.networks import CASES, CONDITIONS, condition, perturb, pictures

TOLD = pytest.mark.parametrize("name", ["dit told", "mmdit told", "unet told"])
LEVEL = torch.tensor([1.0, 500.0])


@TOLD
def test_padding_is_nothing(name: str) -> None:
    """More padding, or other numbers in it, changes no output; a row of padding alone is finite and as any other."""
    network, told = perturb(CASES[name].build()), condition(2)
    assert told.tokens is not None
    assert told.mask is not None
    told = replace(told, mask=told.mask & torch.tensor([[True], [False]]))
    longer = replace(
        told,
        tokens=torch.cat((torch.where(told.mask[..., None], told.tokens, 7.0), torch.randn(2, 3, 12)), 1),
        mask=nn.functional.pad(told.mask, (0, 3)),
    )
    with torch.no_grad():
        a, b = network(pictures(2), LEVEL, told), network(pictures(2), LEVEL, longer)
    assert a.isfinite().all()
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(a.abs().max().clamp(min=1.0)))


@TOLD
def test_gradients_without_tokens_are_finite(name: str) -> None:
    network, told = perturb(CASES[name].build()), condition(2)
    assert told.mask is not None
    network(pictures(2), LEVEL, replace(told, mask=torch.zeros_like(told.mask))).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@TOLD
@pytest.mark.parametrize(
    "change",
    [
        {"tokens": None, "mask": None},
        {"tokens": torch.zeros(2, 5, 11)},
        {"tokens": torch.zeros(3, 5, 12), "mask": None},
        {"mask": torch.ones(2, 4, dtype=torch.bool)},
        {"vector": None},
        {"vector": torch.zeros(2, 7)},
        {"vector": torch.zeros(1, 6)},
        {"image": None},
        {"image": torch.zeros(2, 3, 8, 12)},
        {"image": torch.zeros(2, 2, 4, 6)},
        {"numbers": {}},
        {"numbers": {"augmentation": torch.zeros(2)}},
        {"numbers": {"augmentation": torch.zeros(2), "height": torch.zeros(2), "width": torch.zeros(2)}},
        {"numbers": {"augmentation": torch.zeros(2), "height": torch.zeros(1)}},
        {"controls": {"depth": torch.zeros(2, 3, 8, 12)}},
        {"adapters": {"face": torch.zeros(2, 4, 12)}},
    ],
    ids=lambda change: "-".join(change),
)
def test_refuses_what_does_not_fit(name: str, change: dict[str, Any]) -> None:
    network = CASES[name].build()
    with pytest.raises(ValueError, match="condition"):
        network(pictures(2), LEVEL, replace(condition(2), **change))


@pytest.mark.parametrize("name", ["dit", "unet"])
@pytest.mark.parametrize("part", ["tokens", "vector", "image", "numbers"])
def test_refuses_what_was_not_wanted(name: str, part: str) -> None:
    told = Condition(**{part: getattr(condition(2), part)})
    with pytest.raises(ValueError, match=f"condition.{part}"):
        CASES[name].build()(pictures(2), LEVEL, told)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_refuses_other_channels_and_levels(name: str) -> None:
    network = CASES[name].build()
    with pytest.raises(ValueError, match="3"):
        network(pictures(2, channels=4), LEVEL)
    for level in (torch.zeros(1), torch.zeros(()), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="level"):
            network(pictures(2), level)


@pytest.mark.parametrize("network", [UNet, DiT], ids=lambda network: network.__name__)
def test_image_alone(network: Any) -> None:
    options = {"size": 8, "width": 16, "depth": 1, "heads": 2} if network is DiT else {"channels": 8, "blocks": 1}
    made = perturb(network(in_channels=3, out_channels=3, image_channels=3, **options))
    x, image = pictures(2, height=8, width=8), pictures(2, height=8, width=8)
    assert made(x, LEVEL, Condition(image=image)).shape == x.shape


def test_text_padding_is_nothing() -> None:
    network = perturb(TextTransformer(vocabulary=9, width=16, depth=2, heads=4, length=12))
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    with torch.no_grad():
        tokens, pooled = network(ids, mask)
        longer = torch.nn.functional.pad(ids, (0, 7), value=8), torch.nn.functional.pad(mask, (0, 7))
        tokens2, pooled2 = network(*longer)
        alone, pooled3 = network(ids[1:, :2])
        empty, pooled4 = network(ids, torch.zeros_like(mask))
    torch.testing.assert_close(pooled2, pooled, rtol=0, atol=2e-6)
    torch.testing.assert_close(tokens2[:, :3], tokens, rtol=0, atol=1e-5)
    assert not tokens2[:, 3:].any()
    torch.testing.assert_close(pooled3, pooled[1:], rtol=0, atol=2e-6)
    torch.testing.assert_close(alone, tokens[1:, :2], rtol=0, atol=1e-5)
    assert not empty.any()
    torch.testing.assert_close(pooled4[0], pooled4[1])


def test_text_refuses() -> None:
    network = TextTransformer(vocabulary=9, width=8, depth=1, heads=2, length=4)
    with pytest.raises(ValueError, match="at most 4"):
        network(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="mask"):
        network(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))


def test_attention_is_the_formula() -> None:
    network = perturb(Attention(8, heads=2, context=6))
    x, context, mask = (
        torch.randn(2, 3, 8),
        torch.randn(2, 4, 6),
        torch.tensor([[True] * 4, [True, False, True, False]]),
    )
    q, (k, v) = network.q(x), network.kv(context).chunk(2, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        logits = q[..., part] @ k[..., part].mT / 2
        heads.append(logits.masked_fill(~mask[:, None], -math.inf).softmax(-1) @ v[..., part])
    torch.testing.assert_close(network(x, context, mask), network.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_agrees_with_the_fused_kernel(masked: bool) -> None:
    """In bfloat16 short sequences take another road: outputs and gradients within 2 % of float32's."""
    torch.manual_seed(0)
    mask = torch.arange(7)[None] < torch.tensor([7, 3, 0])[:, None] if masked else None
    q, k, v = torch.randn(3, 2, 5, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        output = attend(*leaves, mask)
        results.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaves)))
    for exact, short in zip(*results, strict=True):
        assert float((exact - short).norm() / exact.norm()) < 0.02
    if masked:
        assert not results[1][0][2].any()


def test_attention_refuses_heads() -> None:
    with pytest.raises(ValueError, match="3 heads"):
        Attention(8, heads=3)


def test_sinusoidal_is_the_formula() -> None:
    values, width = torch.tensor([0.0, 0.3, 999.0]), 8
    for scale, shift, period in ((1.0, 1.0, 1e4), (16.0, 0.0, 100.0)):
        waves = Sinusoidal(max_period=period, scale=scale, shift=shift)(values, width)
        for k in range(4):
            angle = scale * values.double() * period ** (-k / (4 - shift))
            torch.testing.assert_close(waves[:, k].double(), angle.sin(), rtol=0, atol=2e-4)
            torch.testing.assert_close(waves[:, 4 + k].double(), angle.cos(), rtol=0, atol=2e-4)
        turned = Sinusoidal(max_period=period, scale=scale, shift=shift, cosine_first=True)(values, width)
        torch.testing.assert_close(turned, torch.cat((waves[:, 4:], waves[:, :4]), 1))


def test_fourier_frequencies_are_normal() -> None:
    step = 1e-5  # the derivative of the sines at 0 is the frequencies
    frequencies = Fourier(bandwidth=2.0)(torch.tensor([step]), 2048)[0, :1024] / (2 * math.pi * step)
    assert abs(float(frequencies.mean())) < 1e-3
    assert abs(float(frequencies.std()) - 2.0) < 0.02


@pytest.mark.parametrize("embedding", [Sinusoidal(), Fourier()])
def test_embeddings_refuse_odd_widths(embedding: Sinusoidal | Fourier) -> None:
    with pytest.raises(ValueError, match="even"):
        embedding(torch.zeros(1), 7)


def test_embeddings_are_float32_in_low_precision() -> None:
    """999 and 998 are one number in bfloat16; the network tells them apart all the same."""
    network = perturb(UNet(channels=16, multipliers=(1,), attention=())).to(torch.bfloat16)
    x = pictures(1).to(torch.bfloat16)
    a, b = network(x, torch.tensor([998.0])), network(x, torch.tensor([999.0]))
    assert not torch.equal(a, b)


def test_positions_cover_one_extent_at_every_size() -> None:
    trained = position_grid(4, 6, 16, trained=(4, 6), device=torch.device("cpu"))
    assert trained.shape == (24, 16)
    assert len(trained.unique(dim=0)) == 24
    double = position_grid(8, 12, 16, trained=(4, 6), device=torch.device("cpu"))
    # The middle of two neighbours in the finer grid is a place of the coarser one: compare the slowest wave's angle.
    slow = double.view(8, 12, 16)[..., 3].asin()
    coarse = (slow[0::2, 0::2] + slow[1::2, 0::2]) / 2
    torch.testing.assert_close(coarse, trained.view(4, 6, 16)[..., 3].asin()[:, :], rtol=1e-3, atol=1e-5)


def test_dit_takes_other_sizes_or_refuses() -> None:
    network = DiT(in_channels=3, out_channels=3, size=8, width=16, depth=1, heads=2)
    assert perturb(network)(pictures(1, height=12, width=6), LEVEL[:1]).shape == (1, 3, 12, 6)
    with pytest.raises(ValueError, match="multiples of 2"):
        network(pictures(1, height=7), LEVEL[:1])
    learned = DiT(in_channels=3, out_channels=3, size=8, width=16, depth=1, heads=2, positions="learned")
    with pytest.raises(ValueError, match="learned positions"):
        learned(pictures(1, height=12, width=6), LEVEL[:1])


def test_dit_starts_at_zero() -> None:
    network = DiT(in_channels=3, out_channels=3, size=8, width=16, depth=1, heads=2)
    assert not network(pictures(1), LEVEL[:1]).any()


@pytest.mark.parametrize("options", [{"width": 18}, {"size": 7}, {"heads": 5}, {"size": (8, 9)}])
def test_dit_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        DiT(**{"in_channels": 3, "out_channels": 3, "size": 8, "width": 16, "depth": 1, "heads": 2} | options)


def test_conditions_are_the_options() -> None:
    """The cases above are told one of everything."""
    assert set(CONDITIONS) <= set(CASES["unet told"].build().config)
