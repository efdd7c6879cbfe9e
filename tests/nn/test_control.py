"""Control of a frozen network: nothing at the start, bit for bit; nothing without its picture; a copy of its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

from carrara.config import Role, build, describe
from carrara.nn import DiT, TextTransformer, UNet
from carrara.nn.control import Controlled, DiTControl, UNetControl, control_of
from carrara.store import kinds
from carrara.types import Condition
from nn.networks import condition, perturb, pictures

LEVEL = torch.tensor([1.0, 500.0])
OPTIONS: dict[str, Any] = {"context": 12, "vector": 6, "image_channels": 2, "numbers": ("augmentation", "height")}


def unet(**more: Any) -> nn.Module:
    options = {"channels": 8, "multipliers": (1, 2), "blocks": 2, "attention": (1,), "groups": 4, **OPTIONS, **more}
    return perturb(UNet(in_channels=3, out_channels=3, **options))


def dit(**more: Any) -> nn.Module:
    options = {"size": (8, 12), "width": 16, "depth": 3, "heads": 2, **OPTIONS, **more}
    return perturb(DiT(in_channels=3, out_channels=3, **options))


NETWORKS = pytest.mark.parametrize("make", [unet, dit], ids=["unet", "dit"])


def seen(rows: int, *, present: bool = True, seed: int = 3) -> Tensor:
    """A picture for a control: two planes and the one that says that there is one."""
    planes = torch.randn(rows, 2, 8, 12, generator=torch.Generator().manual_seed(seed))
    return torch.cat([planes, torch.ones(rows, 1, 8, 12)], 1) * present


def told(picture: Tensor, **more: Tensor) -> Condition:
    return replace(condition(2), controls={"edges": picture, **more})


@NETWORKS
def test_a_control_that_has_learnt_nothing_changes_nothing(make: Any) -> None:
    network = make()
    whole = Controlled(network, {"edges": control_of(network, channels=3)}).eval()
    with torch.no_grad():
        assert torch.equal(whole(pictures(2), LEVEL, told(seen(2))), network(pictures(2), LEVEL, condition(2)))


@NETWORKS
def test_without_its_picture_the_network_is_the_frozen_one(make: Any) -> None:
    """However much was learnt; and a row's picture is that row's affair."""
    network = make()
    whole = Controlled(network, {"edges": perturb(control_of(network, channels=3), 1)}).eval()
    one = seen(2) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    with torch.no_grad():
        plain = network(pictures(2), LEVEL, condition(2))
        assert torch.equal(whole(pictures(2), LEVEL, told(seen(2, present=False))), plain)
        half = whole(pictures(2), LEVEL, told(one))
        assert torch.equal(half[1], plain[1])
        assert (half[0] - plain[0]).abs().max() > 1e-3
        both = whole(pictures(2), LEVEL, told(seen(2)))
        torch.testing.assert_close(both[0], half[0], rtol=0, atol=1e-5)


@NETWORKS
def test_the_copy_begins_as_the_network_and_is_its_own(make: Any) -> None:
    network = make()
    before = copy.deepcopy(network.state_dict())
    control = control_of(network.requires_grad_(False), channels=3)
    shared = set(control.state_dict()) & set(before)
    assert len(shared) > 10
    assert all(torch.equal(control.state_dict()[name], before[name]) for name in shared)
    assert all(parameter.requires_grad for parameter in control.parameters())
    perturb(control)
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


@NETWORKS
def test_everything_learns_after_a_step_or_two(make: Any) -> None:
    """Zero convolutions have a gradient at once, what is behind them as soon as they are not zero (the paper, 3.2)."""
    network = make().requires_grad_(False)
    control = control_of(network, channels=3)
    whole = Controlled(network, {"edges": control})
    optimizer = torch.optim.SGD(control.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (whole(pictures(2), LEVEL, told(seen(2))) - 1).square().mean().backward()
        optimizer.step()
    still = [name for name, p in control.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert all(parameter.grad is None for parameter in network.parameters())


@NETWORKS
def test_several_controls_add_up(make: Any) -> None:
    network = make()
    a, b = (perturb(control_of(network, channels=3), seed) for seed in (1, 2))
    x, p, q = pictures(2), seen(2), seen(2, seed=4)
    with torch.no_grad():
        added = [u + v for u, v in zip(a(x, LEVEL, condition(2), p), b(x, LEVEL, condition(2), q), strict=True)]
        expected = network(x, LEVEL, condition(2), added)
        whole = Controlled(network, {"edges": a, "layout": b}).eval()
        torch.testing.assert_close(whole(x, LEVEL, told(p, layout=q)), expected)
        alone = Controlled(network, {"edges": a}).eval()(x, LEVEL, told(p))
        assert torch.equal(whole(x, LEVEL, told(p, layout=0 * q)), alone)


def test_what_the_network_reads_itself_stays_with_it() -> None:
    network = unet(controls={"mask": 2})
    whole = Controlled(network, {"edges": control_of(network, channels=3)}).eval()
    mask = seen(2)[:, :2]
    with torch.no_grad():
        plain = network(pictures(2), LEVEL, replace(condition(2), controls={"mask": mask}))
        assert torch.equal(whole(pictures(2), LEVEL, told(seen(2), mask=mask)), plain)
    with pytest.raises(ValueError, match="controlled by"):
        whole(pictures(2), LEVEL, condition(2))
    with pytest.raises(ValueError, match=r"condition\.controls"):
        whole(pictures(2), LEVEL, told(seen(2)))
    with pytest.raises(ValueError, match="3 channels"):
        whole(pictures(2), LEVEL, told(mask, mask=mask))


@NETWORKS
def test_goes_to_a_table_and_back(make: Any) -> None:
    """Only the copy is stored: the frozen network's way up is not in it."""
    control = perturb(control_of(make(), channels=3))
    again = build(Annotated[nn.Module, Role("control_network")], describe(control, kinds()), kinds())
    again.load_state_dict(control.state_dict())
    with torch.no_grad():
        made, same = (one.eval()(pictures(2), LEVEL, condition(2), seen(2)) for one in (control, again))
    assert all(torch.equal(a, b) for a, b in zip(made, same, strict=True))
    assert not [name for name in control.state_dict() if name.startswith(("up.", "upsample.", "outward", "modulation"))]


