"""The drop-in against torch.nn.BatchNorm: every behaviour a user may rely on."""

import copy
import pickle
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db
from torch.utils.checkpoint import checkpoint

import normscope
from normscope.kernels import cpu
from normscope.kernels.cpu import build

PAIRS = [
    (nn.BatchNorm1d, normscope.BatchNorm1d, (6, 4)),
    (nn.BatchNorm1d, normscope.BatchNorm1d, (5, 4, 3)),
    (nn.BatchNorm2d, normscope.BatchNorm2d, (5, 4, 3, 2)),
    (nn.BatchNorm3d, normscope.BatchNorm3d, (3, 4, 2, 3, 2)),
]
OURS = {theirs: ours for theirs, ours, _ in PAIRS}
INFOS = [info for info in module_db if info.module_cls in OURS]


def twins(theirs: type[nn.Module], ours: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """Both layers with the same random state."""
    a, b = theirs(*args, **kwargs), ours(*args, **kwargs)
    for tensor in [*a.parameters(), *(t for t in a.buffers() if t.is_floating_point())]:
        with torch.no_grad():
            tensor.uniform_(0.5, 2)
    b.load_state_dict(a.state_dict())
    return a, b


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, equal_nan=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("info", INFOS, ids=lambda i: i.module_cls.__name__)
def test_every_sample_of_torchs_own_suite(info: Any, dtype: torch.dtype, training: bool) -> None:
    samples = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=True, training=training
    )
    assert len(samples) >= 6
    for sample in samples:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        a, b = twins(info.module_cls, OURS[info.module_cls], *args, dtype=dtype, **kwargs)
        a.train(training), b.train(training)
        x = sample.forward_input.args[0]
        second = x.detach().clone().requires_grad_()
        y, got = a(x), b(second)
        torch.testing.assert_close(got, y)
        dy = torch.randn_like(y).requires_grad_()
        wants, has = [x, *a.parameters()], [second, *b.parameters()]
        dy2 = dy.detach().clone().requires_grad_()
        first = torch.autograd.grad(y, wants, dy, create_graph=True)
        ours_first = torch.autograd.grad(got, has, dy2, create_graph=True)
        torch.testing.assert_close(ours_first, first)
        cotangents = [torch.randn_like(g) for g in first]
        seconds = torch.autograd.grad(first, [dy, *wants], cotangents, allow_unused=True)
        ours_seconds = torch.autograd.grad(ours_first, [dy2, *has], cotangents, allow_unused=True)
        for ours_2, theirs_2 in zip(ours_seconds, seconds, strict=True):
            # where a second gradient is zero, one side may say None
            if ours_2 is None or theirs_2 is None:
                assert all(g is None or not g.any() for g in (ours_2, theirs_2))
            else:
                torch.testing.assert_close(ours_2, theirs_2)
        assert_same_state(a, b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("info", INFOS, ids=lambda i: i.module_cls.__name__)
def test_every_error_of_torchs_own_suite(info: Any, training: bool) -> None:
    samples = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
    )
    assert samples
    for sample in samples:
        inputs = sample.module_error_input
        layer = OURS[info.module_cls](
            *inputs.constructor_input.args, **inputs.constructor_input.kwargs
        ).train(training)
        theirs = info.module_cls(
            *inputs.constructor_input.args, **inputs.constructor_input.kwargs
        ).train(training)
        try:
            theirs(*inputs.forward_input.args)
        except sample.error_type:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                layer(*inputs.forward_input.args)
        else:
            assert not training  # every sample is an error in training
            layer(*inputs.forward_input.args)


