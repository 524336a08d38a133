import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.errors import InputError

CLASSES = [
    (normscope.ConditionalBatchNorm1d, nn.BatchNorm1d, (11, 4)),
    (normscope.ConditionalBatchNorm1d, nn.BatchNorm1d, (11, 4, 3)),
    (normscope.ConditionalBatchNorm2d, nn.BatchNorm2d, (11, 4, 2, 3)),
    (normscope.ConditionalBatchNorm3d, nn.BatchNorm3d, (11, 4, 2, 1, 2)),
]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("ours", "plain", "shape"), CLASSES)
def test_equals_a_loop_of_plain_layers(
    ours: Any, plain: Any, shape: tuple[int, ...], momentum: Any
) -> None:
    layer = ours(4, 3, momentum=momentum).double()
    nn.init.uniform_(layer.weight), nn.init.normal_(layer.bias)
    loop = [plain(4, momentum=momentum).double() for _ in range(3)]
    for k, one in enumerate(loop):
        one.weight.data.copy_(layer.weight[k])
        one.bias.data.copy_(layer.bias[k])
    for step in range(3):
        ids = torch.randint(0, 2 if step == 0 else 3, (11,))  # the last is absent at first
        ids[:4] = torch.tensor([0, 0, 1, 1])
        x = torch.randn(shape, dtype=torch.double, requires_grad=True)
        dy = torch.randn(shape, dtype=torch.double)
        y = layer(x, ids)
        want = torch.empty_like(y)
        for k, one in enumerate(loop):
            here = ids == k
            if here.sum() * x[0, 0].numel() > 1:
                want[here] = one(x[here])
            elif here.any():  # one value: filled up with a running one, no update
                mean = (x[here] + one.running_mean) / 2
                spread = (one.running_var + (x[here] - one.running_mean) ** 2 / 2) / 2
                want[here] = (x[here] - mean) / (spread + 1e-5).sqrt() * one.weight + one.bias
        torch.testing.assert_close(y, want)
        got = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
        each = torch.autograd.grad(
            want, [x, *(p for one in loop for p in (one.weight, one.bias))], dy, allow_unused=True
        )
        torch.testing.assert_close(got[0], each[0])
        for k in range(3):
            for mine, theirs in ((got[1], each[1 + 2 * k]), (got[2], each[2 + 2 * k])):
                torch.testing.assert_close(
                    mine[k], torch.zeros(4).double() if theirs is None else theirs
                )
    for k, one in enumerate(loop):
        torch.testing.assert_close(layer.running_mean[k], one.running_mean)
        torch.testing.assert_close(layer.running_var[k], one.running_var)
    layer.eval()
    x, ids = torch.randn(shape).double(), torch.randint(0, 3, (11,))
    want = torch.stack([loop[k].eval()(x[i : i + 1])[0] for i, k in enumerate(ids.tolist())])
    torch.testing.assert_close(layer(x, ids), want)


@pytest.mark.parametrize("stats", ["condition", "shared"])
@pytest.mark.parametrize("affine", ["condition", "shared", "none"])
def test_shapes_of_what_is_kept(stats: Any, affine: Any) -> None:
    layer = normscope.ConditionalBatchNorm1d(4, 3, stats=stats, affine=affine)
    state = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    wide = (3, 4) if stats == "condition" else (4,)
    want: dict[str, tuple[int, ...]] = {} if affine == "none" else {
        "weight": (3, 4) if affine == "condition" else (4,),
        "bias": (3, 4) if affine == "condition" else (4,),
    }  # fmt: skip
    want |= {"running_mean": wide, "running_var": wide, "num_batches_tracked": wide[:-1]}
    assert state == want
    x = torch.randn(6, 4, requires_grad=True)
    layer(x, torch.tensor([0, 0, 1, 1, 2, 2])).sum().backward()
    layer.eval()(x, torch.zeros(6, dtype=torch.long))


def test_shared_everything_is_plain_batch_norm() -> None:
    layer = normscope.ConditionalBatchNorm2d(3, 5, stats="shared", affine="shared")
    plain = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(layer(x, torch.tensor([0, 4, 2, 0])), plain(x))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)


