"""EfficientNet-Lite0 equals the published implementation, with TensorFlow's padding at every size."""

from __future__ import annotations

import pytest
import torch

from carrara.nn.efficientnet import EfficientNetLite0


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    module = EfficientNetLite0().eval().requires_grad_(False)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return module


def test_parity_with_the_package(network: EfficientNetLite0) -> None:
    other = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    other.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = other.eval()(x)
    torch.testing.assert_close(network.logits(network(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_stages(network: EfficientNetLite0, size: tuple[int, int]) -> None:
    found = network.stages(torch.randn(1, 3, *size))
    assert [stage.shape[1] for stage in found] == [16, 24, 40, 80, 112, 192, 320]
    for stage, down in zip(found, (2, 4, 8, 16, 16, 32, 32), strict=True):
        assert tuple(stage.shape[2:]) == tuple(-(-side // down) for side in size)
    assert network(torch.randn(1, 3, *size)).shape == (1, 1280)
