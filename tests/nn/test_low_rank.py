"""Low-rank updates: nothing at the start, what their factors say after it, and nothing else learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from carrara.nn import DiT, UNet
from carrara.nn.low_rank import LowRank, layers_of
from carrara.store.diffusers.lora import Update, merged, parted
from carrara.store.diffusers.tensors import Pointwise, Stacked
from carrara.types import Condition

CONDITION = Condition(tokens=torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)))
EVERY = ("attention", "convolution", "linear")


def unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=2, context=6)
    for parameter in network.parameters():  # zero at the start would hide what an update does
        nn.init.normal_(parameter, std=0.2)
    return network


def called(network: nn.Module) -> Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    made: Tensor = network(x, torch.tensor([1.0, 500.0]), CONDITION)
    return made


def moved(updates: LowRank) -> LowRank:
    """As if it had been trained."""
    with torch.no_grad():
        for parameter in updates.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    return updates


@pytest.mark.parametrize("which", [*((one,) for one in EVERY), EVERY])
def test_it_begins_with_the_network_itself_and_ends_as_its_merged_weights(which):
    network = unet()
    before = called(network)
    updates = LowRank(network, rank=2, alpha=3.0, which=which)
    assert torch.equal(called(network), before)
    moved(updates)
    after = called(network)
    assert (after - before).abs().max() > 1e-2
    updates.detach()
    assert torch.equal(called(network), before)

    state = network.state_dict()
    table = {name: name for name in state}
    given = {name: Update(*factors) for name, factors in updates.factors.items()}
    network.load_state_dict({**state, **merged(table, state, parted(table, given))})
    torch.testing.assert_close(called(network), after, rtol=1e-4, atol=1e-4 * after.abs().max().item())


def test_only_the_updates_learn_and_all_of_them_do():
    network = unet()
    updates = moved(LowRank(network, rank=2, which=EVERY))
    called(network).square().mean().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    still = [name for name, p in zip(updates.names, updates.pairs, strict=True) if not p.down.weight.grad.abs().any()]
    assert still == []


def test_layers_are_of_one_kind_each():
    network = unet()
    kinds = [set(layers_of(network, (one,))) for one in EVERY]
    assert all(kinds)
    assert len(set().union(*kinds)) == sum(map(len, kinds))
    assert set().union(*kinds) == {n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert not layers_of(DiT(in_channels=3, out_channels=3, size=8, width=8, depth=1, heads=2), ("convolution",))


def test_a_low_precision_network_has_updates_of_full_precision():
    network = unet().bfloat16()
    updates = moved(LowRank(network, rank=2))
    assert updates.dtype == torch.float32
    assert called(network).dtype == torch.float32  # x's own


def test_what_cannot_be_is_refused():
    network = DiT(in_channels=3, out_channels=3, size=8, width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match="no layers of kind convolution"):
        LowRank(network, which=("convolution",))
    with pytest.raises(ValueError, match="rank = 0"):
        LowRank(network, rank=0)


def test_updates_are_parted_as_the_other_layout_has_its_layers():
    table = {"qkv.weight": Stacked(("q.weight", "k.weight"), (2, 4)), "into.weight": Pointwise("proj.weight")}
    update = Update(torch.randn(3, 5), torch.randn(6, 3), 1.5)
    found = parted(table, {"qkv": update, "into": Update(torch.randn(3, 5), torch.randn(6, 3), 3.0)})
    assert set(found) == {"q", "k", "proj"}
    torch.testing.assert_close(torch.cat([found["q"].delta(), found["k"].delta()]), update.delta())
    assert found["proj"].delta().shape == (6, 5, 1, 1)
    tensors = {"qkv.weight": torch.randn(6, 5), "into.weight": torch.randn(6, 5)}
    changed = merged(table, tensors, found)
    torch.testing.assert_close(changed["qkv.weight"], tensors["qkv.weight"] + update.delta())
