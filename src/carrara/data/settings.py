"""What to read and how to prepare it: the one value that a recipe's `[data]` table becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CAPTION_SOURCES", "CaptionSource", "DataSettings"]

CaptionSource = Literal["metadata", "caption", "txt", "class", "name"]
CAPTION_SOURCES: tuple[CaptionSource, ...] = ("metadata", "caption", "txt", "class", "name")


@dataclass(frozen=True)
class DataSettings:
    """A folder of pictures and how its pictures become tensors.

    Raises ValueError for a value outside its range; nothing is read before `open_pictures`.
    """

    folder: str
    """A folder of pictures, or one parquet file of pictures."""

    size: int | tuple[int, int] = 64
    """Side of the square pictures, or (height, width), in pixels."""

    channels: int | None = None
    """Channels of the tensors. None keeps what the pictures have and refuses a mix; 1 and 3 also convert between
    grey and colour, 4 keeps transparency as a fourth channel."""

    depth: Literal[8, 16] | None = None
    """Bits a channel. None keeps what the pictures have and refuses a mix."""

    fit: Literal["crop", "random-crop", "pad"] = "crop"
    """How another shape is made to fit: cut to the centre, cut at a place drawn anew for every sample, or padded
    with the background. Pictures are never stretched."""

    background: str = "white"
    """What transparent pictures are laid on, and what `fit = "pad"` adds: a CSS colour name or #rrggbb."""

    flip: bool = False
    """Mirror half of the samples left to right. Wrong where side matters: text, maps, "a man on the left"."""

    heldout: float = 0.02
    """Share of the pictures kept out of training, in [0, 1). It is chosen by content, so adding pictures does not move
    the others, and exact duplicates stay on one side. A split of the folder's own takes precedence."""

    heldout_by: Literal["picture", "caption"] = "picture"
    """Whether single pictures are held out, or every picture of a caption (or class) together."""

    captions: tuple[CaptionSource, ...] = CAPTION_SOURCES
    """Where captions may come from, best first. "class" and "name" are used only where nothing else has any; "name"
    is a last resort that needs names that look like words, unless it is the only source given."""

    inputs: tuple[str, ...] | None = None
    """Further pictures of a row (columns `<name>_file_name`) to load; None loads all that there are."""

    nearest: tuple[str, ...] = ("mask",)
    """Inputs whose values are labels: resized to the nearest pixel, never blended or colour-managed."""

    allow_uncaptioned: bool = False
    """Go on although more than 1 % of the pictures have no caption while others do."""

    allow_missing: bool = False
    """Go on although more than 1 % of the metadata rows name a picture that is not there."""

    allow_broken: float = 0.1
    """The share of the pictures, in [0, 1], that may be unreadable (they are skipped, counted and named)."""

    def __post_init__(self) -> None:
        height, width = self.shape
        if not (1 <= height <= 65536 and 1 <= width <= 65536):
            raise ValueError(f"size is {self.size}; give the side in pixels, or (height, width), between 1 and 65536")
        if self.channels is not None and not 1 <= self.channels <= 256:
            raise ValueError(f"channels is {self.channels}; give 1 (grey), 3 (colour) or up to 256, or leave it out")
        if self.depth not in (None, 8, 16):
            raise ValueError(f"depth is {self.depth}; pictures have 8 or 16 bits a channel")
        if self.fit not in ("crop", "random-crop", "pad"):
            raise ValueError(f'fit is "{self.fit}"; give "crop", "random-crop" or "pad" (stretching is not offered)')
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout is {self.heldout}; it is a share, at least 0 and below 1")
        if self.heldout_by not in ("picture", "caption"):
            raise ValueError(f'heldout_by is "{self.heldout_by}"; give "picture" or "caption"')
        if not 0 <= self.allow_broken <= 1:
            raise ValueError(f"allow_broken is {self.allow_broken}; it is a share between 0 and 1")
        if unknown := [source for source in self.captions if source not in CAPTION_SOURCES]:
            raise ValueError(f"captions names {unknown}; the sources are {', '.join(CAPTION_SOURCES)}")
        if len(set(self.captions)) < len(self.captions):
            raise ValueError(f"captions names a source twice: {', '.join(self.captions)}")
        _ = self.colour

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the prepared pictures, in pixels."""
        size = self.size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background as red, green and blue in 0..255."""
        from PIL import ImageColor

        try:
            return ImageColor.getrgb(self.background)[:3]
        except ValueError:
            raise ValueError(
                f'background is "{self.background}"; give a colour such as "white", "black" or "#8090a0"'
            ) from None

    @property
    def path(self) -> Path:
        """The folder with ~ expanded."""
        return Path(self.folder).expanduser()
