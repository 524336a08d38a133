"""What `auto` does on CUDA: torch's own functions, whoever looks at the call.

No device is needed. Fake tensors say which operations would run on one. They cannot be
differentiated in a build of torch without CUDA, so gradients are judged by the same choice made on
a CPU.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import normscope
from normscope import functional
from normscope.kernels import autograd, dispatch, reference
from normscope.kernels.autograd import Stored
from normscope.kernels.problem import Epilogue, Problem
from normscope.layers import batch


class Watched(TorchDispatchMode):
    """Notes every operation, or those of one library, with its tensors and numbers."""

    def __init__(self, library: str = "") -> None:
        super().__init__()
        self.library = library
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(self.library):
            leaves = tree_leaves(args)
            numbers = [a for a in leaves if isinstance(a, bool | float)]
            tensors = [(t.shape, t.device.type, t.dtype) for t in leaves if isinstance(t, Tensor)]
            self.seen.append((str(func), tensors, numbers))
        return func(*args, **(kwargs or {}))


def test_auto_takes_torchs_operations_on_cuda() -> None:
    """On a device that is not there: the very operations that the user had, and no others."""
    with FakeTensorMode():
        x, residual = (torch.empty(4, 3, 5, 5, device="cuda") for _ in range(2))
        mean, var, weight, bias = (torch.empty(3, device="cuda") for _ in range(4))
        assert functional.why(x).startswith("torch: on cuda one group without a mask")
        assert "ask for impl='gpu'" in functional.why(x)
        calls = [((mean, var, weight, bias), False), ((None, None, weight, bias), True)]
        for (tables, training), act, added in product(calls, [None, "relu", "silu"], [0, 1]):
            more = residual if added else None
            with Watched() as ours:
                y = functional.batch_norm(x, *tables, training, 0.2, 1e-4, act=act, residual=more)
            with Watched() as theirs:
                expected = F.batch_norm(x, *tables, training, 0.2, 1e-4)
                expected = expected if more is None else expected + more
                if act:
                    getattr(F, act)(expected, inplace=act == "relu")
            assert ours.seen == theirs.seen
            assert y.device.type == "cuda"
        groups = torch.zeros(4, dtype=torch.int64, device="cuda")
        with Watched() as ours:
            functional.batch_norm(x, mean, var, weight, bias, groups=groups)
        assert not [name for name, *_ in ours.seen if "batch_norm" in name]


Forward = Callable[[Tensor], Any]
Graph = list[Any]  # the operations of a call


def operations(forward: Forward, x: Tensor) -> Graph:
    """List what runs, with the devices of its tensors."""
    watched = Watched()
    with watched:
        forward(x)
    return watched.seen


def compiled(forward: Forward, x: Tensor) -> Graph:
    """List what a compiler gets, all of it in one graph."""
    torch.compiler.reset()  # sizes that an earlier test made dynamic are so no more
    graphs: list[Graph] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Forward:
        graphs.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    torch.compile(forward, backend=backend, fullgraph=True)(x)
    (graph,) = graphs
    return graph


def exported(forward: Forward, x: Tensor) -> Graph:
    """List what an exported program runs."""
    assert isinstance(forward, nn.Module)
    graph = torch.export.export(forward, (x,)).graph
    return [n.target for n in graph.nodes if n.op == "call_function"]


def batched(forward: Forward, x: Tensor) -> Graph:
    """List what runs under vmap."""
    return operations(torch.func.vmap(forward), torch.stack([x, x]))


def functionalized(forward: Forward, x: Tensor) -> Graph:
    """List what runs where nothing is changed in place."""
    return operations(torch.func.functionalize(forward), x)


def in_mixed_precision(forward: Forward, x: Tensor) -> Graph:
    """List what runs under autocast, which `torch.autocast` refuses to be without a device."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        assert F.linear(x, x.new_empty(2, x.shape[-1])).dtype == torch.bfloat16
        return operations(forward, x) + operations(forward, x.bfloat16())
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize(
    "look", [operations, compiled, exported, batched, functionalized, in_mixed_precision]
)
@pytest.mark.parametrize("training", [True, False])
def test_auto_takes_torch_whoever_looks(look: Callable[..., Graph], training: bool) -> None:
    """On a fake CUDA device: operation by operation what torch's layers do."""
    with torch.no_grad(), FakeTensorMode(), torch.device("cuda"):
        x = torch.empty(4, 3, 5, 5)
        ours = normscope.BatchNorm2d(3, act="relu", track_running_stats=not training)
        theirs = nn.Sequential(
            nn.BatchNorm2d(3, track_running_stats=not training), nn.ReLU(inplace=True)
        )
        assert functional.why(x).startswith("torch: on cuda one group without a mask")
        found, expected = (look(layer.train(training), x) for layer in (ours, theirs))
    assert found == expected
    assert [name for name in map(str, found) if "batch_norm" in name]


