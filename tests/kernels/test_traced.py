"""torch.jit.trace of layers: the graph holds torch's own operations."""

import pytest
import torch
from torch import nn

import normscope


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("training", [False, True])
def test_a_converted_network_is_traced(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    normscope.convert(model, "batch", fuse=True)
    model.train(training)
    traced = torch.jit.trace(model, torch.randn(2, 3, 8, 8), check_trace=False)
    assert "aten::batch_norm" in str(traced.inlined_graph)
    assert "normscope::" not in str(traced.inlined_graph)
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(traced(x), model(x))