@pytest.mark.parametrize("momentum", [0.1, None, 0.0, 1.0])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("rank", [4, 5])
def test_a_few_steps_in_every_memory_format(rank: int, memory: str, momentum: Any) -> None:
    theirs, ours, shape = PAIRS[rank - 2]
    a, b = twins(theirs, ours, 4, momentum=momentum)
    last = torch.channels_last if rank == 4 else torch.channels_last_3d
    for step in range(3):
        x = torch.randn(shape) + step
        if memory == "channels_last":
            x = x.to(memory_format=last)
        elif memory == "sliced":
            x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
        elif memory == "expanded":
            x = torch.randn(1, *shape[1:]).expand(shape)
        x1, x2 = x.detach().requires_grad_(), x.detach().clone().requires_grad_()
        y, got = a(x1), b(x2 if memory == "contiguous" else x.detach().requires_grad_())
        torch.testing.assert_close(got, y)
        assert got.stride() == y.stride()
    assert_same_state(a, b)


def orders(shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Values of one shape in every order in memory, and parts of larger tensors."""
    found = []
    for order in permutations(range(len(shape))):
        places = [order.index(d) for d in range(len(shape))]
        found.append(torch.randn([shape[d] for d in order]).permute(places))
    last = torch.randn(shape[0], *shape[2:], 2 * shape[1]).movedim(-1, 1)
    return [
        *found, last[:, : shape[1]], torch.randn(1, *shape[1:]).expand(shape),
        torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2],
    ]  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("theirs", "ours", "shape"), PAIRS)
def test_results_lie_in_memory_as_torchs(
    theirs: Any, ours: Any, shape: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So view() works on the one where it works on the other, whoever computes."""
    if not compiled:
        monkeypatch.setattr(cpu, "_OPERATORS", {})
        monkeypatch.setattr(cpu, "_DIRECT", {})
        monkeypatch.setattr(build, "loaded", lambda: False)
        monkeypatch.setattr(build, "obstacle", lambda: "no compiler")
    for x, act, training in product(orders(shape), (None, "relu"), (True, False)):
        a, b = theirs(4).train(training), ours(4, act=act).train(training)
        ends = []
        for layer in (a, b):
            leaf = x.detach().requires_grad_()
            y = layer(leaf)
            y = y.relu() if act and layer is a else y
            ends.append((y.stride(), *(g.stride() for g in torch.autograd.grad(y.sum(), leaf))))
        assert ends[0] == ends[1], (x.stride(), act, training)


def test_signature_repr_and_class_are_torchs() -> None:
    for theirs, ours, _ in PAIRS:
        for kwargs in ({}, {"bias": False}, {"momentum": None}, {"affine": False}):
            a, b = theirs(7, **kwargs), ours(7, **kwargs)
            assert repr(a) == repr(b)
            assert isinstance(b, theirs)
    positional = normscope.BatchNorm2d(3, 1e-3, 0.3, True, False, "cpu", torch.float64)
    assert positional.running_mean is None
    assert positional.weight.dtype == torch.float64
    assert repr(normscope.BatchNorm1d(3, act="relu")).endswith("act='relu')")
    with pytest.raises(ValueError, match="act is 'gelu'; it can be None, 'relu'"):
        normscope.BatchNorm1d(3, act="gelu")


def test_mode_table() -> None:
    for training in (True, False):
        for tracks in (True, False):
            for later in (None, True, False):  # track_running_stats changed after construction
                a, b = twins(nn.BatchNorm1d, normscope.BatchNorm1d, 3, track_running_stats=tracks)
                for layer in (a, b):
                    layer.train(training)
                    if later is not None and tracks:
                        layer.track_running_stats = later
                x = torch.randn(6, 3)
                torch.testing.assert_close(b(x), a(x))
                assert_same_state(a, b)


def test_one_value_per_channel_is_refused_and_changes_nothing() -> None:
    layer = normscope.BatchNorm1d(3)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(
        ValueError,
        match=r"Expected more than 1 value per channel when training, "
        r"got input size torch.Size\(\[1, 3\]\)",
    ):
        layer(torch.randn(1, 3))
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key], value)
    layer.eval()
    layer(torch.randn(1, 3))
    normscope.BatchNorm2d(3)(torch.randn(1, 3, 2, 1))


