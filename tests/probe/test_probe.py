"""Finding norms, pairing them with activations, and leaving no trace."""

import contextlib
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope import probe
from normscope.errors import ModelError
from normscope.probe import Call


class Recorder:
    """Keeps copies of what it is told, in order."""

    def __init__(self) -> None:
        self.normed_calls: list[tuple[str, Tensor, Tensor]] = []
        self.activated_calls: list[tuple[str, str, Tensor]] = []
        self.conditions: list[Tensor | None] = []

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        self.normed_calls.append((call.name, before.clone(), after.clone()))
        self.conditions.append(call.condition)

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        self.activated_calls.append((call.name, activation, after.clone()))


def watched(model: nn.Module, *inputs: Tensor) -> Recorder:
    recorder = Recorder()
    with probe.untouched(model), probe.observe(model, probe.find_norms(model), recorder):
        for x in inputs:
            model(x)
    return recorder


Map = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """A linear layer, a norm, and whatever a test puts behind."""

    def __init__(self, behind: Map, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.bn = norm if norm is not None else nn.BatchNorm1d(4)
        self.behind = behind
        if isinstance(norm := self.bn, nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, -2, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.bn(self.first(x)))


BEHIND: dict[str, tuple[Map, str, Map]] = {
    "F.relu": (F.relu, "relu", F.relu),
    "F.relu in place": (lambda y: F.relu(y, inplace=True), "relu", F.relu),
    "F.relu by keyword": (lambda y: F.relu(input=y), "relu", F.relu),
    "torch.relu": (torch.relu, "relu", F.relu),
    "torch.relu_": (torch.relu_, "relu", F.relu),
    "torch.relu by keyword": (lambda y: torch.relu(input=y), "relu", F.relu),
    "Tensor.relu": (lambda y: y.relu(), "relu", F.relu),
    "Tensor.relu_": (lambda y: y.relu_(), "relu", F.relu),
    "Tensor.clamp_": (lambda y: y.clamp_(min=0), "clamp", F.relu),
    "ReLU": (nn.ReLU(), "relu", F.relu),
    "ReLU in place": (nn.ReLU(inplace=True), "relu", F.relu),
    "dropout": (nn.Sequential(nn.Identity(), nn.Dropout(), nn.SiLU()), "silu", F.silu),
    "LeakyReLU": (nn.LeakyReLU(0.01), "leaky_relu", F.leaky_relu),
    "SiLU": (nn.SiLU(inplace=True), "silu", F.silu),
    "GELU": (nn.GELU(), "gelu", F.gelu),
    "Tanh": (nn.Tanh(), "tanh", torch.tanh),
    "torch.sigmoid": (torch.sigmoid, "sigmoid", torch.sigmoid),
    "ELU": (nn.ELU(inplace=True), "elu", F.elu),
    "Hardswish": (nn.Hardswish(), "hardswish", F.hardswish),
    "Hardsigmoid": (nn.Hardsigmoid(), "hardsigmoid", F.hardsigmoid),
    "ReLU6": (nn.ReLU6(), "hardtanh", F.relu6),
    "Softplus": (nn.Softplus(), "softplus", F.softplus),
    "Mish": (nn.Mish(), "mish", F.mish),
}


@pytest.mark.parametrize(("behind", "name", "function"), BEHIND.values(), ids=BEHIND.keys())
def test_activation_is_paired(behind: Map, name: str, function: Map) -> None:
    model, x = Around(behind), torch.randn(5, 3)
    seen = watched(model, x)
    model.eval()
    before = model.first(x)
    after = model.bn(before)
    ((norm, got_before, got_after),) = seen.normed_calls
    ((paired, activation, activated),) = seen.activated_calls
    assert (norm, paired, activation) == ("bn", "bn", name)
    torch.testing.assert_close(got_before, before)
    torch.testing.assert_close(got_after, after)  # also where the activation overwrites it
    assert bool((got_after < 0).any())
    torch.testing.assert_close(activated, function(after))


@pytest.mark.parametrize(
    "behind",
    [
        nn.Identity(),
        nn.Linear(4, 2),
        lambda y: F.relu(y + 1),
        lambda y: F.relu(y.add_(1)),
        lambda y: F.relu(y.unsqueeze(0)),
        lambda y: (y, F.relu(torch.ones(3)))[0],
    ],
    ids=["identity", "linear", "sum", "sum in place", "view", "elsewhere"],
)
def test_no_activation_on_the_output_itself_is_no_pair(behind: Map) -> None:
    seen = watched(Around(behind), torch.randn(5, 3))
    assert len(seen.normed_calls) == 1
    assert seen.activated_calls == []


def test_first_activation_counts() -> None:
    seen = watched(Around(lambda y: torch.sigmoid(y) * torch.tanh(y)), torch.randn(5, 3))
    assert [(norm, act) for norm, act, _ in seen.activated_calls] == [("bn", "sigmoid")]


class Activating(nn.BatchNorm1d):
    """Activates inside, in place, as timm's BatchNormAct2d does."""

    def forward(self, input: Tensor) -> Tensor:
        y = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return F.dropout(y, 0.5, training=False).relu_()


class ScalingOutside(nn.BatchNorm1d):
    """Normalises with F.batch_norm and maps by hand: its output is the scaled and shifted one."""

    def forward(self, input: Tensor) -> Tensor:
        z = F.batch_norm(input, self.running_mean, self.running_var, None, None, False)
        y: Tensor = z * self.weight + self.bias
        return y


def test_activation_inside_the_layer() -> None:
    model, x = Around(nn.Identity(), Activating(4)), torch.randn(5, 3)
    seen = watched(model, x)
    ((_, _, after),) = seen.normed_calls
    ((_, name, activated),) = seen.activated_calls
    assert name == "relu"
    assert bool((after < 0).any())
    torch.testing.assert_close(activated, after.relu())


def test_layer_that_maps_outside_of_the_function() -> None:
    model, x = Around(nn.ReLU(inplace=True), ScalingOutside(4)), torch.randn(5, 3)
    seen = watched(model, x)
    model.eval()
    torch.testing.assert_close(seen.normed_calls[0][2], model.bn(model.first(x)))
    assert [name for _, name, _ in seen.activated_calls] == ["relu"]


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "silu"])
def test_our_fused_activation_is_taken_apart(act: Any) -> None:
    norm = normscope.BatchNorm1d(4, act=act)
    model, x = Around(nn.Identity(), norm), torch.randn(5, 3)
    seen = watched(model, x)
    plain = nn.BatchNorm1d(4)
    plain.load_state_dict(norm.state_dict())
    expected = plain.eval()(model.first(x))
    torch.testing.assert_close(seen.normed_calls[0][2], expected)
    ((_, name, activated),) = seen.activated_calls
    assert name == act
    torch.testing.assert_close(activated, getattr(F, act)(expected))


