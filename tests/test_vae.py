"""The VAE against what is known exactly: evidence of a linear model, closed forms, neutral points, sums to one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, kl_divergence
from torch.distributions import Normal as TorchNormal

from carrara.config import Role, build, describe
from carrara.nn import LadderNetwork
from carrara.rng import Rng
from carrara.run import answer, finish
from carrara.store import kinds
from carrara.types import Condition, Space
from carrara.vae import (
    DiscretisedLogistic,
    DiscretisedNormal,
    Likelihood,
    Normal,
    VaeGenerator,
    VaeObjective,
    VaeSettings,
    collapse,
    vae_bound,
)

DISCRETE = (DiscretisedLogistic(), DiscretisedNormal(), DiscretisedLogistic(2), DiscretisedNormal(5))
TOLD = Condition(tokens=torch.randn(2, 3, 6), mask=torch.tensor([[True] * 3, [True, True, False]]),
                 vector=torch.randn(2, 5))  # fmt: skip


def raw(scale: Tensor) -> Tensor:
    """What a likelihood reads as this scale."""
    return 12 * torch.atanh(scale.log() / 12)


class Linear(nn.Module):
    """x = W u + b + s noise with orthogonal columns of W, so that the true posterior of u is diagonal, in float64.

    `off` moves the posterior's mean and `wide` multiplies its standard deviation.
    """

    latents = ((3, 1, 1),)
    context = None

    def __init__(self, off: float = 0.0, wide: float = 1.0) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))  # knows the device
        generator = torch.Generator().manual_seed(0)
        columns, _ = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64))
        self.w = columns * torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
        self.b = torch.randn(8, generator=generator, dtype=torch.float64)
        self.s, self.off, self.wide = 0.3, off, wide
        precision = 1 + self.w.square().sum(0) / self.s**2
        self.posterior_std = precision.rsqrt()
        self.gain = self.w / self.s**2 / precision  # (8, 3)

    def evidence(self) -> MultivariateNormal:
        return MultivariateNormal(self.b, self.w @ self.w.T + self.s**2 * torch.eye(8, dtype=torch.float64))

    def generate(self, condition: Condition, u: Tensor) -> Tensor:
        mean = u.double().flatten(1) @ self.w.T + self.b
        return torch.cat((mean, raw(torch.full_like(mean, self.s)))).view(2, -1, 8, 1, 1).transpose(0, 1).flatten(1, 2)

    def forward(self, x: Tensor, noise: tuple[Tensor, ...], condition: Condition) -> Any:
        mean = (x.flatten(1) - self.b) @ self.gain + self.off * self.posterior_std
        logstd = (self.posterior_std * self.wide).log().expand_as(mean)
        u = mean + logstd.exp() * noise[0].double().flatten(1)
        levels = tuple(t[..., None, None] for t in (mean, logstd, u))
        return self.generate(condition, u), (levels,)

    def generator(self) -> VaeGenerator:
        return VaeGenerator(self, Normal(least=1e-9), Space("latent", (8, 1, 1)))


def pictures_of(model: Linear, count: int) -> Tensor:
    torch.manual_seed(1)
    return model.evidence().sample((count,)).view(count, 8, 1, 1)


def test_at_the_true_posterior_the_bound_is_the_evidence() -> None:
    model = Linear()
    x = pictures_of(model, 500)
    exact = -model.evidence().log_prob(x.flatten(1))
    one = vae_bound(model.generator(), x, Condition(), Rng.seeds(range(500)))
    torch.testing.assert_close(one.importance, exact, rtol=0, atol=1e-9)  # each weight is the evidence
    gap = one.elbo - exact
    assert gap.mean().abs() < 4 * gap.std() / math.sqrt(500)  # the closed KL: in expectation
    many = vae_bound(model.generator(), x, Condition(), Rng.seeds(range(500)), terms=7)
    torch.testing.assert_close(many.total, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(many.bits_per_dim, exact / (8 * math.log(2)), rtol=0, atol=1e-9)


def test_another_posterior_costs_its_divergence_and_more_draws_win_it_back() -> None:
    model, true = Linear(off=0.7, wide=1.4), Linear()
    x = pictures_of(model, 800)
    exact = -model.evidence().log_prob(x.flatten(1))
    _, ((mean, logstd, _),) = model(x, (torch.zeros(800, 3, 1, 1),), Condition())
    _, ((true_mean, true_logstd, _),) = true(x, (torch.zeros(800, 3, 1, 1),), Condition())
    q, p = (Independent(TorchNormal(m, s.exp()), 3) for m, s in ((mean, logstd), (true_mean, true_logstd)))
    rng = Rng.seeds(range(800))
    bounds = {k: vae_bound(model.generator(), x, Condition(), rng, terms=k) for k in (1, 4, 16, 64)}
    gap = bounds[1].elbo - exact
    assert gap.mean().item() == pytest.approx(kl_divergence(q, p).mean().item(), abs=4 * gap.std().item() / 28)
    means = [(bound.importance - exact).mean().item() for bound in bounds.values()]
    assert means[0] == pytest.approx(gap.mean().item(), abs=0.2)
    assert means == sorted(means, reverse=True)
    assert -0.01 < means[-1] < 0.04 < means[0] / 10


def test_no_draw_is_no_bound() -> None:
    with pytest.raises(ValueError, match="terms = 0"):
        vae_bound(Linear().generator(), torch.zeros(1, 8, 1, 1), Condition(), Rng.seeds([0]), terms=0)


# The ladder


def ladder(**changes: Any) -> LadderNetwork:
    """A small network none of whose parameters is zero."""
    torch.manual_seed(0)
    told = {"vector": 5, "context": 6, "attention": (1,), "heads": 2}
    settings = {"in_channels": 1, "out_channels": 2, "size": 8, "widths": (8, 12), "blocks": (1, 0), "levels": (1, 2),
                "latent": 2, **told, **changes}  # fmt: skip
    network = LadderNetwork(**settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def generator(likelihood: Likelihood = DiscretisedLogistic(), **changes: Any) -> VaeGenerator:  # noqa: B008 - frozen
    network = ladder(**changes)
    size = network.size
    return VaeGenerator(network, likelihood, Space("pixels", (network.in_channels, *size)))


def picture(*shape: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randint(0, 256, shape) / 127.5 - 1


def test_levels_come_coarsest_first_and_one_is_the_plain_vae() -> None:
    assert ladder().latents == ((2, 4, 4), (2, 4, 4), (2, 8, 8))
    plain = ladder(levels=(0, 1))
    assert plain.latents == ((2, 4, 4),)
    _, levels = plain(picture(2, 1, 8, 8), (torch.zeros(2, 2, 4, 4),), TOLD)
    assert len(levels) == 1
    odd = ladder(size=(12, 20), patch=2, widths=(4, 4, 4), blocks=(0, 1, 0), levels=(0, 1, 1))
    assert odd.latents == ((2, 2, 3), (2, 3, 5))
    assert odd.generate(TOLD, *(torch.randn(2, *shape) for shape in odd.latents)).shape == (2, 2, 12, 20)


def test_the_way_down_is_one() -> None:
    """What the posterior drew, given to the prior's way down, makes the same parameters."""
    network, x = ladder(), picture(2, 1, 8, 8)
    noise = tuple(torch.randn(2, *shape) for shape in network.latents)
    output, levels = network(x, noise, TOLD)
    torch.testing.assert_close(network.generate(TOLD, *(level.u for level in levels)), output, rtol=1e-4, atol=1e-5)
    for (mean, logstd, u), eps in zip(levels, noise, strict=True):
        torch.testing.assert_close(u, mean + logstd.exp() * eps)