@pytest.fixture
def chosen_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the choice of CUDA on a CPU."""
    monkeypatch.setattr(dispatch, "TORCHS", ("cpu",))
    monkeypatch.setattr(dispatch, "MEASURED", ())
    monkeypatch.setattr(functional, "_compiled", lambda *arguments: None)
    monkeypatch.setattr(batch, "plain_call", lambda x: None)


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A process group whose collectives leave every tensor as it is."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def mixed(layer: nn.Module) -> Forward:
    """Run in bfloat16 where autocast says so."""

    def forward(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    return forward


def with_own_buffers(layer: nn.Module) -> Forward:
    """Leave the buffers alone, which transforms demand."""

    def forward(x: Tensor) -> Any:
        buffers = {name: b.clone() for name, b in layer.named_buffers()}
        return torch.func.functional_call(layer, buffers, x)

    return forward


WRAPPED: dict[str, Callable[[nn.Module], Forward]] = {
    "plain": lambda layer: layer,
    "torch.compile": lambda layer: torch.compile(layer, backend="aot_eager", fullgraph=True),
    "autocast": mixed,
    "DistributedDataParallel": lambda layer: DistributedDataParallel(layer, init_sync=False),
    "torch.func.vjp": lambda layer: lambda x: torch.func.vjp(with_own_buffers(layer), x),
}


@pytest.mark.usefixtures("chosen_on_a_cpu", "two_ranks")
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_gradients_are_torchs_own_whoever_looks(wrapped: str) -> None:
    values, dy = torch.randn(2, 4, 3, 5, 5)
    found = []
    assert functional.why(values).startswith("torch: ")
    for layer in (
        normscope.BatchNorm2d(3, act="silu"),
        nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()),
    ):
        x = values.clone().requires_grad_()
        y = WRAPPED[wrapped](layer)(x)
        if isinstance(y, tuple):
            y, pulled_back = y
            found.append([y, *pulled_back(dy)])
        else:
            y.backward(dy)
            found.append([y, x.grad, *(p.grad for p in layer.parameters())])
        found[-1] += layer.buffers()
    assert all(map(torch.equal, *found))


@pytest.mark.usefixtures("two_ranks")
def test_collectives_get_tensors_of_the_device() -> None:
    """NCCL takes memory of its device, without gaps, and the same number from every rank."""
    with torch.no_grad(), FakeTensorMode(), Watched("c10d") as watched:
        x = torch.empty(4, 3, 5, 5, device="cuda")
        groups = torch.zeros(4, dtype=torch.int64, device="cuda")
        ranks = dist.group.WORLD
        functional.batch_norm(x, training=True, groups=groups, num_groups=2, process_group=ranks)
        mean, rstd = (torch.empty(2, 3, dtype=torch.float64, device="cuda") for _ in range(2))
        given = Problem(x, groups, 2), Epilogue(), Stored(mean, rstd, rstd.new_empty(2, 1))
        autograd._gradients(x, *given, ranks, reference, wants_x=True, wants_sums=True)
    gathered, reduced = watched.seen
    assert gathered[:2] == (
        "c10d.allgather_.default", [(torch.Size([14]), "cuda", torch.float64)] * 3
    )  # fmt: skip
    assert reduced[:2] == (
        "c10d.allreduce_.default", [(torch.Size([2, 2, 3]), "cuda", torch.float64)]
    )  # fmt: skip


@pytest.mark.usefixtures("chosen_on_a_cpu")
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("act", [None, "relu", "leaky_relu", "silu"])
def test_what_torch_does_is_its_own_to_the_bit(act: Any, momentum: float | None) -> None:
    ours = normscope.BatchNorm2d(5, act=act, momentum=momentum)
    theirs = torch.nn.BatchNorm2d(5, momentum=momentum)
    for layer in (ours, theirs):
        torch.manual_seed(0)
        torch.nn.init.normal_(layer.weight)
    activation = getattr(F, act) if act else lambda values: values
    x = [torch.randn(8, 5, 9, 7).requires_grad_() for _ in range(2)]
    dy = torch.randn(8, 5, 9, 7)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        for leaf, recomputed in product(x, (False, True)):
            state = copy.deepcopy(theirs.state_dict())
            found = []
            for layer, call in ((ours, ours), (theirs, lambda v: activation(theirs(v)))):
                layer.load_state_dict(state)
                with normscope.recompute() if recomputed else nullcontext():
                    y = call(leaf)
                    loss = (y.square() * dy).sum()  # keeps y
                found.append(
                    [y.detach(), *torch.autograd.grad(loss, [leaf, layer.weight, layer.bias])]
                )
                found[-1] += [*layer.state_dict().values()]
            for mine, other in zip(*found, strict=True):
                assert torch.equal(mine, other)
