"""The main job: three parts trained on captioned pictures that come with pip, put together, sampled and measured."""

from __future__ import annotations

__all__: list[str] = []