def test_the_kl_of_u_is_that_of_z() -> None:
    """Whatever prior N(m, s^2) a level has: z = m + s u is the residual posterior N(m + s d, (s e)^2)."""
    torch.manual_seed(0)
    d, r, m, s = (torch.randn(4, 2, 3, 3, dtype=torch.float64) for _ in range(4))

    class Given(nn.Module):
        latents = ((2, 3, 3),)
        context = None

        def __init__(self) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, noise: tuple[Tensor, ...], condition: Condition) -> Any:
            return torch.zeros(4, 2, 3, 3), ((d, r, d + r.exp() * noise[0]),)

    made = VaeGenerator(Given(), Normal(), Space("latent", (1, 3, 3)))
    found = made.posterior(torch.zeros(4, 1, 3, 3), Condition(), Rng.seeds(range(4)))
    of_z = kl_divergence(TorchNormal(m + s.exp() * d, (s + r).exp()), TorchNormal(m, s.exp()))
    torch.testing.assert_close(found.kl[:, 0], of_z.flatten(1).sum(1))
    assert found.means[0] is d


def test_weights_average_to_the_closed_kl() -> None:
    """Over draws, log w of a hierarchy is minus the reconstruction and each level's conditional KL."""
    made, x = generator(), picture(1, 1, 8, 8).expand(4000, -1, -1, -1)
    told = TOLD.rows([0] * 4000)
    found = made.posterior(x, told, Rng.seeds(range(4000)))
    difference = found.log_weight + found.reconstruction + found.kl.sum(1)
    assert found.kl.sum(1).mean() > 5
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(4000)


