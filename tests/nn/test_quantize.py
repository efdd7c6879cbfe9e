"""Vector quantisation: nearest codes, gradients straight through, running means, and codes that come back to life."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from carrara.nn import FSQ, VectorQuantizer
from carrara.nn.quantize import Quantizer, Seen
from carrara.rng import Rng


def encodings(rows: int, channels: int = 3, *, seed: int = 0, side: int = 4) -> Tensor:
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(seed))


def codebook(vocabulary: int = 16, channels: int = 3, **more: float) -> VectorQuantizer:
    torch.manual_seed(1)
    return VectorQuantizer(vocabulary=vocabulary, channels=channels, **more)  # type: ignore[arg-type]


def step(quantizer: Quantizer, z: Tensor, number: int = 0, *, cuts: int = 1) -> None:
    """One step of learning from the rows of z, in so many parts."""
    rng = Rng.samples(0, range(number * len(z), (number + 1) * len(z)))
    size = len(z) // cuts
    seen = []
    for i in range(cuts):
        rows = slice(i * size, (i + 1) * size)
        seen.append(quantizer.observe(z[rows], quantizer(z[rows]).indices, rng.rows(rows)))
    quantizer.learn(Seen.all(seen))


def test_every_encoding_gets_its_nearest_code() -> None:
    quantizer, z = codebook(), encodings(2)
    found = quantizer(z)
    places = z.movedim(1, -1)
    distances = (places[..., None, :] - quantizer.codebook).square().sum(-1)
    assert torch.equal(found.indices, distances.argmin(-1))
    torch.testing.assert_close(found.z, quantizer.embed(found.indices))
    torch.testing.assert_close(found.loss, 0.25 * distances.amin(-1).mean((1, 2)) / 3)
    assert found.indices.shape == (2, 4, 4) and found.indices.dtype == torch.int64


@pytest.mark.parametrize("quantizer", [codebook(), FSQ(levels=(5, 4, 3))], ids=["vq", "fsq"])
def test_a_code_is_its_own_token(quantizer: Quantizer) -> None:
    """Every token's vector is quantised to that token, so the vocabulary is really so large."""
    every = torch.arange(quantizer.vocabulary).view(1, 1, -1)
    codes = quantizer.embed(every)
    inward = torch.atanh(codes * 0.999) if isinstance(quantizer, FSQ) else codes
    assert torch.equal(quantizer(inward).indices, every)
    assert codes.shape == (1, quantizer.channels, 1, quantizer.vocabulary)
    torch.testing.assert_close(quantizer(inward).z, codes)


def test_the_gradient_passes_straight_through() -> None:
    """d loss / d z is the decoder's gradient at the codes, plus that of the commitment."""
    quantizer, z = codebook(commitment=0.5), encodings(2).requires_grad_()
    weight = encodings(2, seed=5)
    found = quantizer(z)
    ((found.z * weight).sum() + found.loss.sum()).backward()
    pull = 0.5 * 2 * (z.detach() - quantizer.embed(found.indices)) / z[0].numel()
    torch.testing.assert_close(z.grad, weight + pull)
    assert not list(quantizer.parameters())  # codes follow the encodings, not the gradient


def test_fsq_has_a_gradient_where_the_bound_lets_it() -> None:
    quantizer, z = FSQ(levels=(8, 5, 3)), encodings(2).requires_grad_()
    found = quantizer(z)
    found.z.sum().backward()
    torch.testing.assert_close(z.grad, 1 - z.detach().tanh().square())
    assert torch.equal(found.loss, torch.zeros(2))


def test_fsq_levels_are_even_and_symmetric() -> None:
    """All levels are reached, evenly spaced from -1 to 1, and mirrored in z = 0."""
    for levels in (2, 3, 4, 5, 8):
        quantizer = FSQ(levels=(levels,))
        z = torch.linspace(-4, 4, 1001)[:1001].view(1, 1, 1, -1)
        found = quantizer(z)
        values = found.z.unique()
        torch.testing.assert_close(values, torch.linspace(-1, 1, levels))
        away = z.abs() > 0.01  # between two levels either will do
        torch.testing.assert_close(quantizer(-z).z[away], -found.z[away])
    assert FSQ(levels=(8, 5, 5, 5)).vocabulary == 1000


