"""Tensors under another layout's names, both ways, with everything accounted for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.errors import StorageError
from carrara.store.diffusers.tensors import Kernel, Pixels, Pointwise, Stacked, Swapped, exported, imported

TABLE = {"a": "x.weight", "qkv": Stacked(("q", "k"), (2, 3)), "into": Pointwise("proj.weight")}


class Given:
    title = "the file"

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def theirs() -> dict[str, Tensor]:
    return {
        "x.weight": torch.randn(3, dtype=torch.float16),
        "q": torch.randn(2, 4),
        "k": torch.randn(3, 4),
        "proj.weight": torch.randn(5, 2, 1, 1),
    }


WANTED = {"a": torch.empty(3, device="meta"), "qkv": torch.empty(5, 4), "into": torch.empty(5, 2)}


def test_what_is_imported_and_exported_again_is_the_same():
    given = theirs()
    ours = imported(TABLE, Given(given), WANTED)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in WANTED.items()}
    back = exported(TABLE, ours)
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) and back[name].dtype == given[name].dtype for name in given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q": None}, r"1 missing \(q\)"),
        ({"more": torch.ones(1)}, r"1 left over \(more\)"),
        ({"q": torch.ones(3, 4)}, "q is 3 x 4, expected 2 x 4"),
        ({"q": torch.ones(2, 4).half()}, "k is torch.float32, expected torch.float16 as q is"),
        ({"proj.weight": torch.ones(5, 2)}, "proj.weight is 5 x 2, expected 5 x 2 x 1 x 1"),
        ({"k": torch.full((3, 4), float("nan"))}, r"1 not finite \(k\)"),
    ],
)
def test_everything_is_accounted_for(change, said):
    given = {name: tensor for name, tensor in {**theirs(), **change}.items() if tensor is not None}
    with pytest.raises(StorageError, match=f"the file does not hold .*{said}"):
        imported(TABLE, Given(given), WANTED)


def test_all_that_is_wrong_is_said_at_once_and_counted():
    given = {f"more{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(StorageError, match=r"4 missing \(k, .* and 1 more\); 5 left over \(more0, .* and 2 more\)"):
        imported(TABLE, Given(given), WANTED)


def test_what_is_ignored_may_be_there_or_not():
    assert imported(TABLE, Given({**theirs(), "ids": torch.arange(3)}), WANTED, ignored=["ids", "other"])


def test_a_table_of_another_network_is_refused():
    with pytest.raises(ValueError, match="differ in"):
        imported(TABLE, Given(theirs()), {"a": torch.empty(3)})


def test_patches_and_halves():
    """What a convolution in strides makes of patches, a linear map makes; rows come in the order that is said."""
    table = {"inward": Kernel("conv", 2), "outward": Pixels("out", 2), "both": Swapped("two")}
    given = {"conv": torch.randn(5, 3, 2, 2), "out": torch.arange(12.0), "two": torch.arange(4.0)}
    wanted = {"inward": torch.empty(5, 12), "outward": torch.empty(12), "both": torch.empty(4)}
    ours, x = imported(table, Given(given), wanted), torch.randn(1, 3, 4, 6)
    patches = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(F.linear(patches, ours["inward"]).mT, F.conv2d(x, given["conv"], stride=2).flatten(2))
    assert ours["outward"].view(3, 4).T.flatten().equal(given["out"])
    assert ours["both"].tolist() == [2, 3, 0, 1]
    assert {name: tensor.tolist() for name, tensor in exported(table, ours).items()} == {
        name: tensor.tolist() for name, tensor in given.items()
    }
    with pytest.raises(StorageError, match="conv is 5 x 12 x 1 x 1, expected 5 x 3 x 2 x 2"):
        imported(table, Given({**given, "conv": torch.randn(5, 12, 1, 1)}), wanted)