def test_the_condition_is_used_and_padding_is_not() -> None:
    made, x, rng = generator(), picture(2, 1, 8, 8), Rng.seeds([0, 1])
    assert TOLD.vector is not None
    assert TOLD.tokens is not None
    other_vector = replace(TOLD, vector=TOLD.vector + 1)
    other_tokens = replace(TOLD, tokens=TOLD.tokens + torch.tensor([1.0, 0.0, 0.0])[:, None] * torch.randn(6))
    padding = TOLD.tokens.clone()
    padding[1, 2] = 100.0

    def all_of(condition: Condition) -> tuple[Tensor, ...]:
        noise = tuple(torch.ones(2, *shape) for shape in made.network.latents)
        output, levels = made.network(x, noise, condition)
        priors = made.network.generate(condition, *noise)
        return (output, priors, *(level.mean for level in levels), made.posterior(x, condition, rng).reconstruction)

    told = all_of(TOLD)
    for other in (other_vector, other_tokens):
        for a, b in zip(told, all_of(other), strict=True):
            assert not torch.allclose(a, b, atol=1e-4)
    for a, b in zip(told, all_of(replace(TOLD, tokens=padding)), strict=True):
        assert torch.equal(a, b)
    blind = generator(context=None, attention=())  # is not given tokens
    shape = blind.space.shape
    made_so = [finish(blind.start(shape, c, c, Rng.seeds([0, 1]))) for c in (TOLD, other_tokens, other_vector)]
    assert torch.equal(made_so[0], made_so[1])
    assert not torch.allclose(made_so[0], made_so[2], atol=1e-4)


def test_half_precision_stays_near() -> None:
    made, x = generator(), picture(2, 1, 8, 8)
    exact = made.posterior(x, TOLD, Rng.seeds([0, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        near = made.posterior(x, TOLD, Rng.seeds([0, 1]))
    assert near.kl.dtype == near.reconstruction.dtype == torch.float32
    torch.testing.assert_close(near.kl.sum(1), exact.kl.sum(1), rtol=0.1, atol=1.0)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"levels": (0, 0)}, "leaves no z at all"),
        ({"latent": 0}, "latent=0; give a number from 1 up"),
        ({"widths": ()}, r"widths=\(\); give numbers"),
        ({"levels": (1,)}, "one number from 0 up for each width"),
        ({"blocks": (1, -1)}, "blocks="),
        ({"patch": 3}, "does not divide into patches of 3"),
        ({"attention": (2,)}, "names resolutions"),
        ({"attention": ()}, "no resolution attends to it"),
    ],
)
def test_networks_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ladder(**changes)


def test_what_a_network_refuses() -> None:
    network, x = ladder(), picture(2, 1, 8, 8)
    noise = tuple(torch.zeros(2, *shape) for shape in network.latents)
    with pytest.raises(ValueError, match="was built for 8 x 8"):
        network(picture(2, 1, 8, 16), noise, TOLD)
    with pytest.raises(ValueError, match="noise has shapes"):
        network(x, noise[1:], TOLD)
    with pytest.raises(ValueError, match=r"condition\.vector"):
        network(x, noise, replace(TOLD, vector=None))
    with pytest.raises(ValueError, match=r"condition\.image is not read"):
        network(x, noise, replace(TOLD, image=x))


# p(x | z)


@pytest.mark.parametrize("likelihood", DISCRETE, ids=str)
def test_all_grey_levels_together_are_certain(likelihood: Any) -> None:
    levels = likelihood.levels
    location = torch.tensor([-3.0, -1.0, -0.5001, 0.0, 1 / 255, 0.73, 1.0, 40.0], dtype=torch.float64)
    scale = torch.tensor([1e-4, 1 / 255, 0.03, 0.7, 5.0, 300.0], dtype=torch.float64)
    m, s = (t.flatten() for t in torch.meshgrid(location, scale, indexing="ij"))
    output = torch.stack((m, raw(s)), 0)[None, :, :, None].expand(levels, -1, -1, -1)
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None, None, None].expand(-1, 1, len(m), 1)
    log_prob = likelihood.log_prob(output, x)
    assert bool((log_prob <= 0).all())
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones_like(log_prob[0]), rtol=0, atol=1e-12)
    far = likelihood.log_prob(output[:1].float(), x[:1].float())
    assert bool(torch.isfinite(far).all())
    assert bool(torch.isfinite(likelihood.log_prob(output[:1].float(), -x[:1].float())).all())


