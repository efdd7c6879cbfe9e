"""A GAN's losses and penalties against closed forms, a ring of modes that is covered, and the generator's promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.gan import Gamma, GanGenerator, GanSettings, RelativisticLoss, distances, gradient_penalty, relativistic
from carrara.nn.discriminator import Discriminator
from carrara.nn.gan_generator import ConvGenerator
from carrara.rng import Rng
from carrara.run import finish
from carrara.types import Condition, Space


class Linear(nn.Module):
    """D(x, c) = w . x + v . c, whose gradient is w everywhere."""

    def __init__(self, width: int, told: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(width, generator=torch.Generator().manual_seed(0)))
        self.v = nn.Parameter(torch.randn(told, generator=torch.Generator().manual_seed(1)))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w

    def judge(self, features: Tensor, condition: Condition) -> Tensor:
        return features if condition.vector is None else features + condition.vector @ self.v


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_relativistic_pairing() -> None:
    scores = normal(7).requires_grad_()
    assert torch.allclose(relativistic(scores, scores), torch.full((7,), math.log(2)))
    other = normal(7, seed=4).requires_grad_()
    loss = relativistic(scores, other)
    up, down = torch.autograd.grad(loss.sum(), (scores, other))
    torch.testing.assert_close(up, -torch.sigmoid(other - scores).detach())  # higher is better,
    torch.testing.assert_close(down, -up)  # and only the difference counts
    torch.testing.assert_close(loss - relativistic(other, scores), other - scores)


def test_penalties_in_closed_form() -> None:
    judge, x = Linear(12), normal(5, 3, 2, 2).requires_grad_()
    penalty = gradient_penalty(judge.features(x), x)
    torch.testing.assert_close(penalty, judge.w.square().sum().expand(5))
    penalty.mean().backward()
    torch.testing.assert_close(judge.w.grad, 2 * judge.w.detach())  # differentiable once more
    # of |A x|^2 / 2 the gradient is A'A x
    a = normal(12, 12).double()
    x = normal(5, 12).double().requires_grad_()
    found = gradient_penalty((x @ a.T).square().sum(1) / 2, x)
    torch.testing.assert_close(found, (x @ a.T @ a).square().sum(1).float())


@pytest.mark.parametrize("mismatch", [0.0, 0.7])
def test_the_discriminators_loss_in_closed_form(mismatch: float) -> None:
    judge, real, fake = Linear(12, 3), normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=5)
    told, other = Condition(vector=normal(4, 3, seed=6)), Condition(vector=normal(4, 3, seed=7))
    differ = torch.tensor([True, False, True, True])
    loss = RelativisticLoss(Gamma(first=2.0, last=2.0), mismatch)
    rows, parts = loss.discriminator(judge, real, fake, told, range(4), (told, other, differ))
    margin = (real - fake).flatten(1) @ judge.w
    swapped = (told.vector - other.vector) @ judge.v
    expected = F.softplus(-margin) + 2 * judge.w.square().sum() + mismatch * differ * F.softplus(-swapped)
    torch.testing.assert_close(rows, expected)
    assert parts["r1"].item() == pytest.approx(judge.w.square().sum().item(), rel=1e-5)
    assert parts["margin"].item() == pytest.approx(margin.mean().item(), rel=1e-4)
    assert ("mismatch" in parts) == bool(mismatch) and not any(part.requires_grad for part in parts.values())
    (found,) = torch.autograd.grad(rows.sum(), judge.w, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), judge.w)
    torch.testing.assert_close(found, wanted)


def test_gradients_have_the_right_signs() -> None:
    judge, real, loss = Linear(12), normal(4, 3, 2, 2), RelativisticLoss(Gamma(0.0, 0.0), 0.0)
    fake = normal(4, 3, 2, 2, seed=5).requires_grad_()
    told = Condition()
    (pull,) = torch.autograd.grad(loss.generator(judge, real, fake, told).sum(), fake)
    margin = (real - fake.detach()).flatten(1) @ judge.w.detach()
    torch.testing.assert_close(-pull.flatten(1), torch.sigmoid(margin)[:, None] * judge.w.detach())  # up D's slope
    before, _ = loss.discriminator(judge, real, fake, told, range(4))
    (slope,) = torch.autograd.grad(before.mean(), judge.w)
    with torch.no_grad():
        judge.w -= 0.01 * slope
    after, parts = loss.discriminator(judge, real, fake, told, range(4))
    assert after.mean() < before.mean() and parts["margin"] > margin.mean()


def test_gamma_falls_by_half_a_cosine_row_by_row() -> None:
    gamma = Gamma(first=2.0, last=0.5, pictures=100)
    values = gamma(range(150))
    assert values[0] == 2.0 and values[50].item() == pytest.approx(1.25) and bool((values[100:] == 0.5).all())
    assert bool((values.diff() <= 0).all())
    torch.testing.assert_close(torch.cat([gamma([7]), gamma([120, 3])]), values[[7, 120, 3]])
    for wrong in ({"first": -1.0}, {"last": math.inf}, {"pictures": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Gamma(**wrong)
    with pytest.raises(ValueError, match="mismatch"):
        RelativisticLoss(mismatch=-0.1)


def test_distances_between_pictures() -> None:
    z = torch.zeros(2, 3, 1, 2, 2)
    z[0, 1] = 3.0  # of three pairs two are 3 apart in every number
    z[1, :, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0])  # 1, 1 and 2 apart in one number of four
    torch.testing.assert_close(distances(z), torch.tensor([2.0, (0.5 + 0.5 + 1.0) / 3]))
    many = normal(3, 4, 2, 5, 5)
    torch.testing.assert_close(distances(2 * many.flip(1)), 2 * distances(many))


def test_penalties_hold_in_bfloat16() -> None:
    """Under autocast the networks compute in bfloat16; scores, penalty and what is differentiated are float32."""
    torch.manual_seed(0)
    judge = Discriminator(in_channels=3, size=8, vector=5, features=16, widths=(16, 16), blocks=1)
    for parameter in judge.parameters():
        nn.init.normal_(parameter, std=0.3)
    real, fake, told = normal(6, 3, 8, 8), normal(6, 3, 8, 8, seed=5), Condition(vector=normal(6, 5))
    found = {}
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low, cache_enabled=False):
            rows, parts = RelativisticLoss(Gamma(1.0, 1.0)).discriminator(judge, real, fake, told, range(6))
        assert rows.dtype == torch.float32
        grads = torch.autograd.grad(rows.mean(), tuple(judge.parameters()), allow_unused=True)
        found[low] = parts, torch.cat([g.flatten() for g in grads if g is not None])
    for name, part in found[False][0].items():
        torch.testing.assert_close(found[True][0][name], part, rtol=0.05, atol=0.05)
    assert F.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.99


def test_a_ring_of_modes_is_covered() -> None:
    """Eight narrow modes in the plane (Metz et al. 2017), on which a GAN without pairing and penalties drops most."""
    torch.manual_seed(0)

    def body(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
        )

    class Plane(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body(2, 1)

        def features(self, x: Tensor) -> Tensor:
            return self.body(x)[:, 0]

        def judge(self, features: Tensor, condition: Condition) -> Tensor:
            return features

    network, judge, told = body(4, 2), Plane(), Condition()
    steps, rows = 600, 128
    loss = RelativisticLoss(Gamma(0.3, 0.03, steps * rows // 2), 0.0)
    moves = [torch.optim.Adam(part.parameters(), 3e-3, betas=(0.0, 0.99)) for part in (network, judge)]
    angles = torch.arange(8) * math.pi / 4
    modes = torch.stack((angles.cos(), angles.sin()), 1)
    average = [p.detach().clone() for p in network.parameters()]
    for step in range(steps):
        real = modes[torch.randint(8, (rows,))] + 0.05 * torch.randn(rows, 2)
        loss.generator(judge, real, network(torch.randn(rows, 4)), told).mean().backward()
        moves[0].step()
        judge.zero_grad()
        with torch.no_grad():
            fake = network(torch.randn(rows, 4))
        numbers = range(step * rows, (step + 1) * rows)
        loss.discriminator(judge, real, fake, told, numbers)[0].mean().backward()
        moves[1].step()
        network.zero_grad()
        judge.zero_grad()
        for mean, parameter in zip(average, network.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 0.02)
    with torch.no_grad():
        for mean, parameter in zip(average, network.parameters(), strict=True):
            parameter.copy_(mean)
        apart, which = torch.cdist(network(torch.randn(4000, 4)), modes).min(1)
    near = apart < 0.25
    shares = torch.bincount(which[near], minlength=8) / 4000
    assert shares.sum() > 0.5, f"{shares.sum():.0%} of what is made lies near a mode"
    assert shares.min() > 0.03, f"modes are hit unevenly: {shares.tolist()}"


def generator(**settings: float) -> GanGenerator:
    torch.manual_seed(0)
    network = ConvGenerator(out_channels=2, size=8, vector=5, noise=6, style=8, widths=(8, 8), blocks=1, group=4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return GanGenerator(network, Space("pixels", (2, 8, 8)), settings=GanSettings(**settings))


def made(of: GanGenerator, seeds: list[int], told: Tensor, settings: GanSettings | None = None) -> Tensor:
    condition = Condition(vector=told)
    z: Tensor = finish(of.start((2, 8, 8), condition, condition, Rng.seeds(seeds), settings))
    return z


def test_a_picture_depends_on_its_prompt_and_seed_alone() -> None:
    it, told = generator(), normal(3, 5)
    together = made(it, [4, 5, 6], told)
    assert together.shape == (3, 2, 8, 8)
    torch.testing.assert_close(made(it, [5], told[1:2]), together[1:2])
    assert not torch.allclose(made(it, [5], told[:1]), together[1:2], atol=0.01)  # another prompt
    assert not torch.allclose(made(it, [7], told[1:2]), together[1:2], atol=0.01)  # another seed


def test_truncation_trades_variety_away() -> None:
    it, told = generator(), normal(1, 5).expand(6, 5)
    variety = [
        distances(made(it, list(range(6)), told, GanSettings(share))[None]).item() for share in (0.0, 0.3, 0.7, 1.0)
    ]
    assert variety[0] == pytest.approx(0, abs=1e-6) and variety == sorted(variety) and variety[1] > 0.01
    own = made(generator(truncation=0.3), list(range(6)), told)  # the model's own settings
    assert torch.equal(own, made(it, list(range(6)), told, GanSettings(0.3)))
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="truncation"):
            GanSettings(wrong)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 16, 16\).*learnt \(2, 8, 8\)"):
        finish(generator().start((2, 16, 16), Condition(), Condition(), Rng.seeds([0])))