def test_empty_batch_counts_but_changes_no_statistic() -> None:
    for momentum in (0.1, None):
        a, b = twins(nn.BatchNorm2d, normscope.BatchNorm2d, 3, momentum=momentum)
        x = torch.empty(0, 3, 4, 4, requires_grad=True)
        y = b(x)
        assert y.shape == a(x).shape
        y.sum().backward()
        assert torch.equal(b.weight.grad, torch.zeros(3))
        assert_same_state(a, b)
        assert int(b.num_batches_tracked) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda n: n.BatchNorm1d(4)(torch.ones(2, 4, 3, 3)), ValueError, "expected 2D or 3D input"),
        (lambda n: n.BatchNorm2d(4)(torch.ones(4, 3, 3)), ValueError, "expected 4D input .got 3D"),
        (lambda n: n.BatchNorm3d(4)(torch.ones(4, 3, 3)), ValueError, "expected 5D input"),
        (lambda n: n.BatchNorm1d(3)(torch.ones(2, 4)), RuntimeError, "running_mean should contain 4 elements not 3"),
        (lambda n: n.BatchNorm1d(4)(torch.ones(2, 4).long()), NotImplementedError, '"batch_norm" not implemented for'),
        (lambda n: n.BatchNorm1d(4)(torch.ones(2, 4).cfloat()), NotImplementedError, '"batch_norm" not implemented for'),
        (lambda n: n.BatchNorm1d(4, eps=0)(torch.ones(2, 4)), ValueError, "batch_norm eps must be positive during training"),
        (lambda n: n.BatchNorm1d(4)(torch.ones(2, 4).double()), RuntimeError, "mixed dtype|must share"),
        (lambda n: n.BatchNorm1d(4).double()(torch.ones(2, 4)), RuntimeError, "mixed dtype"),
        (lambda n: n.BatchNorm1d(4).bfloat16()(torch.ones(2, 4)), RuntimeError, "mixed dtype"),
    ],
    ids=range(10),
)  # fmt: skip
def test_errors_are_torchs(call: Any, error: type[Exception], message: str) -> None:
    for library in (nn, normscope):
        with pytest.raises(error, match=message):
            call(library)


