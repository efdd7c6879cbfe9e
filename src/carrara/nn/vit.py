"""Vision transformers that are published with weights: CLIP's picture tower and DINOv2 (Radford 2021; Oquab 2023).

    pictures -> patches -> [class token, patches] + positions -> pre-norm blocks -> norm of the class token

Parameters have the names of the files in the transformers layout, so that these load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClipShape", "ClipVision", "Dinov2", "Dinov2Shape"]


@dataclass(frozen=True)
class ClipShape:
    """The sizes of CLIP's picture tower: pictures of `size` pixels in patches of `patch`."""

    width: int
    hidden: int
    depth: int
    heads: int
    size: int
    patch: int
    projection: int
    quick: bool = True  # x sigmoid(1.702 x) for gelu
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Dinov2Shape:
    """The sizes of a DINOv2 whose positions were learnt for pictures of `size` pixels."""

    width: int
    hidden: int
    depth: int
    heads: int
    size: int
    patch: int
    epsilon: float = 1e-6


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(B, L, D) each, split into heads and put together again."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _positions(size: int, patch: int) -> int:
    if size % patch:
        raise ValueError(f"pictures of {size} pixels do not divide into patches of {patch}")
    return (size // patch) ** 2 + 1


# --- CLIP -------------------------------------------------------------------------------------------------------------


class _ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.out_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))
        return done


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.fc2(self.activation(self.fc1(x)))
        return done


class _ClipLayer(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.self_attn = _ClipAttention(shape.width, shape.heads)
        self.layer_norm1 = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.mlp = _FeedForward(shape.width, shape.hidden, _quick_gelu if shape.quick else F.gelu)
        self.layer_norm2 = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        done: Tensor = x + self.mlp(self.layer_norm2(x))
        return done


class _ClipLayers(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ClipLayer(shape) for _ in range(shape.depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class _PictureEmbeddings(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        width = shape.width
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        self.position_embedding = nn.Embedding(_positions(shape.size, shape.patch), width)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class _PictureTower(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        width, epsilon = shape.width, shape.epsilon
        self.embeddings = _PictureEmbeddings(shape)
        self.pre_layrnorm = nn.LayerNorm(width, eps=epsilon)  # spelt so in the files
        self.encoder = _ClipLayers(shape)
        self.post_layernorm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.pre_layrnorm(self.embeddings(x)))
        done: Tensor = self.post_layernorm(h[:, 0])
        return done


class ClipVision(nn.Module):
    """Pictures (B, 3, size, size), normalised, to (B, projection): its cosine with a text's vector is their fit."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.shape = shape
        self.vision_model = _PictureTower(shape)
        self.visual_projection = nn.Linear(shape.width, shape.projection, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors, of any length."""
        done: Tensor = self.visual_projection(self.vision_model(x))
        return done


# --- DINOv2 -----------------------------------------------------------------------------------------------------------


class _Projection(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, shape.width, shape.patch, shape.patch)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.projection(x)
        return done


class _DinoEmbeddings(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, shape.width))
        self.mask_token = nn.Parameter(torch.zeros(1, shape.width))  # of the pre-training
        self.position_embeddings = nn.Parameter(torch.randn(1, _positions(shape.size, shape.patch), shape.width))
        self.patch_embeddings = _Projection(shape)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch_embeddings(x)
        positions = self._positions_for(h.shape[2], h.shape[3])
        return torch.cat([self.cls_token.expand(len(x), -1, -1), h.flatten(2).transpose(1, 2)], 1) + positions

    def _positions_for(self, high: int, wide: int) -> Tensor:
        """(1, 1 + high wide, D): the learnt grid, interpolated where the picture has another size."""
        first, grid = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        side = math.isqrt(grid.shape[1])
        if (high, wide) == (side, side):
            return self.position_embeddings
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        grid = F.interpolate(grid, (high, wide), mode="bicubic", align_corners=False)
        return torch.cat([first, grid.flatten(2).transpose(1, 2).to(first.dtype)], 1)


class _DinoHeads(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query, self.key, self.value = (nn.Linear(shape.width, shape.width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return _attend(self.query(x), self.key(x), self.value(x), self.heads)


class _DinoOut(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.dense(x)
        return done


class _DinoAttention(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.attention = _DinoHeads(shape)
        self.output = _DinoOut(shape)

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.output(self.attention(x))
        return done


class _Scale(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(shape.width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class _DinoLayer(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.attention = _DinoAttention(shape)
        self.layer_scale1 = _Scale(shape)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.mlp = _FeedForward(shape.width, shape.hidden, F.gelu)
        self.layer_scale2 = _Scale(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        done: Tensor = x + self.layer_scale2(self.mlp(self.norm2(x)))
        return done


class _DinoLayers(nn.Module):
    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_DinoLayer(shape) for _ in range(shape.depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class Dinov2(nn.Module):
    """Pictures (B, 3, H, W), normalised, to the class token (B, width); H and W are multiples of the patch."""

    def __init__(self, shape: Dinov2Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = _DinoEmbeddings(shape)
        self.encoder = _DinoLayers(shape)
        self.layernorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised class token."""
        done: Tensor = self.layernorm(self.encoder(self.embeddings(x))[:, 0])
        return done
