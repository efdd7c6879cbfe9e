"""The network is told its level in float32 at least, in whatever numbers pictures and weights are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import Denoiser, Epsilon, IntegerStep, LinearBetas, Process, ScaledTime
from carrara.types import Condition


class Told(nn.Module):
    """A network that remembers the level it was told."""

    level: Tensor

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.level = level
        return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_every_step_has_a_level_of_its_own(dtype: torch.dtype) -> None:
    """bfloat16 would round 750 to 752 and leave 507 different numbers of the first thousand."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    for level, expected in ((IntegerStep(), torch.arange(1000)), (ScaledTime(), torch.arange(1, 1001))):
        denoiser = Denoiser(Told(), Process(LinearBetas()), Epsilon(), level)
        denoiser(torch.zeros(1000, 1, 1, 1, dtype=dtype), t)
        told = denoiser.network.level
        assert isinstance(told, Tensor) and told.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(told.double(), expected.double(), rtol=0, atol=1e-4)
        assert len(told.unique()) == 1000