def test_our_residual_is_not_part_of_the_layer() -> None:
    norm = normscope.BatchNorm1d(4, act="relu")
    model, x = Around(nn.Identity(), norm), torch.randn(5, 3)
    model.forward = lambda x: norm(model.first(x), torch.ones(5, 4))  # type: ignore[method-assign]
    seen = watched(model, x)
    norm.eval()
    norm.act = None
    torch.testing.assert_close(seen.normed_calls[0][2], norm(model.first(x)))
    assert seen.activated_calls == []


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.bn(F.relu(self.bn(x)) + 1))


def test_reused_layer_is_counted_per_forward() -> None:
    seen = watched(Twice(), torch.randn(5, 3), torch.randn(2, 3))
    assert [name for name, _, _ in seen.normed_calls] == ["bn", "bn#2"] * 2
    assert [(n, a) for n, a, _ in seen.activated_calls] == [("bn", "relu"), ("bn#2", "tanh")] * 2


def test_condition_is_seen_however_it_is_given() -> None:
    layer, ids = normscope.ConditionalBatchNorm1d(3, 2), torch.tensor([0, 1, 1])
    recorder, x = Recorder(), torch.randn(3, 3)
    with probe.untouched(layer), probe.observe(layer, probe.find_norms(layer), recorder):
        layer(x, ids)
        layer(x, condition=ids)
        with normscope.condition(ids):
            layer(x)
    assert [name for name, _, _ in recorder.normed_calls] == ["ConditionalBatchNorm1d"] * 3
    assert all(given is ids for given in recorder.conditions)


def test_a_layer_that_calls_itself_is_one_call() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 2, missing=1)
    for model in (layer, nn.Sequential(layer, nn.ReLU())):
        seen = watched(model, torch.randn(4, 3))
        assert len(seen.normed_calls) == 1
        assert seen.conditions == [None]
    assert [name for _, name, _ in seen.activated_calls] == ["relu"]


