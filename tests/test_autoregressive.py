"""Autoregressive generation: cached and uncached logits, the exact likelihood, guidance, and how tokens are drawn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from carrara.autoregressive import AutoregressiveGenerator, AutoregressiveSettings, probabilities
from carrara.errors import NonFiniteError
from carrara.nn import CausalTransformer
from carrara.rng import Rng
from carrara.run import answer, finish
from carrara.types import Ask, Condition, Round, Rounds, Space

SPACE = Space("tokens", (3, 4), 11)


def network(seed: int = 0, **more: object) -> CausalTransformer:
    """A small network far from its start, where every part counts."""
    options: dict[str, object] = {"vocabulary": 11, "size": (3, 4), "width": 16, "depth": 2, "heads": 2, **more}
    torch.manual_seed(seed)
    made = CausalTransformer(**options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def generator(seed: int = 0, space: Space = SPACE, **more: object) -> AutoregressiveGenerator:
    made = network(seed, vocabulary=space.vocabulary, size=space.shape, **more)
    return AutoregressiveGenerator(made, space).eval()


TOLD = {"context": 6, "vector": 5}


def condition(rows: int, seed: int = 0) -> Condition:
    """Tokens, of which the last ones of some rows are padding, and a vector."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(4)[None] <= torch.arange(rows)[:, None] % 4
    return Condition(
        tokens=torch.randn(rows, 4, 6, generator=draw), mask=mask, vector=torch.randn(rows, 5, generator=draw)
    )


def tokens(rows: int, seed: int = 0, space: Space = SPACE) -> Tensor:
    return torch.randint(space.vocabulary or 0, (rows, *space.shape), generator=torch.Generator().manual_seed(seed))


def draw(
    model: AutoregressiveGenerator,
    seeds: list[int],
    told: Condition | None = None,
    null: Condition | None = None,
    settings: AutoregressiveSettings | None = None,
) -> Tensor:
    told = told or Condition()
    rng = Rng.seeds(seeds)
    return finish(model.start(model.space.shape, told, null or Condition(), rng, settings))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {**TOLD, "qk_norm": True}], ids=["untold", "told"])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones(rows: int, options: dict[str, object]) -> None:
    """At every place, whether the cache is given one token at a time or several, in float64."""
    net = network(**options).double()
    told = condition(rows).to("cpu", torch.float64) if options else Condition()
    known = tokens(rows).flatten(1)[:, :-1]
    whole = net(known, told)
    assert whole.shape == (rows, 12, 11)
    for sizes in ([0] + [1] * 11, [3, 1, 4, 3], [11], [0, 11]):
        cache, parts, begin = net.cache(), [], 0
        for size in sizes:
            parts.append(net(known[:, begin : begin + size], told, cache))
            begin += size
            assert cache.length == begin + 1
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)  # logits are float32 in the end


