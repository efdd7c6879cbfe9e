"""Measuring likelihoods of a data set: what is measured, what is kept, and what a stop or another batch changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from carrara.data import DataSettings, Pictures, open_pictures
from carrara.decoder import Latents, Pixels
from carrara.diffusion import (
    ClassifierFree,
    Clip,
    Denoiser,
    DiffusionGenerator,
    Epsilon,
    Flow,
    IntegerStep,
    Learned,
    Linear,
    LinearBetas,
    Posterior,
    Process,
    Rescale,
    SamplingSettings,
    ScaledTime,
    Transition,
    ancestral,
    continuous_bound,
    uniform,
    vlb_terms,
)
from carrara.errors import NonFiniteError, RecipeError, StorageError
from carrara.evaluate.likelihood import Figure, Ledger, Subject
from carrara.evaluate.likelihood_diffusion import BoundMeasure, OdeMeasure, default_variance, own_clip, profile
from carrara.evaluate.likelihood_page import bound_facts, measure_facts, ode_facts, page
from carrara.evaluate.likelihood_vae import VaeMeasure
from carrara.nn import KLAutoencoder, LadderNetwork, UNet
from carrara.rng import Rng
from carrara.system import System
from carrara.text import Labels, Unconditional
from carrara.types import Condition, Estimate, Space
from carrara.vae import DiscretisedLogistic, DiscretisedNormal, Likelihood, Normal, VaeGenerator, vae_bound

TABLE = LinearBetas(20, 0.001, 0.3)
NOTHING = Condition()


def system(*, learned: bool = False, flow: bool = False, labels: tuple[str, ...] = (), settings: Any = None) -> System:
    """A tiny model of pixels with random weights."""
    torch.manual_seed(0)
    text = Labels(labels) if labels else Unconditional()
    vector = len(labels) + 1 if labels else None
    network = UNet(in_channels=1, out_channels=2 if learned else 1, channels=16, multipliers=(1,), blocks=1,
                   attention=(), vector=vector)  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    process = Process(Linear() if flow else TABLE)
    parts = (Flow(), ScaledTime()) if flow else (Epsilon(), IntegerStep(20))
    denoiser = Denoiser(network, process, *parts, learned_variance=learned)
    generator = DiffusionGenerator(
        denoiser, Space("pixels", (1, 8, 8)), reads=text.space, settings=settings or SamplingSettings()
    )
    return System(text, generator.eval().requires_grad_(False), Pixels(channels=1, size=8))


def vae(likelihood: Likelihood = DiscretisedLogistic(), *, labels: tuple[str, ...] = (), std: float = 0.1) -> System:  # noqa: B008 - frozen
    """A tiny VAE of pixels with random weights."""
    torch.manual_seed(0)
    text = Labels(labels) if labels else Unconditional()
    vector = len(labels) + 1 if labels else None
    network = LadderNetwork(in_channels=1, out_channels=2, size=8, widths=(8, 8), blocks=(0, 0), levels=(1, 1),
                            latent=2, vector=vector)  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std)
    generator = VaeGenerator(network, likelihood, Space("pixels", (1, 8, 8)), reads=text.space)
    return System(text, generator.eval().requires_grad_(False), Pixels(channels=1, size=8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    place = tmp_path_factory.mktemp("data")
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        folder = place / "pics" / ("cats", "dogs", "fish")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return open_pictures(DataSettings(str(place / "pics"), size=8), place / "cache")


def ledger(place: Path, subject: Subject, measure: Any, seed: int = 0) -> Ledger:
    return Ledger(place / "rows.jsonl", {**subject.identity, **measure.settings, "seed": seed})


def measured(place: Path, subject: Subject, measure: Any, rows: Any, *, seed: int = 0, batch: int = 8) -> list[Any]:
    kept = ledger(place, subject, measure, seed)
    return list(subject.measure(measure, rows, kept, seed=seed, batch=batch, tick=lambda _: None))


def test_all_strides_are_vlb_terms(pictures: Pictures, tmp_path: Path) -> None:
    subject = Subject(system(), pictures)
    measure = BoundMeasure.usual(subject.generator, terms=32)
    assert measure.all_of_them
    assert measure.calls == 20
    rows = measured(tmp_path, subject, measure, [3, 5])
    rng = Rng([(0, "likelihood", subject.key(i)) for i in (3, 5)])
    found = vlb_terms(subject.generator.denoiser, pictures.tensor([3, 5]), measure.times, rng=rng)
    for i, row in enumerate(rows):
        assert row["bits_per_dim"] == pytest.approx(found.bits_per_dim[i].item())
        assert row["steps"] == pytest.approx(found.steps[i].tolist())
        assert row["picture"] == pictures.names[(3, 5)[i]]


class Clamped:
    """A denoiser whose estimates stay within [-limit, limit]."""

    def __init__(self, denoiser: Denoiser, limit: float) -> None:
        self.denoiser, self.process, self.limit = denoiser, denoiser.process, limit

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: Condition = NOTHING, /) -> Estimate:
        mean, mix = self.denoiser(x_t, t, condition)
        return Estimate(mean.clamp(-self.limit, self.limit), mix)


@pytest.mark.parametrize("flow", [False, True])
def test_a_model_that_clips_is_measured_clipped(flow: bool, pictures: Pictures, tmp_path: Path) -> None:
    assert own_clip(system(flow=flow).generator) is None
    clipping = SamplingSettings(guidance=Rescale(Clip(ClassifierFree(3.0), 0.5)))
    subject = Subject(system(flow=flow, settings=clipping), pictures)
    assert own_clip(subject.generator) == 0.5
    measure = BoundMeasure.usual(subject.generator, terms=32)
    assert measure.clip == 0.5
    rows = measured(tmp_path / "clipped", subject, measure, [3, 5])
    rng = Rng([(0, "likelihood", subject.key(i)) for i in (3, 5)])
    x, denoiser = pictures.tensor([3, 5]), Clamped(subject.generator.denoiser, 0.5)
    found = continuous_bound(denoiser, x, rng=rng) if flow else vlb_terms(denoiser, x, measure.times or (), rng=rng)
    assert [row["bits_per_dim"] for row in rows] == pytest.approx(found.bits_per_dim.tolist())
    bare = measured(tmp_path / "bare", subject, replace(measure, clip=None), [3, 5])
    assert [row["bits_per_dim"] for row in rows] != pytest.approx([row["bits_per_dim"] for row in bare])
    with pytest.raises(RecipeError, match="another clip"):
        measured(tmp_path / "clipped", subject, replace(measure, clip=None), [3, 5])


def test_going_on_and_another_batch_change_nothing(pictures: Pictures, tmp_path: Path) -> None:
    subject = Subject(system(), pictures)
    measure = BoundMeasure.usual(subject.generator, terms=4)
    chosen = subject.chosen(range(20), 12, 0)
    assert chosen[:5] == subject.chosen(range(20), 5, 0)
    at_once = measured(tmp_path / "a", subject, measure, chosen, batch=12)
    measured(tmp_path / "b", subject, measure, chosen[:5], batch=3)
    path = tmp_path / "b" / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # the machine stopped within the fifth row
    calls = []
    kept = ledger(tmp_path / "b", subject, measure)
    assert len(kept.rows) == 4
    again = list(subject.measure(measure, chosen, kept, seed=0, batch=5, tick=calls.append))
    assert calls[0] == 4
    assert calls[-1] == 12
    assert calls == sorted(calls)
    for row, other in zip(again, at_once, strict=True):
        assert row["picture"] == other["picture"]
        assert row["bits_per_dim"] == pytest.approx(other["bits_per_dim"], rel=1e-4)
    assert len(ledger(tmp_path / "b", subject, measure).rows) == 12
    other_seed = measured(tmp_path / "c", subject, measure, chosen, seed=1)
    assert other_seed[0]["bits_per_dim"] != at_once[0]["bits_per_dim"]


def test_a_ledger_of_something_else_is_refused(pictures: Pictures, tmp_path: Path) -> None:
    subject = Subject(system(), pictures)
    measure = BoundMeasure.usual(subject.generator, terms=4)
    measured(tmp_path, subject, measure, [0, 1])
    with pytest.raises(RecipeError, match=r"rows of another seed \(0 instead of 1\)"):
        ledger(tmp_path, subject, measure, seed=1)
    with pytest.raises(RecipeError, match="another terms"):
        ledger(tmp_path, subject, BoundMeasure.usual(subject.generator, terms=6))
    with pytest.raises(RecipeError, match="another model"):
        ledger(tmp_path, Subject(system(learned=True), pictures), measure)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"key"', b'{"kex"', 1))
    with pytest.raises(StorageError, match=r"line 2 of .* is damaged"):
        ledger(tmp_path, subject, measure)


@pytest.mark.parametrize("kind", ["discrete", "sampled", "continuous", "learned"])
def test_facts_add_up(kind: str, pictures: Pictures, tmp_path: Path) -> None:
    subject = Subject(system(flow=kind == "continuous", learned=kind == "learned"), pictures)
    measure = BoundMeasure.usual(subject.generator, terms=4 if kind in ("sampled", "continuous") else 32)
    rows = measured(tmp_path, subject, measure, range(20))
    facts = bound_facts(measure, rows, subject)
    assert facts["bits_per_dim"] == pytest.approx(sum(facts["parts"].values()), rel=1e-6)
    assert sum(facts["profile"]["steps"]) == pytest.approx(facts["parts"]["steps"], rel=1e-6)
    found = profile(measure, rows, subject)
    assert found.rate[0] == pytest.approx(facts["parts"]["prior"])
    assert found.times == sorted(found.times, reverse=True)
    assert len(found.times) == len(found.distortion) == len(rows[0]["steps"])
    assert all(0 < d < math.inf for d in found.distortion)
    words = {"discrete": "fixed, small", "sampled": "fixed, small", "learned": "learned", "continuous": None}[kind]
    assert facts["variance"] is None if words is None else words in facts["variance"]
    values = [row["bits_per_dim"] for row in rows]
    assert facts["std_error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(20))
    told = {"model": "m", "data": "d", "pictures": 20, "warnings": ["<b>"], "condition": "nothing", "levels": 256,
            "seed": 0, "bound": facts}  # fmt: skip
    html = page(told, subject, {"bound": rows}).html()
    assert "Rate and distortion" in html
    assert "&lt;b&gt;" in html


def test_the_flow(pictures: Pictures, tmp_path: Path) -> None:
    subject = Subject(system(flow=True), pictures, precision="bfloat16")  # which is for bounds alone
    measure = OdeMeasure(tolerance=1e-3)
    rows = measured(tmp_path, subject, measure, [0, 1], batch=2)
    alone = measured(tmp_path / "alone", subject, measure, [1], batch=2)
    assert alone[0]["bits_per_dim"] == pytest.approx(rows[1]["bits_per_dim"], rel=1e-4)
    facts = ode_facts(measure, rows, subject)
    assert facts["evaluations"] > 20
    assert facts["bits_per_dim"] > 5  # random weights know nothing of pictures
    told = {"model": "m", "data": "d", "pictures": 2, "warnings": [], "condition": "nothing", "levels": 256, "seed": 0}
    assert "By the flow" in page({**told, "ode": facts}, subject, {"ode": rows}).html()


def test_what_the_model_is_told(pictures: Pictures, tmp_path: Path) -> None:
    """Classes it knows; nothing where it knows none, or is not to be told."""
    model = system(labels=("cats", "dogs"))
    subject = Subject(model, pictures)
    assert subject.condition == "class"
    assert {*subject.said} == {"cats", "dogs", ""}  # type: ignore[misc]
    quiet = Subject(model, pictures, told=False)
    assert quiet.condition == "nothing"
    assert subject.key(0) != quiet.key(0)
    measure = BoundMeasure.usual(subject.generator, terms=4)
    cat = next(i for i in range(20) if pictures.labels[i] == "cats")
    fish = next(i for i in range(20) if pictures.labels[i] == "fish")
    seen: list[Condition] = []
    network: Any = subject.generator.denoiser.network
    hook = network.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    measured(tmp_path, subject, measure, [cat, fish])
    hook.remove()
    assert seen[0].vector is not None
    assert seen[0].vector.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_which_variance() -> None:
    def variance(**changes: Any) -> Any:
        return default_variance(system(**changes).generator)  # type: ignore[arg-type]

    assert variance() == Posterior()
    assert variance(learned=True) == Learned()
    import functools

    sampler = functools.partial(ancestral, variance=Transition())
    assert variance(settings=SamplingSettings(sampler=sampler)) == Transition()
    grid = functools.partial(uniform, steps=10)
    assert variance(settings=SamplingSettings(times=grid)) == Posterior()


def test_what_has_no_likelihood(pictures: Pictures, tmp_path: Path) -> None:
    model = system()
    autoencoder = KLAutoencoder(channels=1, latent=1, widths=(8, 8, 8))
    latents = Latents(autoencoder, size=64)
    generator = DiffusionGenerator(model.generator.denoiser, latents.space)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="likelihood of discrete pixels, which latents have not"):
        Subject(System(Unconditional(), generator, latents), pictures)
    small = open_pictures(DataSettings(pictures.settings.folder, size=4), tmp_path)
    with pytest.raises(RecipeError, match="prepare them alike"):
        Subject(model, small)


def test_weights_that_are_not_finite(pictures: Pictures, tmp_path: Path) -> None:
    model = system()
    next(iter(model.generator.denoiser.parameters())).fill_(math.nan)  # type: ignore[attr-defined]
    subject = Subject(model, pictures)
    with pytest.raises(NonFiniteError, match=r"likelihood of .*png is not finite"):
        measured(tmp_path, subject, BoundMeasure.usual(subject.generator, terms=4), [0])
    with pytest.raises(NonFiniteError, match="cannot be followed"):
        measured(tmp_path / "ode", subject, OdeMeasure(), [0])
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    assert "model" in json.loads((tmp_path / "rows.jsonl").read_text())


def test_a_vae(pictures: Pictures, tmp_path: Path) -> None:
    """Rows are those of `vae_bound`, whatever the batch and after a stop; parts add up to the ELBO."""
    subject = Subject(vae(labels=("cats", "dogs")), pictures)
    assert subject.condition == "class"
    found = {}
    for terms in (1, 16):
        ticks: list[float] = []
        measure = VaeMeasure(terms)
        chosen = subject.chosen(range(20), 12, 0)
        whole = measured(tmp_path / f"{terms}", subject, measure, chosen, batch=12)
        measured(tmp_path / f"cut {terms}", subject, measure, chosen[:5], batch=2)
        kept = ledger(tmp_path / f"cut {terms}", subject, measure)
        rows = list(subject.measure(measure, chosen, kept, seed=0, batch=5, tick=ticks.append))
        for row, other in zip(rows, whole, strict=True):
            assert row["bits_per_dim"] == pytest.approx(other["bits_per_dim"], rel=1e-4)
        facts = found[terms] = measure_facts(measure, whole, subject)
        assert facts["elbo"] == pytest.approx(math.fsum(facts["parts"].values()))
        assert facts["parts"].keys() == {"level 1", "level 2", "reconstruction"}
        assert facts["bits_of_levels"][0] == pytest.approx(facts["parts"]["level 1"] * 64)
        told = {"model": "m", "data": "d", "pictures": 12, "warnings": [], "condition": "class", "levels": 256,
                "seed": 0, "bound": facts}  # fmt: skip
        html = page(told, subject, {"bound": whole}).html()
        assert "level 2 of z" in html
        assert ("importance" in html) == (terms > 1)
        assert ticks == sorted(ticks)
        assert len(ticks) > 2 * terms  # each call of the network
    first = subject.chosen(range(20), 12, 0)[:2]
    rng = Rng([(0, "likelihood", subject.key(i)) for i in first])
    said = torch.nn.functional.one_hot(
        torch.tensor([{"cats": 0, "dogs": 1}.get(pictures.labels[i], 2) for i in first]), 3
    )
    exact = vae_bound(
        subject.generator, pictures.tensor(first), Condition(vector=said.float()), rng, terms=16
    ).bits_per_dim
    rows = measured(tmp_path / "16", subject, VaeMeasure(16), first)
    assert [row["bits_per_dim"] for row in rows] == pytest.approx(exact.tolist(), rel=1e-4)
    assert found[1]["bits_per_dim"] == pytest.approx(found[1]["elbo"])
    assert found[16]["bits_per_dim"] < found[16]["elbo"]
    with pytest.raises(RecipeError, match="rows of another terms"):
        ledger(tmp_path / "16", subject, VaeMeasure(2))


def test_more_draws_bound_it_more_tightly(pictures: Pictures, tmp_path: Path) -> None:
    subject = Subject(vae(DiscretisedNormal(), std=0.2), pictures, precision="bfloat16")
    means = []
    for terms in (1, 4, 16, 64):
        rows = measured(tmp_path / f"{terms}", subject, VaeMeasure(terms), range(20), batch=20)
        means.append(measure_facts(VaeMeasure(terms), rows, subject)["bits_per_dim"])
    assert means == sorted(means, reverse=True)


def test_a_vae_without_grey_levels_has_no_bits(pictures: Pictures) -> None:
    with pytest.raises(RecipeError, match=r"VAE's p\(x \| z\) is a Normal.*256 grey levels"):
        Subject(vae(Normal()), pictures)
    with pytest.raises(RecipeError, match="256 grey levels"):
        Subject(vae(DiscretisedLogistic(16)), pictures)


def test_figures() -> None:
    assert Figure.of([1.0, 3.0]) == (2.0, 1.0)
    assert Figure.of([1.0]) == (1.0, None)