def test_the_logistic_is_the_difference_of_its_distribution_function() -> None:
    m, s, x = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 1) for v in (0.1, 0.05, 51 * 2 / 255 - 1))
    whole = DiscretisedLogistic()
    scale = whole.read(torch.cat((m, raw(s)), 1))[1]
    expected = torch.sigmoid((x + 1 / 255 - m) / scale) - torch.sigmoid((x - 1 / 255 - m) / scale)
    torch.testing.assert_close(whole.log_prob(torch.cat((m, raw(s)), 1), x), expected.log())


@pytest.mark.parametrize("likelihood", [DiscretisedLogistic(4), DiscretisedNormal(4)], ids=str)
def test_draws_are_grey_levels_as_likely_as_said(likelihood: Any) -> None:
    output = torch.cat((torch.full((1, 1, 1, 20000), 0.3), raw(torch.full((1, 1, 1, 20000), 0.4))), 1)
    drawn = likelihood.draw(output, Rng.seeds([0])).flatten()
    for level in torch.linspace(-1, 1, 4):
        at = torch.full((1, 1, 1, 20000), float(level))
        expected = likelihood.log_prob(output, at)[0, 0, 0, 0].exp().item()
        assert (drawn - level).abs().lt(1e-6).float().mean().item() == pytest.approx(expected, abs=0.015)
    assert torch.equal(likelihood.mean(output), output[:, :1])


def test_the_normal_density() -> None:
    output, x = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    normal = Normal(least=0.2)
    location, scale = normal.read(output)
    assert scale.min() > 0.2
    torch.testing.assert_close(normal.log_prob(output, x), TorchNormal(location, scale).log_prob(x))
    assert torch.equal(normal.mean(output), location)
    drawn = (normal.draw(output, Rng.seeds([0, 1])) - location) / scale
    assert drawn.std().item() == pytest.approx(1, abs=0.3)
    with pytest.raises(ValueError, match="least = 0"):
        Normal(least=0.0)
    with pytest.raises(ValueError, match="at least two"):
        DiscretisedNormal(1)
    with pytest.raises(ValueError, match="5 channels"):
        normal.read(torch.zeros(1, 5, 1, 1))


# The generator


def test_a_picture_is_its_seeds_alone() -> None:
    made = generator()
    assert TOLD.vector is not None
    shape = made.space.shape
    both = finish(made.start(shape, TOLD, TOLD, Rng.seeds([4, 7])))
    (second,) = (finish(made.start(shape, TOLD.rows([1]), TOLD.rows([1]), Rng.seeds([7]))),)
    torch.testing.assert_close(second, both[1:], rtol=1e-4, atol=1e-5)
    again = finish(made.start(shape, TOLD, TOLD.map(torch.zeros_like), Rng.seeds([4, 7])))
    assert torch.equal(again, both)  # the null condition plays no part
    with pytest.raises(ValueError, match=r"makes .* and was asked for"):
        finish(made.start((1, 16, 16), TOLD, TOLD, Rng.seeds([4, 7])))