def test_one_condition_for_all_samples_is_plain_batch_norm() -> None:
    layer, plain = normscope.ConditionalBatchNorm1d(3, 2), nn.BatchNorm1d(3)
    x = torch.randn(6, 3)
    assert torch.equal(layer(x, torch.ones(6).long()), normscope.BatchNorm1d(3)(x))
    torch.testing.assert_close(layer.running_var[1], plain(x).new_tensor(0) + plain.running_var)


def test_absent_condition_keeps_everything_bit_for_bit() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 3)
    nn.init.uniform_(layer.running_var, 0.1, 7)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(6, 3)
    layer(x, torch.tensor([0, 2, 0, 2, 0, 2])).square().sum().backward()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(layer.state_dict()[name][1], before[name][1])
    assert layer.num_batches_tracked.tolist() == [1, 0, 1]
    assert layer.weight.grad is not None
    assert (layer.weight.grad[1] == 0).all()


def test_permuting_samples_and_renaming_conditions() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 3).double()
    nn.init.normal_(layer.weight)
    renamed = copy.deepcopy(layer)
    names = torch.tensor([2, 0, 1])
    renamed.weight.data[names] = layer.weight.data
    x, ids, order = torch.randn(9, 3).double(), torch.arange(9) % 3, torch.randperm(9)
    y = layer(x, ids)
    torch.testing.assert_close(renamed(x[order], names[ids[order]]), y[order])
    torch.testing.assert_close(renamed.running_var[names], layer.running_var)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 4), normscope.ConditionalBatchNorm1d(4, 2), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def test_condition_reaches_layers_inside_a_model() -> None:
    net = Deep()
    x, ids = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    with normscope.condition(ids):
        y = net(x)
        with normscope.condition(1 - ids):
            assert not torch.equal(net.eval()(x), y)
            net.train()
        torch.testing.assert_close(net(x), y)
    want = net.body[2](net.body[1](net.body[0](x), ids))
    torch.testing.assert_close(y, want)
    with pytest.raises(InputError, match="no condition: call the layer with one"):
        net(x)


def test_condition_ends_with_an_exception_and_is_each_threads_own() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 2)
    with pytest.raises(RuntimeError, match="boom"), normscope.condition(torch.tensor([0, 1])):
        raise RuntimeError("boom")
    with pytest.raises(InputError, match="no condition"):
        layer(torch.randn(2, 3))
    failures: list[str] = []

    def other() -> None:
        try:
            layer(torch.randn(4, 3))
        except InputError as problem:
            failures.append(str(problem))

    with normscope.condition(torch.tensor([0, 1, 0, 1])):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(failures) == 1


def test_a_plain_checkpoint_loads_and_pools_back() -> None:
    plain = nn.BatchNorm1d(4)
    for _ in range(3):
        plain(torch.randn(8, 4) * 2 + 1)
    nn.init.normal_(plain.weight)
    net = nn.Sequential(normscope.ConditionalBatchNorm1d(4, 3))
    net.load_state_dict({f"0.{key}": value for key, value in plain.state_dict().items()})
    layer = net[0]
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer.eval()(x, torch.tensor([0, 1, 2, 1, 0])), plain.eval()(x))
    for key, value in layer.pooled().items():
        if key != "num_batches_tracked":
            torch.testing.assert_close(value, plain.state_dict()[key])


def test_pooled_follows_the_law_of_total_variance() -> None:
    layer = normscope.ConditionalBatchNorm1d(1, 2, missing="pooled", affine="none")
    layer.running_mean.copy_(torch.tensor([[53.0], [5.0]]))
    layer.running_var.fill_(5.0)
    layer.num_batches_tracked.fill_(1)
    pooled = layer.pooled()
    torch.testing.assert_close(pooled["running_mean"], torch.tensor([29.0]))
    torch.testing.assert_close(pooled["running_var"], torch.tensor([581.0]))  # 5 + 24^2
    x = torch.tensor([[53.0], [5.0]])
    want = (x - 29) / (581 + 1e-5) ** 0.5
    torch.testing.assert_close(layer.eval()(x), want)
    with pytest.raises(InputError, match="no condition"):
        layer.train()(x)


