"""torch.fx.symbolic_trace of models with layers of the family."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope


class Doubled(normscope.BatchNorm1d):
    """A class of the user's, whose forward goes on behind ours."""

    def forward(
        self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return super().forward(input, residual, mask) * 2


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: normscope.BatchNorm1d(3, act="relu"),
    "ghost": lambda: normscope.GhostBatchNorm1d(3, 2),
    "renorm": lambda: normscope.BatchRenorm1d(3, ramp=1),
    "evalnorm": lambda: normscope.EvalNorm1d(3, 0.3),
    "mode": lambda: normscope.ModeNorm1d(3, 2),
    "frozen": lambda: normscope.FrozenBatchNorm1d(3),
    "conditional": lambda: normscope.ConditionalBatchNorm1d(3, 2),
    "a class of the user's": lambda: Doubled(3),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mode", [True, False])
def test_a_graph_does_what_the_layer_does_in_both_modes(name: str, mode: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), LAYERS[name](), nn.Tanh()).train(mode)
    before = copy.deepcopy(model.state_dict())
    graph = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(model)))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with normscope.condition(torch.arange(6) % 2):
        for training in (mode, not mode):  # as for torch's own layers it is no part of the graph
            model.train(training), graph.train(training)
            x = torch.randn(6, 3) * 2 + 1
            torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(graph.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_what_else_a_layer_is_given_is_traced() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = normscope.BatchNorm1d(3, act="silu")
            self.conditional = normscope.ConditionalBatchNorm1d(3, 2)

        def forward(self, x: Tensor, ids: Tensor, mask: Tensor) -> Any:
            return self.conditional(self.plain(x, residual=x, mask=mask), ids)

    block = Block()
    graph = torch.fx.symbolic_trace(copy.deepcopy(block))
    given = (torch.randn(6, 3), torch.arange(6) % 2, torch.arange(6) > 1)
    torch.testing.assert_close(graph(*given), block(*given), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["evalnorm", "mode", "renorm"])
def test_layers_of_plain_operations_are_traced_by_torchscript(name: str) -> None:
    layer = LAYERS[name]().train(name != "evalnorm")
    traced = torch.jit.trace(copy.deepcopy(layer), torch.randn(6, 3), check_trace=False)
    x = torch.randn(6, 3)
    layer(torch.randn(6, 3))  # the trace ran once too
    if name != "renorm":  # whose limits follow what the batches did
        torch.testing.assert_close(traced(x), layer(x))
    assert traced(x).isfinite().all()


def test_without_a_condition_the_pooled_statistics_are_exported() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 2, missing="pooled").eval()
    layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2)
    program = torch.export.export(layer, (torch.randn(5, 3),))
    x = torch.randn(5, 3)
    for seen in ([0, 0], [0, 7], [3, 1]):  # of no batch at all, all count alike
        layer.num_batches_tracked.copy_(torch.tensor(seen))
        program.module().num_batches_tracked.copy_(layer.num_batches_tracked)
        torch.testing.assert_close(layer(x), program.module()(x))


def test_a_graph_of_any_size_is_one_graph() -> None:
    layer = normscope.BatchNorm1d(3)
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", dynamic=True, fullgraph=True)
    for n in (5, 8):
        x = torch.randn(n, 3)
        torch.testing.assert_close(compiled(x), layer(x))
