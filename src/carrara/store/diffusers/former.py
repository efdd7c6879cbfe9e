"""Names that attention's tensors had in files of earlier versions, read as those of today.

query, key, value, proj_attn     ->  to_q, to_k, to_v, to_out.0
kernels (out, in, 1, 1) of these ->  matrices (out, in)
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import Tensor

from carrara.store.diffusers.tensors import TensorSource

__all__ = ["Modern"]

_TODAY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_MATRIX = re.compile(r".*\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.weight")


class Modern:
    """The tensors of a source, under today's names; those that have them already are passed on as they are."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._there = {_today(name): name for name in source.names}

    @property
    def title(self) -> str:
        """The source's."""
        return self._source.title

    @property
    def names(self) -> Collection[str]:
        """Of all tensors, as they are named today."""
        return self._there.keys()

    def read(self, name: str) -> Tensor:
        """One tensor, as it lies there but for the shape of such a kernel; StorageError for a damaged file."""
        tensor = self._source.read(self._there[name])
        kernel = tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and _MATRIX.fullmatch(name)
        return tensor[:, :, 0, 0] if kernel else tensor


def _today(name: str) -> str:
    found = _FORMER.fullmatch(name)
    return f"{found[1]}.{_TODAY[found[2]]}.{found[3]}" if found else name