def test_without_a_condition_scale_and_shift_still_learn() -> None:
    layer = normscope.ConditionalBatchNorm1d(2, 4, missing="pooled").double().eval()
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_()
    x, cotangent = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    (layer(x) * cotangent).sum().backward()
    for found, share in ((layer.weight, x / (1 + layer.eps) ** 0.5), (layer.bias, 1)):
        of_each = (cotangent * share).sum(0) / 4  # of a mean over four conditions
        torch.testing.assert_close(found.grad, of_each.expand(4, 2))


def test_compiles_and_exports() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 2)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, ids = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    torch.testing.assert_close(compiled(x, ids), eager(x, ids))
    torch.testing.assert_close(layer.running_var, eager.running_var)
    net = Deep()
    fast = torch.compile(net, fullgraph=True, backend="aot_eager")
    for condition in (ids, 1 - ids):
        with normscope.condition(condition):
            torch.testing.assert_close(fast(x), net(x))
    program = torch.export.export(eager.eval(), (x, ids))
    torch.testing.assert_close(program.module()(x, ids), eager(x, ids))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stats": "both"}, "stats is 'both'; it can be 'condition', 'shared'"),
        ({"affine": "yes"}, "affine is 'yes'"),
        ({"missing": "guess"}, "missing is 'guess'"),
        ({"num_conditions": 0}, "num_conditions is 0; at least 1"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        normscope.ConditionalBatchNorm1d(3, **{"num_conditions": 2, **kwargs})


def test_bad_conditions() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 2)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"group 9 of sample 3 is outside 0\.\.1"):
        layer(x, torch.tensor([0, 1, 0, 9]))
    with pytest.raises(ValueError, match="one per sample"):
        layer(x, torch.tensor([0]))
    with pytest.raises(TypeError, match="must be integers"):
        layer(x, torch.eye(4)[:, 0])
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key], value)
    layer(x, torch.tensor([0, 1, 0, 1], dtype=torch.uint8))


def test_loading_may_assign_what_it_broadcasts() -> None:
    plain, layer = nn.BatchNorm1d(3), normscope.ConditionalBatchNorm1d(3, 2)
    layer.load_state_dict(plain.state_dict(), assign=True)
    layer(torch.randn(6, 3), torch.arange(6) % 2).square().sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    assert not torch.equal(layer.running_mean[0], layer.running_mean[1])  # rows of their own


def test_made_on_the_meta_device_and_reset() -> None:
    with torch.device("meta"):
        layer = normscope.ConditionalBatchNorm1d(3, 2, missing="infer")
        assert layer(torch.randn(6, 3), torch.zeros(6, dtype=torch.long)).shape == (6, 3)
    layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.fill_(7)  # what was in the memory
    layer.reset_parameters()
    fresh = normscope.ConditionalBatchNorm1d(3, 2, missing="infer")
    torch.testing.assert_close(dict(layer.named_buffers()), dict(fresh.named_buffers()))
    torch.testing.assert_close(layer.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("given", [[0, 1], np.array([0, 1]), 1], ids=["list", "numpy", "number"])
def test_groups_and_masks_that_are_no_tensors(given: Any) -> None:
    layer, x = normscope.ConditionalBatchNorm1d(3, 2), torch.randn(2, 3)
    with pytest.raises(TypeError, match=f"groups is a {type(given).__name__}; give a torch.Tensor"):
        layer(x, given)
    with pytest.raises(TypeError, match=f"mask is a {type(given).__name__}; give a torch.Tensor"):
        layer(x, torch.arange(2), mask=given)


@pytest.mark.parametrize("name", ["conditional", "frozen"])
def test_a_checkpoint_need_not_have_the_counter(name: str) -> None:
    layer: nn.Module = normscope.FrozenBatchNorm1d(3, act="silu")
    if name == "conditional":
        layer = normscope.ConditionalBatchNorm1d(3, 2)
    else:
        assert repr(layer) == "FrozenBatchNorm1d(3, eps=1e-05, act='silu')"
    state = {key: torch.rand(3) for key in ("weight", "bias", "running_mean", "running_var")}
    net = nn.Sequential(layer)
    net.load_state_dict({f"0.{key}": value for key, value in state.items()})
    for key, value in state.items():
        torch.testing.assert_close(getattr(layer, key), value.expand_as(getattr(layer, key)))
    with pytest.raises(RuntimeError, match="running_var"):
        net.load_state_dict({f"0.{key}": state[key] for key in ("weight", "bias", "running_mean")})