@torch.no_grad()
def test_no_place_sees_what_comes_after_it() -> None:
    net, known = network(), tokens(3).flatten(1)[:, :-1]
    whole = net(known)
    for n in range(11):
        other = known.clone()
        other[:, n:] = (other[:, n:] + 1) % 11
        torch.testing.assert_close(net(other)[:, : n + 1], whole[:, : n + 1], rtol=0, atol=0)
        assert (net(other)[:, n + 1] - whole[:, n + 1]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_and_batch_mates_do_not_matter() -> None:
    net, told, known = network(**TOLD), condition(4), tokens(4).flatten(1)[:, :-1]
    whole = net(known, told)
    for i in range(4):
        one = told.rows([i])
        short = Condition(one.tokens[:, : i + 1], one.mask[:, : i + 1], one.vector)  # type: ignore[index]
        torch.testing.assert_close(net(known[i : i + 1], short), whole[i : i + 1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_likelihood_sums_to_one() -> None:
    """Over all 3^4 pictures of four tokens, under a condition; and each is the product of its conditionals."""
    space = Space("tokens", (2, 2), 3)
    model = generator(space=space, **TOLD).double()
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    told = condition(1, seed=4).to("cpu", torch.float64).rows([0] * len(every))
    log_p = model.log_prob(every, told)
    assert log_p.double().exp().sum().item() == pytest.approx(1, abs=1e-6)
    product = torch.zeros(len(every))
    for n in range(4):
        logits = model.network(every.flatten(1)[:, :n], told)[:, -1]
        product += logits.log_softmax(1).gather(1, every.flatten(1)[:, n : n + 1])[:, 0]
    torch.testing.assert_close(log_p, product, rtol=0, atol=1e-5)


def test_draws_follow_the_likelihood() -> None:
    """The frequencies of 4,000 draws of two tokens are the model's probabilities, as far as chance lets them."""
    space = Space("tokens", (1, 2), 3)
    model = generator(space=space)
    drawn = draw(model, list(range(4000))).flatten(1)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    with torch.no_grad():
        p = model.log_prob(every.view(-1, 1, 2), Condition()).exp()
    share = torch.stack([(drawn == pair).all(1).float().mean() for pair in every])
    assert ((share - p).abs() < 4 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()


def test_a_picture_depends_on_its_seed_alone() -> None:
    model, told, null = generator(**TOLD), condition(4), condition(4, seed=9)
    for settings in (AutoregressiveSettings(), AutoregressiveSettings(guidance=2.0, temperature=0.8, top_p=0.9)):
        together = draw(model, [3, 1, 4, 1], told, null, settings)
        for i, seed in enumerate([3, 1, 4, 1]):
            alone = draw(model, [seed], told.rows([i]), null.rows([i]), settings)
            assert torch.equal(together[i], alone[0])
    same = draw(model, [1, 1, 2], told.rows([0, 0, 0]), null)
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    state = torch.random.get_rng_state()
    draw(model, [0], told.rows([0]), null.rows([0]))
    assert torch.equal(state, torch.random.get_rng_state())


def asked(rounds: Rounds) -> list[Round]:
    """All rounds of a request, which is answered."""
    found = [next(rounds)]
    try:
        while True:
            found.append(rounds.send(answer(found[-1].asks)))
    except StopIteration:
        return found


def test_one_ask_a_token_with_a_state_of_its_own() -> None:
    """Each ask has the new token alone, and a cache that no other request shares; a step is a row of tokens."""
    model, told, null = generator(**TOLD), condition(2), condition(2, seed=9)
    for scale, rows in ((1.0, 2), (1.5, 4)):
        rounds = asked(model.start((3, 4), told, null, Rng.seeds([0, 1]), AutoregressiveSettings(guidance=scale)))
        asks = [ask for round in rounds for ask in round.asks]
        assert [ask.rows[0].shape for ask in asks] == [(rows, 0)] + [(rows, 1)] * 11  # type: ignore[union-attr]
        assert len({id(ask.state) for ask in asks}) == 1 and asks[0].state is not None
        steps = [round.step for round in rounds if round.step is not None]
        assert len(steps) == model.strides() == 3
        assert [step.t for step in steps] == pytest.approx([2 / 3, 1 / 3, 0])
        last = steps[-1]
        for n, step in enumerate(steps, start=1):
            assert torch.equal(step.x[:, :n], last.x[:, :n]) and not step.x[:, n:].any()
            assert torch.equal(step.estimate.mean[:, :n], last.x[:, :n])
            assert (step.estimate.mean[:, n:] == last.x[:, n - 1, -1][:, None, None]).all()


def test_two_requests_at_once_do_not_mix() -> None:
    """A driver that answers two requests' asks together gives each what it gives it alone."""
    model, told = generator(**TOLD), condition(3)
    requests = [
        model.start((3, 4), told.rows([0]), told, Rng.seeds([5])),
        model.start((3, 4), told.rows([1, 2]), told, Rng.seeds([6, 7])),
    ]
    rounds = [next(request) for request in requests]
    results: list[Tensor] = []
    while len(results) < 2:
        answers = answer([round.asks[0] for round in rounds if round.asks] or [])
        for i, request in enumerate(requests):
            try:
                rounds[i] = request.send([answers[i]] if answers else [])
            except StopIteration as finished:
                results.append(finished.value)
    assert torch.equal(results[0], draw(model, [5], told.rows([0])))
    assert torch.equal(results[1], draw(model, [6, 7], told.rows([1, 2])))


@torch.no_grad()
def test_guidance_multiplies_probabilities() -> None:
    """The first token's distribution is p(told)^s p(null)^(1 - s), normalised; scale 1 never looks at the null."""
    space = Space("tokens", (1, 1), 5)
    model = generator(space=space, **TOLD)
    told, null = condition(1), condition(1, seed=9)
    p, q = (model.network(torch.zeros(1, 0, dtype=torch.int64), c)[:, 0].double().softmax(1) for c in (told, null))
    seeds = list(range(3000))
    for scale in (0.0, 1.0, 3.0):
        expected = p**scale * q ** (1 - scale)
        expected = (expected / expected.sum())[0]
        drawn = draw(model, seeds, told.rows([0] * 3000), null.rows([0] * 3000), AutoregressiveSettings(guidance=scale))
        share = torch.bincount(drawn.flatten(), minlength=5) / 3000
        assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 3000).sqrt() + 1e-9).all()
    one = AutoregressiveSettings(guidance=1.0)
    assert torch.equal(draw(model, [0], told, Condition(), one), draw(model, [0], told, null, one))


def test_the_condition_counts() -> None:
    model = generator(**TOLD)
    a, b = condition(1, seed=1), condition(1, seed=2)
    assert any(not torch.equal(draw(model, [s], a), draw(model, [s], b)) for s in range(5))


LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def test_temperature_top_k_and_top_p() -> None:
    """By their definitions; what is cut off has probability 0 and the rest keeps its proportions."""
    p = LOGITS.softmax(1)
    torch.testing.assert_close(probabilities(LOGITS, AutoregressiveSettings()), p, rtol=0, atol=0)
    cool = probabilities(LOGITS, AutoregressiveSettings(temperature=0.5))
    torch.testing.assert_close(cool, p**2 / (p**2).sum(1, keepdim=True))
    cold = probabilities(LOGITS, AutoregressiveSettings(temperature=0.0))
    assert torch.equal(cold, torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.float64))
    two = probabilities(LOGITS, AutoregressiveSettings(top_k=2))
    torch.testing.assert_close(two[0], torch.stack([p[0, 0], p[0, 0] * 0, p[0, 2], p[0, 0] * 0]) / (p[0, 0] + p[0, 2]))
    assert (two[1] > 0).sum() == 2  # of equals just as many
    # the likeliest has 0.64, with the second 0.88, with the third 0.97
    for top_p, kept in ((0.6, 1), (0.65, 2), (0.9, 3), (0.99, 4), (1.0, 4), (1e-9, 1)):
        found = probabilities(LOGITS, AutoregressiveSettings(top_p=top_p))
        assert (found[0] > 0).sum() == kept
        torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))
        assert (p[0][found[0] == 0] <= p[0][found[0] > 0].min()).all()
    both = probabilities(LOGITS, AutoregressiveSettings(top_k=3, top_p=0.7))
    assert (both[0] > 0).sum() == 2 and (both[1] > 0).sum() == 3  # top-p is of what top-k left
    many = probabilities(LOGITS, AutoregressiveSettings(top_k=100))
    torch.testing.assert_close(many, p)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    from carrara.autoregressive import _drawn

    p = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
    for uniform, token in ((0.0, 1), (0.29, 1), (0.31, 3), (1 - 2**-53, 3)):
        assert _drawn(p, torch.tensor([uniform], dtype=torch.float64)).item() == token
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    shares = torch.bincount(_drawn(p.expand(1000, 5), u), minlength=5) / 1000
    torch.testing.assert_close(shares.double(), p[0], rtol=0, atol=2e-3)