def test_no_output_is_kept_alive() -> None:
    class Checks(Twice):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(x)
            alive = weakref.ref(y)
            y = y + 1
            assert alive() is None, "the observer holds an activation"
            return y

    assert len(watched(Checks(), torch.randn(5, 3)).normed_calls) == 1


def test_a_forward_that_raises_inside_a_model_that_goes_on() -> None:
    class Forgiving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return F.relu(self.a(x))
            except RuntimeError:
                return F.relu(self.b(x))

    seen = watched(Forgiving(), torch.randn(5, 3))
    assert [name for name, _, _ in seen.normed_calls] == ["b"]
    assert [name for name, _, _ in seen.activated_calls] == ["b"]


def test_a_layer_that_survives_the_failure_of_one_inside_it() -> None:
    class Outer(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(3)
            self.inner = nn.BatchNorm1d(4)

        def forward(self, input: Tensor) -> Tensor:
            with contextlib.suppress(RuntimeError):
                self.inner(input)
            return super().forward(input)

    seen = watched(nn.Sequential(Outer(), nn.ReLU()), torch.randn(5, 3))
    assert [name for name, _, _ in seen.normed_calls] == ["0"]


class Frozen(nn.Module):
    """As torchvision's and detectron2's: buffers only, no batch norm class."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(2))


def test_every_norm_is_found_once() -> None:
    shared = nn.BatchNorm1d(2)
    model = nn.ModuleDict(
        {
            "bn1": shared,
            "again": shared,
            "bn2": nn.BatchNorm2d(2),
            "bn3": nn.BatchNorm3d(2),
            "sync": nn.SyncBatchNorm(2),
            "frozen": Frozen(),
            "ours": normscope.BatchNorm2d(2),
            "conditional": normscope.ConditionalBatchNorm2d(2, 3),
            "subclass": Activating(2),
            "tracking": nn.InstanceNorm2d(2, track_running_stats=True),
            "untracked": nn.BatchNorm2d(2, track_running_stats=False),
            "untracked2": normscope.ConditionalBatchNorm2d(2, 3, track_running_stats=False),
            "instance": nn.InstanceNorm2d(2),
            "group": nn.GroupNorm(1, 2),
            "layer": nn.LayerNorm(2),
            "linear": nn.Linear(2, 2),
        }
    )
    found = {norm.name: norm.skipped for norm in probe.find_norms(model)}
    assert found == {
        **dict.fromkeys(["bn1", "bn2", "bn3", "sync", "frozen", "ours", "conditional"]),
        **dict.fromkeys(["subclass", "tracking"]),
        **dict.fromkeys(["untracked", "untracked2"], "lens.skip.no_statistics"),
        **dict.fromkeys(["instance", "group", "layer"], "lens.skip.per_sample"),
    }


class Meddling(nn.Module):
    """Does in its forward whatever could leave a trace."""

    def __init__(self, problem: BaseException | None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.frozen.weight.requires_grad_(False)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.zeros(1))
        self.bn.register_forward_hook(lambda module, args, output: None)
        self.problem = problem
        self.mode_changes = 0

    def train(self, mode: bool = True) -> "Meddling":
        self.mode_changes += 1
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        self.calls += 1
        self.last = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
        torch.set_grad_enabled(True)
        y: Tensor = self.frozen(self.bn(x))
        if self.problem is not None:
            raise self.problem
        return y


def snapshot(model: Meddling) -> list[object]:
    state = [(name, tensor, tensor.clone()) for name, tensor in model.state_dict().items()]
    return [
        [(name, tensor.data_ptr(), copy.tolist()) for name, tensor, copy in state],
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [dict(m.__dict__["_forward_hooks_with_kwargs"]) for m in model.modules()],
        [dict(m.__dict__["_forward_pre_hooks_with_kwargs"]) for m in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        model.mode_changes,
        torch.overrides._get_current_function_mode_stack(),
    ]


@pytest.mark.parametrize(
    "problem", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=["none", "error", "ctrl-c"]
)
def test_no_trace_is_left(problem: BaseException | None) -> None:
    model = Meddling(problem)
    before = snapshot(model)
    if problem is None:
        watched(model, torch.ones(4, 3))
    else:
        with pytest.raises(type(problem)):
            watched(model, torch.ones(4, 3))
    assert snapshot(model) == before


def test_a_lazy_model_is_refused_unchanged() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with (
        pytest.raises(ModelError, match="0.weight has no shape yet"),
        probe.untouched(model),
    ):
        pass
    assert model.training


def test_culprit_is_the_innermost_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(RuntimeError) as raised:
        model(torch.ones(1, 3))
    assert probe.culprit(model, raised.value) == "layer 1.0 (Linear)"


class Swish(nn.Module):
    """Somebody's own activation: a function inside it is not all of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class InsideSwish(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(4)
        self.act = Swish()

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(input))
        return y