@NETWORKS
def test_a_network_reads_named_pictures_and_vectors(make: Any) -> None:
    """In the order it was built for, whatever the condition's; zeros of a vector add nothing."""
    network = make(controls={"edges": 3, "mask": 1}, adapters={"seen": 5})
    generator = torch.Generator().manual_seed(0)
    edges, mask = seen(2), torch.rand(2, 1, 8, 12, generator=generator)
    vector = torch.randn(2, 1, 5, generator=generator)
    own = replace(condition(2), controls={"edges": edges, "mask": mask}, adapters={"seen": vector})
    turned = replace(own, controls={"mask": mask, "edges": edges})
    with torch.no_grad():
        made = network(pictures(2), LEVEL, own)
        assert torch.equal(network(pictures(2), LEVEL, turned), made)
        for change in ({"controls": {"edges": 2 * edges, "mask": mask}}, {"adapters": {"seen": 2 * vector}}):
            assert (network(pictures(2), LEVEL, replace(own, **change)) - made).abs().max() > 1e-4
        bare = make(controls={"edges": 3, "mask": 1})
        state = {name: x for name, x in network.state_dict().items() if "adapter" not in name}
        bare.load_state_dict(state)
        without = replace(own, adapters={})
        assert torch.equal(network(pictures(2), LEVEL, own.without(["seen"])), bare(pictures(2), LEVEL, without))
    for wrong in (
        {"controls": {"edges": edges}},
        {"controls": {"edges": edges, "mask": edges}},
        {"controls": {"edges": edges, "mask": mask[:, :, :4]}},
        {"controls": {"edges": edges, "mask": mask[:1]}},
        {"adapters": {}},
        {"adapters": {"seen": vector[:, 0]}},
        {"adapters": {"seen": vector[..., :4]}},
    ):
        with pytest.raises(ValueError, match="condition"):
            network(pictures(2), LEVEL, replace(own, **wrong))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="cannot be controlled"):
        control_of(TextTransformer(vocabulary=9, width=16, depth=1, heads=2, length=4), channels=3)
    with pytest.raises(ValueError, match="made of a UNet"):
        UNetControl(dit(), channels=3)
    with pytest.raises(ValueError, match="made of a DiT"):
        DiTControl(unet(), channels=3)
    with pytest.raises(ValueError, match="blocks = 4"):
        DiTControl(dit(), channels=3, blocks=4)