def test_codes_are_the_running_means_of_the_paper() -> None:
    """N and m of appendix A.1 kept apart, in float64, give the codebook m / N."""
    quantizer = codebook(decay=0.8, revive=0.0)
    step(quantizer, encodings(8, seed=9))  # after the first step the codes have counts
    counts = quantizer.usage.double().clone()
    sums = counts[:, None] * quantizer.codebook.double()
    for number in range(1, 6):
        z = encodings(8, seed=number) * 0.5
        indices = quantizer(z).indices
        flat = z.movedim(1, -1).reshape(-1, 3).double()
        hits = torch.nn.functional.one_hot(indices.flatten(), 16).double() * 16 / indices.numel()
        counts = 0.8 * counts + 0.2 * hits.sum(0)
        sums = 0.8 * sums + 0.2 * hits.T @ flat
        step(quantizer, z, number)
        used = counts > 1e-9
        torch.testing.assert_close(quantizer.usage.double(), counts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            quantizer.codebook.double()[used], (sums / counts[:, None])[used], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("cuts", [2, 4, 8])
def test_parts_of_a_step_come_to_the_whole_step(cuts: int) -> None:
    """Micro-batches, or processes: the same codes move, and the same encodings revive the same codes."""
    whole, parted = codebook(), codebook()
    for number in range(4):
        z = encodings(8, seed=number)
        step(whole, z, number)
        step(parted, z, number, cuts=cuts)
        torch.testing.assert_close(parted.codebook, whole.codebook, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(parted.usage, whole.usage, rtol=1e-6, atol=1e-7)


def test_the_first_step_puts_the_codes_where_the_data_are() -> None:
    """Codes far from all data are unused, and start again at encodings of the step; none of them twice."""
    quantizer, z = codebook(), encodings(8) + 100.0
    step(quantizer, z)
    assert (quantizer.codebook > 90).all()
    assert len(quantizer.codebook.unique(dim=0)) == 16
    found = quantizer(z)
    assert len(found.indices.unique()) == 16


def test_what_is_badly_coded_is_offered_first() -> None:
    """Of 1,000 equal encodings and a few far ones, it is the far ones that unused codes go to (k-means++)."""
    quantizer = codebook(4, 2, decay=0.5)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]))
    quantizer.usage.copy_(torch.tensor([4.0, 0.0, 0.0, 0.0]))
    z = 0.001 * encodings(16, 2, side=8)
    z[0, :, 0, 0], z[7, :, 3, 3] = 10.0, -10.0
    step(quantizer, z)
    moved = quantizer.codebook[1:]
    assert {10.0, -10.0} <= set(moved[:, 0].tolist())


def test_offers_are_drawn_by_the_squared_distance() -> None:
    """The share of revivals that each of four encodings gets is its share of the squared distances."""
    quantizer = codebook(2, 1)
    quantizer.codebook.copy_(torch.tensor([[0.0], [1000.0]]))
    quantizer.usage.copy_(torch.tensor([2.0, 0.0]))
    z = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
    indices = torch.zeros(1, 2, 2, dtype=torch.int64)
    firsts = [quantizer.observe(z, indices, Rng.samples(0, [n])).offers for n in range(2000)]
    drawn = torch.stack([offers[offers[:, 0].argmin(), 1] for offers in firsts])
    share = torch.stack([(drawn == value).double().mean() for value in (1, 2, 3, 4)])
    expected = torch.tensor([1, 4, 9, 16], dtype=torch.float64) / 30
    assert (share - expected).abs().max() < 4 * math.sqrt(0.25 / 2000)


def test_a_code_that_nothing_uses_dies_and_comes_back() -> None:
    """Three values of data and four codes: all three find one, and when a value is gone its code goes elsewhere."""
    quantizer = codebook(4, 2, decay=0.5, revive=0.1)
    near, far = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)
    near[:, :, ::2], far[:, :, ::2] = 1.0, 5.0
    both = torch.cat((near, far))
    for number in range(20):
        step(quantizer, both, number)
    torch.testing.assert_close(quantizer(both).z, both, rtol=0, atol=1e-4)
    for number in range(20, 40):
        step(quantizer, near + number / 100, number)
    assert quantizer.codebook.amax() < 2.0


def test_without_revival_unused_codes_stay() -> None:
    quantizer = codebook(4, 2, decay=0.5, revive=0.0)
    before, z = quantizer.codebook.clone(), encodings(2, 2) * 0.01
    used = quantizer(z).indices.unique()
    step(quantizer, z)
    unused = torch.tensor([i for i in range(4) if i not in used])
    assert len(unused) and torch.equal(quantizer.codebook[unused], before[unused])


def test_perplexity_counts_codes_that_are_alike() -> None:
    quantizer = FSQ(levels=(4, 4))
    assert quantizer.perplexity == 1
    for shares, expected in (([1.0] * 16, 16), ([1.0] * 4 + [0.0] * 12, 4), ([3.0] + [0.0] * 15, 1)):
        quantizer.usage.copy_(torch.tensor(shares))
        assert quantizer.perplexity.item() == pytest.approx(expected)


def test_quantising_is_computed_in_float32() -> None:
    """Under autocast, too: tokens do not depend on the precision of whoever asks."""
    z = encodings(4)
    for quantizer in (codebook(64), FSQ(levels=(8, 8, 8))):
        with torch.autocast("cpu", torch.bfloat16):
            found = quantizer(z)
        assert torch.equal(found.indices, quantizer(z).indices)
        assert quantizer(z.bfloat16()).z.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: VectorQuantizer(vocabulary=1), "at least 2 codes"),
        (lambda: VectorQuantizer(channels=0), "channels=0"),
        (lambda: VectorQuantizer(decay=1.0), "decay = 1.0"),
        (lambda: VectorQuantizer(commitment=-1.0), "commitment = -1.0"),
        (lambda: VectorQuantizer(revive=1.0), "revive = 1.0"),
        (lambda: FSQ(levels=()), "at least 2 levels"),
        (lambda: FSQ(levels=(8, 1)), "at least 2 levels"),
        (lambda: codebook()(encodings(1, 5)), "reads .B, 3, H, W."),
        (lambda: FSQ()(encodings(1, 5)), "reads .B, 3, H, W."),
        (lambda: Seen.all([]), "nothing was seen"),
    ],
)
def test_what_makes_no_sense_is_refused(build: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()  # type: ignore[operator]