def test_no_temperature_makes_the_likeliest_picture_step_by_step() -> None:
    model = generator()
    greedy = draw(model, [0], settings=AutoregressiveSettings(temperature=0.0)).flatten(1)
    assert torch.equal(greedy, draw(model, [1], settings=AutoregressiveSettings(temperature=0.0)).flatten(1))
    with torch.no_grad():
        assert torch.equal(model.network(greedy[:, :-1]).argmax(-1), greedy)
    assert torch.equal(greedy, draw(model, [5], settings=AutoregressiveSettings(top_k=1)).flatten(1))


@pytest.mark.parametrize("temperature", [1e-6, 1e-310])
def test_a_temperature_near_zero_is_zero(temperature: float) -> None:
    model = generator()
    greedy = draw(model, [0, 1], settings=AutoregressiveSettings(temperature=0.0))
    assert torch.equal(greedy, draw(model, [0, 1], settings=AutoregressiveSettings(temperature=temperature)))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_logits_that_are_not_finite_are_said(settings: dict[str, float]) -> None:
    model = generator()
    with torch.no_grad():
        next(iter(model.network.parameters())).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="logits of the tokens are not finite"):
        draw(model, [0], settings=AutoregressiveSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given, says",
    [
        ({"guidance": math.inf}, "guidance = inf"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AutoregressiveSettings(**given)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"latent \(4, 8, 8\)"):
        AutoregressiveGenerator(network(), Space("latent", (4, 8, 8)))
    model = generator()
    with pytest.raises(ValueError, match=r"knows the places of \(3, 4\) alone"):
        finish(model.start((4, 4), Condition(), Condition(), Rng.seeds([0])))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 4\)"):
        model.log_prob(torch.zeros(2, 4, 4, dtype=torch.int64), Condition())
    net = network()
    with pytest.raises(ValueError, match="n at most 11"):
        net(torch.zeros(1, 12, dtype=torch.int64))
    cache = net.cache()
    net(torch.zeros(1, 10, dtype=torch.int64), Condition(), cache)
    with pytest.raises(ValueError, match="n at most 1,"):
        net(torch.zeros(1, 2, dtype=torch.int64), Condition(), cache)
    with pytest.raises(ValueError, match="built without `vector`"):
        net(torch.zeros(1, 0, dtype=torch.int64), Condition(vector=torch.zeros(1, 3)))
    with pytest.raises(ValueError, match=r"condition.tokens is missing"):
        network(**TOLD)(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="drop image"):
        net(torch.zeros(1, 0, dtype=torch.int64), Condition(image=torch.zeros(1, 1, 2, 2)))
    wrong: dict[str, object]
    for wrong in ({"depth": 0}, {"heads": 0}, {"width": 0}, {"vocabulary": 0}, {"ratio": 0.0}, {"ratio": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            network(**wrong)
    with pytest.raises(ValueError, match="heads that divide it"):
        network(heads=3)
    assert Ask(net, (torch.zeros(1, 0, dtype=torch.int64),)).state is None