def test_requests_of_all_settings_share_a_call() -> None:
    made = generator()
    shape = made.space.shape
    asked = [made.start(shape, TOLD, TOLD, Rng.seeds([0, 1]), VaeSettings(t)) for t in (0.0, 1.0)]
    asks = [ask for rounds in asked for ask in next(rounds).asks]
    calls = []
    hook = made.network.outward.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    answers = answer(asks)
    hook.remove()
    assert calls == [4]
    results = []
    for rounds, found in zip(asked, answers, strict=True):
        with pytest.raises(StopIteration) as ended:
            rounds.send([found])
        results.append(ended.value.value)
    alone = [finish(made.start(shape, TOLD, TOLD, Rng.seeds([0, 1]), VaeSettings(t))) for t in (0.0, 1.0)]
    for one, other in zip(results, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_temperature_and_noise() -> None:
    made = generator()
    same = TOLD.rows([0, 0, 0])
    shape, seeds = made.space.shape, Rng.seeds([0, 1, 2])

    def at(temperature: float, draw: bool = False) -> Tensor:
        return finish(made.start(shape, same, same, seeds, VaeSettings(temperature, draw)))  # type: ignore[no-any-return]

    def spread(x: Tensor) -> float:
        return x.std(0).mean().item()

    mode = at(0.0)
    torch.testing.assert_close(mode[:1], mode[1:2])
    assert 0 < spread(at(0.3)) < spread(at(1.0))
    assert torch.equal(at(1.0), finish(made.start(shape, same, same, seeds)))
    noisy = at(0.0, draw=True)
    assert spread(noisy) > 0
    position = (noisy + 1) * 127.5
    torch.testing.assert_close(position, position.round(), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="temperature = -1"):
        VaeSettings(-1.0)


def test_latents_have_no_grey_levels() -> None:
    with pytest.raises(ValueError, match=r"latent have none; give Normal\(\)"):
        VaeGenerator(ladder(), DiscretisedLogistic(), Space("latent", (1, 8, 8)))


def test_it_is_its_table() -> None:
    made = VaeGenerator(
        ladder(), DiscretisedNormal(4), Space("pixels", (1, 8, 8)), settings=VaeSettings(temperature=0.5)
    )
    table = describe(made, kinds())
    assert table["kind"] == "vae"
    assert table["likelihood"] == {"kind": "discretised-normal", "levels": 4}
    again = build(Annotated[nn.Module, Role("generator")], table, kinds())
    assert describe(again, kinds()) == table
    again.load_state_dict(made.state_dict())


# The objective


def test_its_neutral_values_are_the_elbo() -> None:
    made, x, rng = generator(), picture(2, 1, 8, 8), Rng.samples(0, [300, 5000], "train")
    draw = made.posterior(x, TOLD, rng)
    elbo = (draw.reconstruction + draw.kl.sum(1)) / (64 * math.log(2))
    for neutral in (VaeObjective(), VaeObjective(warmup=300), VaeObjective(beta=1.0, warmup=0, free_bits=0.0)):
        rows, parts = neutral(made, x, TOLD, rng)
        assert torch.equal(rows, elbo)
        assert (parts["reconstruction"] + parts["kl"]).item() == pytest.approx(elbo.mean().item())
    found = vae_bound(made, x, TOLD, Rng.seeds([0, 1]))
    assert torch.equal(found.total, found.elbo)


def test_beta_and_its_warmup() -> None:
    made, x = generator(), picture(2, 1, 8, 8)
    objective = VaeObjective(beta=0.5, warmup=1000)
    assert objective.weight([0, 250, 1000, 9999]).tolist() == [0, 0.125, 0.5, 0.5]
    rng = Rng.samples(0, [500, 2000], "train")
    draw = made.posterior(x, TOLD, rng)
    expected = (draw.reconstruction + torch.tensor([0.25, 0.5]) * draw.kl.sum(1)) / (64 * math.log(2))
    rows, _ = objective(made, x, TOLD, rng)
    torch.testing.assert_close(rows, expected)
    alone, _ = objective(made, x[1:], TOLD.rows([1]), Rng.samples(0, [2000], "train"))
    torch.testing.assert_close(alone, rows[1:])
    for wrong in ({"beta": -1.0}, {"warmup": -1}, {"free_bits": math.inf}):
        with pytest.raises(ValueError, match="give 0 or more"):
            VaeObjective(**wrong)  # type: ignore[arg-type]


def test_free_bits_cost_the_same_used_or_not() -> None:
    made, x, rng = generator(), picture(2, 1, 8, 8), Rng.seeds([0, 1])
    made.requires_grad_(True)
    draw = made.posterior(x, TOLD, rng)
    least, *_, most = sorted((draw.kl / math.log(2)).flatten().tolist())
    free = (least + most) / 2
    rows, parts = VaeObjective(free_bits=free)(made, x, TOLD, rng)
    expected = draw.reconstruction + draw.kl.clamp(min=free * math.log(2)).sum(1)
    torch.testing.assert_close(rows, expected / (64 * math.log(2)))
    assert parts["kl"].item() == pytest.approx(draw.kl.sum(1).mean().item() / (64 * math.log(2)))
    (VaeObjective(beta=1e9, free_bits=1e6)(made, x, TOLD, rng)[0]).sum().backward()
    with_all_free = [p.grad for p in made.parameters()]
    made.zero_grad(set_to_none=True)
    (VaeObjective(beta=0.0)(made, x, TOLD, rng)[0]).sum().backward()
    for a, b in zip(with_all_free, [p.grad for p in made.parameters()], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_a_collapse_is_said() -> None:
    assert collapse([3.0, 0.2]) is None
    said = collapse([3.0, 0.01, 0.05])
    assert said is not None
    assert "of 3 levels of z, coarsest first, the posterior has collapsed in 2 (0.01 bits a picture) and 3" in said
    said = collapse([0.0, 0.01])
    assert said is not None
    assert "z holds 0.01 bits of a picture" in said