@pytest.mark.parametrize("inside", [False, True])
def test_an_activation_module_of_ones_own_is_taken_whole(inside: bool) -> None:
    norm = InsideSwish() if inside else None
    model, x = Around(nn.Identity() if inside else Swish(), norm), torch.randn(5, 3)
    seen = watched(model, x)
    model.eval()
    plain = nn.BatchNorm1d(4).eval()
    plain.load_state_dict(model.bn.state_dict())
    y = plain(model.first(x))
    ((_, _, after),) = seen.normed_calls
    ((_, name, activated),) = seen.activated_calls
    assert name == "swish"
    torch.testing.assert_close(after, y)
    torch.testing.assert_close(activated, F.silu(y))


COPIES: dict[str, Map] = {
    "clone": lambda y: y.clone(),
    "strides": lambda y: y.t().contiguous().t(),
    "detach": lambda y: y.detach(),
    "bfloat16 and back": lambda y: y.double().float(),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize(
    "act", [F.relu, nn.ReLU(inplace=True), Swish()], ids=["function", "module", "own"]
)
def test_execution_order_pairs_what_was_copied(copy: Map, act: Map) -> None:
    seen = watched(Around(lambda y: act(copy(y))), torch.randn(40, 3))
    assert [norm for norm, _, _ in seen.activated_calls] == ["bn"]
    changed = watched(Around(lambda y: act(copy(y) + 1)), torch.randn(40, 3))
    assert changed.activated_calls == []


def test_names_without_wrappers() -> None:
    inner = Around(F.relu)
    wrapped = nn.DataParallel(inner)
    compiled = torch.compile(wrapped, backend="eager")
    part = nn.Sequential(nn.Linear(3, 4), torch.compile(nn.BatchNorm1d(4), backend="eager"))  # type: ignore[call-overload]
    for model in (inner, wrapped, compiled):
        assert [norm.name for norm in probe.find_norms(model)] == ["bn"]
        assert probe.bare(model) is inner
    assert [norm.name for norm in probe.find_norms(part)] == ["1"]
    failing = torch.compile(nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 3)), backend="eager")
    with pytest.raises(RuntimeError) as raised:
        probe.bare(failing)(torch.ones(1, 3))
    assert probe.culprit(failing, raised.value) == "layer 1 (Linear)"


def test_a_compiled_model_is_observed_as_it_was_written() -> None:
    traced: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(len(inputs))
        return graph.forward

    model = Around(nn.ReLU())
    model.bn = torch.compile(model.bn, backend=backend)  # type: ignore[assignment]
    whole, x = torch.compile(model, backend=backend), torch.randn(5, 3)
    recorder = Recorder()
    with probe.untouched(whole), probe.observe(whole, probe.find_norms(whole), recorder):
        whole(x)
    assert [name for name, _, _ in recorder.normed_calls] == ["bn"]
    assert [name for _, name, _ in recorder.activated_calls] == ["relu"]
    assert not traced
    with torch.no_grad():
        whole(x)
    assert traced  # and compiles again afterwards
    torch.compiler.reset()


def test_norms_that_are_nobodys_classes() -> None:
    class RmsNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight
            return y

    (norm,) = probe.find_norms(nn.Sequential(RmsNorm(), nn.Linear(3, 3)))
    assert norm.skipped == "lens.skip.per_sample"


def test_grad_flags_come_back() -> None:
    class Unfreezes(Twice):
        def forward(self, x: Tensor) -> Tensor:
            self.bn.weight.requires_grad_(False)
            self.bn.bias.requires_grad_(True)
            return super().forward(x)

    model = Unfreezes()
    model.bn.bias.requires_grad_(False)
    watched(model, torch.randn(3, 3))
    assert model.bn.weight.requires_grad
    assert not model.bn.bias.requires_grad