def test_eps_zero_is_allowed_in_eval() -> None:
    a, b = twins(nn.BatchNorm1d, normscope.BatchNorm1d, 3, eps=0)
    x = torch.randn(4, 3)
    torch.testing.assert_close(b.eval()(x), a.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half_params", [True, False])
def test_sixteen_bit_inputs(dtype: torch.dtype, half_params: bool) -> None:
    a, b = twins(nn.BatchNorm2d, normscope.BatchNorm2d, 3)
    if half_params:
        a, b = a.to(dtype), b.to(dtype)
    x1 = torch.randn(4, 3, 5, 5).to(dtype).requires_grad_()
    x2 = x1.detach().clone().requires_grad_()
    y, got = a(x1), b(x2)
    dy = torch.randn(y.shape).to(dtype)
    y.backward(dy), got.backward(dy)
    assert got.dtype == dtype
    assert x2.grad is not None
    assert x2.grad.dtype == dtype
    for ours, theirs in zip(b.parameters(), a.parameters(), strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == theirs.dtype
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(got, y, rtol=2e-2, atol=2e-2)
    assert b.running_mean.dtype == a.running_mean.dtype
    assert b.half().num_batches_tracked.dtype == torch.int64


def test_infinity_reaches_the_statistics_as_in_torch() -> None:
    a, b = twins(nn.BatchNorm1d, normscope.BatchNorm1d, 3)
    x = torch.randn(5, 3)
    x[2, 1] = torch.inf
    for layer in (a, b):
        layer(x)
        layer(torch.randn(5, 3))
    assert torch.equal(a.running_mean.isfinite(), b.running_mean.isfinite())
    assert torch.equal(a.running_var.isnan(), b.running_var.isnan())


def test_state_dict_version_and_old_checkpoints() -> None:
    layer = normscope.BatchNorm2d(3)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert state._metadata[""]["version"] == 2
    layer.num_batches_tracked.fill_(5)
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    layer.load_state_dict(state)
    assert int(layer.num_batches_tracked) == 5
    assert list(normscope.BatchNorm2d(3, track_running_stats=False).state_dict()) == [
        "weight",
        "bias",
    ]


def test_statistics_move_under_no_grad_inference_mode_and_recomputation() -> None:
    layer = normscope.BatchNorm1d(3)
    x = torch.randn(6, 3, requires_grad=True)
    with torch.no_grad():
        layer(x)
    with torch.inference_mode():
        layer(x)
    assert int(layer.num_batches_tracked) == 2
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert int(layer.num_batches_tracked) == 4  # as torch: recomputing counts


@pytest.mark.parametrize("frozen", ["weight", "bias", "input", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_only_where_wanted(frozen: str, training: bool) -> None:
    a, b = twins(nn.BatchNorm1d, normscope.BatchNorm1d, 3)
    x = torch.randn(6, 3)
    grads = []
    for layer in (a, b):
        layer.train(training)
        leaf = x.clone().requires_grad_(frozen != "input")
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name != frozen)
        y = layer(leaf)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
        grads.append([leaf.grad, layer.weight.grad, layer.bias.grad])
    for theirs, ours in zip(*grads, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)


def test_hygiene_deepcopy_pickle_class_swap_and_reset() -> None:
    a, b = twins(nn.BatchNorm1d, normscope.BatchNorm1d, 3)
    x = torch.randn(6, 3)
    want = a.eval()(x)
    for twin in (copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
        torch.testing.assert_close(twin.eval()(x), want)
    a.__class__ = normscope.BatchNorm1d
    torch.testing.assert_close(a(x), want)
    b.reset_parameters()
    assert torch.equal(b.weight, torch.ones(3))
    assert int(b.num_batches_tracked) == 0
    pointer = b.running_mean.data_ptr()
    b(x)
    assert b.running_mean.data_ptr() == pointer


def test_functional_call_and_vmap_replacement() -> None:
    model = nn.Sequential(normscope.BatchNorm1d(3))
    with pytest.raises(RuntimeError, match="got a batched tensor as input while the running_mean"):
        torch.vmap(model)(torch.randn(2, 5, 3))
    torch.func.replace_all_batch_norm_modules_(model)
    torch.vmap(model)(torch.randn(2, 5, 3))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_in_one_graph_without_recompiling(momentum: Any) -> None:
    a, b = twins(nn.BatchNorm2d, normscope.BatchNorm2d, 4, momentum=momentum)
    compiled = torch.compile(b, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(4):
        x = torch.randn(3, 4, 5, 5)
        torch.testing.assert_close(compiled(x), a(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert_same_state(a, b)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_exports(training: bool, momentum: Any) -> None:
    a, b = twins(nn.BatchNorm2d, normscope.BatchNorm2d, 4, momentum=momentum)
    a.train(training), b.train(training)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(b, (torch.randn(3, 4, 5, 5),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 4, 5, 5)
    torch.testing.assert_close(program.module()(x), a(x))


def test_inductor_agrees_with_eager() -> None:
    a, b = twins(nn.BatchNorm1d, normscope.BatchNorm1d, 4)
    x1 = torch.randn(9, 4, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    dy = torch.randn(9, 4)
    a(x1).backward(dy)
    torch.compile(b, fullgraph=True)(x2).backward(dy)
    torch.testing.assert_close(x2.grad, x1.grad)
    assert_same_state(a, b)


def test_trains_like_torch_in_a_network() -> None:
    def network(norm: Any) -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 8), norm(8), nn.ReLU(inplace=True), nn.Linear(8, 2))

    x, y = torch.randn(32, 5), torch.randint(0, 2, (32,))
    losses = []
    for norm in (nn.BatchNorm1d, normscope.BatchNorm1d):
        net = network(norm)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0])


def test_residual_and_activation() -> None:
    layer = normscope.BatchNorm1d(3, act="relu")
    x, residual = torch.randn(6, 3), torch.randn(6, 3)
    plain = nn.BatchNorm1d(3)
    torch.testing.assert_close(layer(x, residual), torch.relu(plain(x) + residual))
    with pytest.raises(ValueError, match="residual is"):
        layer(x, residual[:2])
