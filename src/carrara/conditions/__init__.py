"""Conditions other than text: what pictures of a request mean, and how they are computed from those of a data set."""

from carrara.conditions.base import Input, PlaneInput
from carrara.conditions.control import Control, controlled
from carrara.conditions.edges import Edges, brightness, edge_overlap, edges
from carrara.conditions.embedding import Embedding
from carrara.conditions.latent_mask import LatentMask
from carrara.conditions.layout import Layout, cluster
from carrara.conditions.map import Map
from carrara.conditions.mask import Mask, draw_masks
from carrara.conditions.relief import Relief, relief
from carrara.conditions.small import SmallImage
from carrara.conditions.telling import missing, read_by, tell

__all__ = [
    "Control",
    "Edges",
    "Embedding",
    "Input",
    "LatentMask",
    "Layout",
    "Map",
    "Mask",
    "PlaneInput",
    "Relief",
    "SmallImage",
    "brightness",
    "cluster",
    "controlled",
    "draw_masks",
    "edge_overlap",
    "edges",
    "missing",
    "read_by",
    "relief",
    "tell",
]
