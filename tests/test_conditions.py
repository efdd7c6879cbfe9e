"""What a picture's condition is: edges, masks, layouts, small images, embeddings; and how it says that it is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions import (
    Edges,
    Embedding,
    Input,
    Layout,
    Map,
    Mask,
    Relief,
    SmallImage,
    brightness,
    cluster,
    draw_masks,
    edge_overlap,
    edges,
    missing,
    read_by,
    relief,
    tell,
)
from carrara.errors import DataError
from carrara.nn import ImageEncoder
from carrara.rng import Rng
from carrara.run import finish
from carrara.types import Condition

RNG = Rng.seeds(range(4))


def noise(rows: int = 4, channels: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(rows, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(rows: int = 4) -> Tensor:
    return F.interpolate(noise(rows, side=4), size=(16, 16), mode="bilinear")


def square(side: int = 32, low: int = 8, high: int = 24) -> Tensor:
    """A white square on black."""
    picture = -torch.ones(1, 3, side, side)
    picture[:, :, low:high, low:high] = 1
    return picture


def inputs(down: int = 1) -> list[Input]:
    """One of each, as a data set of colour pictures of 16 x 16 makes it."""
    torch.manual_seed(0)
    tower = ImageEncoder(width=6, patch=2, widths=(8, 8), blocks=(1, 1))
    made: list[Input] = [
        Edges(down=down),
        Mask(channels=3, down=down),
        Layout(channels=3, colours=3, cell=2, down=down),
        SmallImage(channels=3, size=(16, 16), side=4, down=down),
        Map(name="depth", channels=1, down=down),
        Relief(down=down),
        Embedding(tower, channels=3, size=(16, 16)),
    ]
    for one in made:
        one.measure([smooth(64)])
    return made


# --- edges ------------------------------------------------------------------------------------------------------------


def test_edges_of_a_step_are_one_line() -> None:
    picture = -torch.ones(1, 3, 12, 16)
    picture[:, :, :, 8:] = 1
    found = edges(picture)
    assert found.shape == (1, 1, 12, 16)
    assert found.sum() == 12
    assert found[..., 7:9].sum() == 12
    turned = edges(picture.transpose(2, 3))
    assert turned.sum() == 12


def test_edges_of_a_square_are_its_outline() -> None:
    found = edges(square())[0, 0]
    assert 4 * 12 <= found.sum() <= 4 * 17
    near = torch.zeros_like(found)
    near[7:25, 7:25] = 1
    near[10:22, 10:22] = 0
    assert (found * (1 - near)).sum() == 0


def test_edges_know_neither_grey_nor_colour_nor_place() -> None:
    assert edges(torch.zeros(2, 3, 16, 16)).sum() == 0
    grey = smooth()[:, :1]
    assert torch.equal(edges(grey), edges(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(brightness(torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)).item(), 0.299)
    picture = F.pad(square(), (8, 8, 8, 8), value=-1.0)
    moved = edges(picture.roll((2, 3), (2, 3)))
    assert torch.equal(moved, edges(picture).roll((2, 3), (2, 3)))


def test_weak_edges_stay_where_they_are_joined_to_strong_ones() -> None:
    """A line whose contrast falls off is followed; a faint one by itself is not."""
    picture = -torch.ones(1, 1, 24, 24)
    picture[:, :, 12:, :] += torch.linspace(1.0, 0.3, 24)  # the step's height falls from left to right
    whole = edges(picture, weak=0.03, strong=0.1)
    assert whole.sum() >= 22
    faint = picture.clone()
    faint[..., :12] = -1
    faint = faint[..., 13:]
    assert edges(faint, weak=0.03, strong=0.1).sum() == 0
    assert edges(faint, weak=0.03, strong=0.03).sum() > 0


def test_edges_depend_on_their_own_row() -> None:
    pictures = torch.cat([smooth(), noise(2), square(16, 4, 12)])
    whole = edges(pictures)
    assert all(torch.equal(whole[i : i + 1], edges(pictures[i : i + 1])) for i in range(len(pictures)))


def test_overlap() -> None:
    a = edges(square())
    assert edge_overlap(a, a) == 1
    assert edge_overlap(a, a.roll(1, 3)) == 1  # within a pixel
    assert edge_overlap(a, torch.zeros_like(a)) == 0
    assert edge_overlap(torch.zeros_like(a), torch.zeros_like(a)) == 1
    far = edge_overlap(a, a.roll(4, 3))
    assert 0 < far < 1
    assert far == edge_overlap(a.roll(4, 3), a)
    assert edge_overlap(a, a.roll(4, 3), tolerance=4) == 1


# --- reliefs ----------------------------------------------------------------------------------------------------------


def test_a_relief_rises_from_the_ground() -> None:
    """Of a square 1, 2, 3, ... steps from its edge inwards, up to `reach`; nothing of it depends on its colours."""
    found = relief(square(), reach=0.25)[0, 0] * 8
    row = [0.0] * 8 + [1.0, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1] + [0.0] * 8
    torch.testing.assert_close(found[16], torch.tensor(row))
    torch.testing.assert_close(found[:, 16], torch.tensor(row))
    assert found[8:24, 8:24].min() == 1
    assert torch.equal(relief(-square(), reach=0.25)[0, 0] * 8, found)
    assert torch.equal(relief(square(), reach=0.125).mul(4).round(), found.clamp(max=4)[None, None])


def test_a_relief_is_as_round_as_an_octagon() -> None:
    y, x = (n - 31.5 for n in torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    apart = torch.hypot(y, x)
    found = relief(torch.where(apart < 24, 1.0, -1.0)[None, None], reach=0.5)[0, 0] * 32
    inside = apart < 24
    assert torch.equal(found > 0, inside)
    assert (found - (24 - apart))[inside].abs().max() < 3


def test_holes_are_no_ground_and_what_touches_the_border_is_no_edge() -> None:
    ring = square()
    ring[:, :, 12:20, 12:20] = -1
    assert torch.equal(relief(ring), relief(square()))
    half = -torch.ones(1, 3, 32, 32)
    half[:, :, 20:] = 1  # the border is black for the most part
    assert relief(half)[0, 0, 20:, 0].mul(8).round().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8]
    assert not relief(torch.zeros(1, 3, 8, 8)).any()


def test_reliefs_depend_on_their_own_row() -> None:
    pictures = torch.cat([smooth(), noise(2), square(16, 4, 12)])
    whole = relief(pictures)
    assert all(torch.equal(whole[i : i + 1], relief(pictures[i : i + 1])) for i in range(len(pictures)))


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_are_drawn_row_by_row() -> None:
    many = draw_masks(Rng.seeds(range(200)), (16, 24))
    assert many.shape == (200, 1, 16, 24)
    assert torch.equal(many[7:9], draw_masks(Rng.seeds([7, 8]), (16, 24)))
    assert set(many.unique().tolist()) == {0.0, 1.0}
    shares = many.mean((1, 2, 3))
    assert 0.2 < shares.mean() < 0.6
    assert 0.02 < (shares == 1).float().mean() < 0.15
    assert (shares > 0).float().mean() > 0.97


def test_a_mask_hides_what_it_covers() -> None:
    mask, pictures = draw_masks(RNG, (16, 16)), noise()
    one = Mask(channels=3)
    told = one.encode(pictures, mask)
    assert torch.equal(told[:, :1], mask)
    assert torch.equal(told[:, 1:4], torch.where(mask == 0, pictures, 0.0))
    other = torch.where(mask == 0, pictures, noise(seed=1))
    assert torch.equal(one.encode(other, mask), told)
    assert torch.equal(one.encode(pictures, mask * 0.5), told)  # grey is to be made, too


# --- small images and layouts -----------------------------------------------------------------------------------------


def test_a_small_image_is_the_means_of_cells() -> None:
    one = SmallImage(channels=3, size=(16, 16), side=4)
    small = one.computed(noise(), RNG)
    torch.testing.assert_close(small[1, 2, 3, 0], noise()[1, 2, 12:, :4].mean())
    assert torch.equal(one.encode(small)[:, :3, ::4, ::4], small)
    with pytest.raises(ValueError, match="side = 32"):
        SmallImage(channels=3, size=(16, 16), side=32)


def test_clusters() -> None:
    centres = torch.tensor([[-1.0, -1.0], [0.0, 0.2], [0.9, 1.0]])
    points = (centres[torch.arange(90) % 3] + 0.01 * noise(1, 2, 90)[0, :, 0].T).float()
    found = cluster(points, 3)
    torch.testing.assert_close(found, torch.stack([points[i::3].double().mean(0) for i in range(3)]))
    torch.testing.assert_close(cluster(points.flip(0), 3), found)
    few = cluster(centres[torch.arange(9) % 2], 4)
    assert torch.equal(few.unique(dim=0), centres[:2].double())


def test_a_layout_of_flat_colours_is_the_picture() -> None:
    colours = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [1, 1, 1]])
    labels = torch.randint(0, 3, (4, 8, 8), generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(colours[labels].movedim(3, 1), scale_factor=2, mode="nearest")
    one = Layout(channels=3, colours=3, cell=2)
    one.measure([pictures])
    assert torch.equal(one.palette, colours)
    assert torch.equal(one.computed(pictures, RNG), pictures)
    assert torch.equal(one.labels(pictures)[:, ::2, ::2], labels)
    told = one.encode(pictures)
    assert torch.equal(told[:, :3].argmax(1), one.labels(pictures))
    assert torch.equal(told[:, :3].sum(1), torch.ones(4, 16, 16))


def test_a_cell_has_the_label_of_most_of_its_pixels() -> None:
    one = Layout(channels=1, colours=2, cell=3)
    one.measure([torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)], beside=True)
    picture = -torch.ones(1, 1, 7, 7)
    picture[..., :3, :2] = 1  # six of nine
    picture[..., 3:5, 3:5] = 1  # four of nine
    picture[..., 6, 6] = 1  # the one of a cell that is cut off
    found = one.computed(picture, RNG)
    assert found.shape == picture.shape
    assert found.gt(0).nonzero()[:, 2:].tolist() == [[y, x] for y in range(3) for x in range(3)] + [[6, 6]]


def test_labels_from_files_are_taken_as_they_are() -> None:
    maps = torch.tensor([-1.0, 0.1, 0.12, 1.0])[torch.arange(64).view(1, 1, 8, 8) % 4]
    one = Layout(channels=1, colours=4)
    one.measure([maps], beside=True)
    assert one.palette.flatten().tolist() == pytest.approx([-1.0, 0.1, 0.12, 1.0])
    with pytest.raises(DataError, match=r"more than 3 colours.*task.inputs.layout.colours.*data.nearest"):
        Layout(channels=1, colours=3).measure([maps], beside=True)


# --- what they share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [1, 4])
@pytest.mark.parametrize("number", range(7))
def test_parts_of_the_condition(number: int, down: int) -> None:
    """Shapes; a null of zeros of that shape; rows of their own; nothing is lost in folding."""
    one = inputs(down)[number]
    given = one.of(smooth(), {"depth": noise(4, 1)}, RNG)
    assert len(given) == len(one.needs)
    assert given[-1].shape[1] == one.planes
    assert tuple(given[-1].shape[2:]) == (one.side or (16, 16))
    assert bool(((given[-1] >= one.low) & (given[-1] <= 1)).all())
    told = one.encode(*given)
    side = 16 // down
    assert told.shape == ((4, one.channels, side, side) if one.part == "controls" else (4, 1, one.channels))
    null = one.null(4, (side, side))
    assert null.shape == told.shape
    assert not null.any()
    for row in range(4):
        alone = one.encode(*(x[row : row + 1] for x in given))
        torch.testing.assert_close(alone, told[row : row + 1], rtol=0, atol=1e-5 if one.part == "adapters" else 0)
    if one.part == "controls":
        assert torch.equal(told[:, -1:], torch.ones(4, 1, side, side))
        same = inputs(1)[number].encode(*given)
        assert torch.equal(F.pixel_shuffle(told[:, :-1], down), same[:, :-1])
    assert one.shown(*given).shape[0] == 4


def test_an_embedding_is_white_and_frozen() -> None:
    one = inputs()[-1]
    pictures = smooth(64)
    one.measure([pictures[:32], pictures[32:]])
    seen = one.encode(pictures)[:, 0, :-1].double()
    torch.testing.assert_close(seen.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-4)
    covariance = torch.cov(seen.T)
    assert (covariance.diagonal() > 0.5).all()
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.05
    assert not [p for p in one.parameters() if p.requires_grad]
    assert not one.train().network.training
    with pytest.raises(ValueError, match="reads 3 channels, and the pictures have 1"):
        Embedding(ImageEncoder(), channels=1, size=(16, 16))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Edges(name="image"), "cannot be named"),
        (lambda: Edges(name="Edges"), "cannot be named"),
        (lambda: Edges(name="a.b"), "cannot be named"),
        (lambda: Edges(drop=1.0), "drop = 1.0"),
        (lambda: Edges(weak=0.2, strong=0.1), "weak = 0.2"),
        (lambda: Mask(channels=3, name="hole"), "name it mask"),
        (lambda: Layout(channels=3, colours=1), "colours = 1"),
        (lambda: Relief(reach=0.0), "reach = 0.0"),
        (lambda: Map(name="depth", channels=1).computed(noise(), RNG), "depth_file_name"),
    ],
)
def test_refusals(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_telling() -> None:
    """Those that are given, the nulls of the others, each where a network looks for it."""
    every = inputs()
    given = {"edges": torch.ones(2, 1, 16, 16), "image": noise(2), "embedding": noise(2)}
    assert read_by(every, given) == {"edges", "embedding"}  # an image alone is to be edited
    told = finish(tell(Condition(), every, given, rows=2, size=(16, 16)))
    assert set(told.controls) == {"edges", "mask", "layout", "small", "depth", "relief"}
    assert set(told.adapters) == {"embedding"}
    assert torch.equal(told.controls["edges"], torch.ones(2, 2, 16, 16))
    assert told.adapters["embedding"].any()
    assert not any(told.controls[name].any() for name in ("mask", "layout", "small", "depth", "relief"))
    assert told.without(["edges", "embedding"]).controls["edges"].sum() == 0
    needed = [Edges(drop=0.0), Mask(channels=3, drop=0.0)]
    assert [one.name for one in missing(needed, {"image"})] == ["edges", "mask"]
    with pytest.raises(ValueError, match=r"never without edges.*--input edges=FILE"):
        finish(tell(Condition(), needed, {}, rows=1, size=(16, 16)))
    with pytest.raises(ValueError, match="never without mask and needs mask"):
        finish(tell(Condition(), needed, {"edges": given["edges"], "image": noise(2)}, rows=2, size=(16, 16)))
