"""Networks made ready for inference on a CPU: bfloat16 weights, channels_last, convolutions in oneDNN's own order.

A convolution reads its weights in blocks that fit the processor. torch keeps them as they were trained and reorders
them at every call; here they are reordered once, for good, so a packed network neither trains nor is saved.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["packed"]


class _PackedConv2d(nn.Module):
    """A Conv2d whose weights are in oneDNN's order; it returns channels_last."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bias = conv.bias
        self.padding, self.stride, self.dilation = (
            list(cast(tuple[int, ...], sides)) for sides in (conv.padding, conv.stride, conv.dilation)
        )
        self.groups, self.out_channels = conv.groups, conv.out_channels
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self._blocks = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, self.groups, None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._blocks, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )
        return made


def packed(network: nn.Module, *, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """The network itself, changed for good: weights of `dtype`, bfloat16 or float32, convolutions packed.

    It computes what it computed, without gradients, in that precision. Raises ValueError for a network that is not on
    the CPU, for other types, and where torch was built without oneDNN.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"dtype={dtype} cannot be packed; give bfloat16 or float32")
    if device := next((p.device for p in network.parameters() if p.device.type != "cpu"), None):
        raise ValueError(f"a network on {device} cannot be packed; move it to the CPU first")
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this torch was built without oneDNN; use the network as it is")
    network.eval().requires_grad_(False)
    network.to(dtype)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                setattr(module, name, _PackedConv2d(child))
    return network
