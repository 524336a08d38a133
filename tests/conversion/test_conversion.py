"""convert: every pair of the family, in place, verified, reversible; and what is refused."""

import copy
import pickle
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope import guard
from normscope.conversion import KINDS, Conversion, convert, kinds
from normscope.errors import InputError, ModelError

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost": {"ghost_size": 4},
    "conditional": {"num_conditions": 3},
    "mode": {"num_modes": 2},
    "group": {"num_groups": 2},
}
FAMILY = [kind for kind in KINDS if kind != "group"]


def network() -> Any:
    """Trained a little, so that no statistic or parameter is at its start."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6, momentum=None, affine=False),
        nn.ReLU(),
        nn.Flatten(2),
        nn.BatchNorm1d(6),
        nn.Flatten(),
        nn.Linear(96, 4),
    )
    model[7].register_parameter("bias", None)  # as bias=False from torch 2.13 on
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(2 * torch.randn(8, 3, 8, 8) + 1).square().mean().backward()
        optimizer.step()
    return model


def made_of(model: Any, kind: str) -> Any:
    """The network with all its norms of one kind; mode has always weight and bias."""
    if kind == "mode":
        model[4], model[7] = nn.BatchNorm2d(6, momentum=0.3), nn.BatchNorm1d(6)
    convert(model, kind, **OPTIONS.get(kind, {}))
    return model


def state(model: nn.Module) -> list[tuple[Any, ...]]:
    """All of a model that a conversion must give back."""
    found: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        found.append((name, id(module), type(module), module.training, module.extra_repr()))
        hooks = [id(hook) for hook in module._forward_hooks.values()]
        found.append((hooks, getattr(module, "qconfig", None), sorted(module.__dict__)))
        for key, parameter in module._parameters.items():
            what = None if parameter is None else (id(parameter), parameter.requires_grad)
            found.append((key, what, None if parameter is None else parameter.tolist()))
        for key, buffer in module._buffers.items():
            found.append((key, None if buffer is None else (buffer.dtype, buffer.tolist())))
    return found


@pytest.mark.parametrize(("source", "to"), list(permutations(FAMILY, 2)))
def test_every_pair_is_equal_in_eval_and_reverts(source: str, to: str) -> None:
    model = network()
    if "mode" in (source, to):
        model = made_of(model, "mode")
        convert(model, "torch")
    model = made_of(model, source)
    dims = 2 if source == "sync" else None
    if source == "sync":
        model[6], model[7] = nn.Identity(), nn.SyncBatchNorm(6)
    before = state(model)
    x = torch.randn(8, 3, 8, 8)
    conversion = convert(model, to, dims=dims, **OPTIONS.get(to, {}))
    assert len(conversion.changed) == 3
    assert not conversion.kept
    result = conversion.verify(x)
    assert result.ok, result
    checked = [c for c in result.comparisons if c.allowed is not None]
    assert {c.mode for c in checked} >= {"eval"}
    if {source, to} <= {"torch", "batch"}:
        assert len(checked) == 6, "training is compared too"
    assert conversion.revert() is model
    assert state(model) == before


def test_the_difference_of_a_wrong_conversion_is_found() -> None:
    model = network()
    conversion = convert(model, "batch")
    model[1].eps = 1.1e-3
    assert not conversion.verify(torch.randn(8, 3, 8, 8)).ok
    model[1].eps = 1e-3
    assert conversion.verify(torch.randn(8, 3, 8, 8)).ok
    with torch.no_grad():
        model[7].running_var[0] *= 1.001
    assert conversion.verify(torch.randn(8, 3, 8, 8)).ok, "what both share is no difference"


def test_an_optimizer_hooks_and_shared_layers_go_on() -> None:
    shared: Any = nn.BatchNorm2d(4)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared)
    model[1].weight.requires_grad_(False)
    shared.eval()
    shared.qconfig = "mine"
    calls: list[nn.Module] = []
    shared.register_forward_hook(lambda module, args, y: calls.append(module))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    conversion = convert(model, "batch")
    assert [c.name for c in conversion.changed] == ["1"]
    assert type(model[1]) is normscope.BatchNorm2d
    assert model[1] is model[3] is shared
    assert not shared.training
    assert not shared.weight.requires_grad
    x = torch.randn(5, 3, 4, 4)
    for net, steps in ((model, optimizer), (twin, twin_optimizer)):
        for _ in range(3):
            steps.zero_grad()
            net(x).square().mean().backward()
            steps.step()
    assert sum(module is shared for module in calls) == 6
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left, right)
    conversion.revert()
    assert type(shared) is nn.BatchNorm2d
    assert shared.qconfig == "mine"


@pytest.mark.parametrize("kind", ["batch", "ghost"])
def test_buffers_that_were_replaced_since_stay_on_revert(kind: str) -> None:
    model = network()
    conversion = convert(model, kind, **OPTIONS.get(kind, {}))
    model.double().train()(torch.randn(8, 3, 8, 8).double())
    now = {name: value.clone() for name, value in model.state_dict().items()}
    assert type(conversion.revert()[1]) is nn.BatchNorm2d
    for name, value in model.state_dict().items():
        assert value.dtype in (torch.float64, torch.int64), name
        assert torch.equal(value, now[name]), name


def test_revert_gives_gradients_back_where_parameters_changed_their_shape() -> None:
    model = network()
    model[1].weight.requires_grad_(True)
    model(torch.randn(8, 3, 8, 8)).square().mean().backward()
    before = {n: (p, p.grad.clone()) for n, p in model.named_parameters()}
    conversion = convert(model, "conditional", num_conditions=3)
    assert model[1].weight.shape == (3, 8)
    assert model[1].weight.grad is None, "it has another shape"
    conversion.revert()
    for name, parameter in model.named_parameters():
        old, gradient = before[name]
        assert parameter is old
        assert parameter.grad is not None, name
        assert torch.equal(parameter.grad, gradient), name


def test_what_was_trained_since_stays_on_revert() -> None:
    model = network()
    for kind in ("batch", "frozen"):
        conversion = convert(model, kind)
        with torch.no_grad():
            model[1].running_mean += 1
            model[1].weight *= 2
        weight, mean = model[1].weight.clone(), model[1].running_mean.clone()
        model.double()
        conversion.revert()
        assert type(model[1]) is nn.BatchNorm2d
        assert isinstance(model[1].weight, nn.Parameter)
        assert torch.equal(model[1].weight, weight.double())
        assert torch.equal(model[1].running_mean, mean.double())
        model.float()


def test_conditions_that_differ_are_pooled_and_say_so() -> None:
    model: Any = nn.Sequential(normscope.ConditionalBatchNorm2d(3, 2))
    ids = torch.tensor([0, 0, 1, 1])
    shift = 5.0 * ids.view(-1, 1, 1, 1)
    for _ in range(3):
        model[0](torch.randn(4, 3, 5, 5) + shift, ids)
    before = model[0].running_var.clone()
    expected = {k: v.clone() for k, v in model[0].pooled().items()}
    conversion = convert(model, "torch")
    assert [c.equal for c in conversion.changed] == ["never"]
    assert conversion.verify(torch.randn(4, 3, 5, 5)).comparisons[0].allowed is None
    for key, value in model[0].state_dict().items():
        assert torch.equal(value, expected[key]), key
    within = max(row.max() for row in before)
    assert expected["running_var"].min() > 1.2 * within, "the distance of conditions is part of it"


def test_group_norm_is_another_function_and_says_so() -> None:
    model = network()
    weight = model[1].weight
    conversion = convert(model, "group", num_groups=2, only=["1"])
    assert isinstance(model[1], nn.GroupNorm)
    assert model[1].weight is weight
    assert [c.equal for c in conversion.changed] == ["never"]
    result = conversion.verify(torch.randn(8, 3, 8, 8))
    assert result.comparisons[0].difference > 0.1
    kept = convert(model, "batch").kept
    assert [(left.name, left.layer) for left in kept] == [("1", "GroupNorm")]
    assert "no batch norm equals it" in kept[0].reason


def test_instance_norm_with_statistics_is_frozen_exactly() -> None:
    norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    norm(torch.randn(4, 3, 5, 5) + 2)
    x = torch.randn(4, 3, 5, 5)
    expected = norm.eval()(x)
    conversion = convert(norm, "frozen")
    assert conversion.verify(x).ok
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm.train()(x), expected)
    with pytest.raises(ModelError, match="each sample has its own"):
        convert(nn.InstanceNorm2d(3), "frozen")


def test_instance_norms_are_kept_unless_they_are_named() -> None:
    model = nn.Sequential(
        nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3), nn.InstanceNorm2d(3)
    )
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 5, 5) + 2
    conversion = convert(model, "batch")
    assert [change.name for change in conversion.changed] == ["1"]
    assert [left.name for left in conversion.kept] == ["0", "2"]
    assert all("name it in only=" in left.reason for left in conversion.kept)
    for _ in range(3):
        torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    asked = convert(model, "batch", only=["0"])
    assert [(change.name, change.equal) for change in asked.changed] == [("0", "eval")]
    with pytest.raises(ModelError, match="each sample has its own"):
        convert(model, "batch", only=["2"])


class Named(nn.BatchNorm2d):
    def describe(self) -> str:
        return f"{self.num_features} channels"


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_keeps_what_it_adds() -> None:
    model = nn.Sequential(Named(3))
    conversion = convert(model, "batch")
    assert isinstance(model[0], Named)
    assert isinstance(model[0], normscope.BatchNorm2d)
    assert model[0].describe() == "3 channels"
    assert conversion.verify(torch.randn(4, 3, 2, 2)).ok
    again = pickle.loads(pickle.dumps(model))
    assert type(again[0]) is type(model[0])
    convert(model, "torch")
    assert type(model[0]) is Named


def lazy() -> Any:
    return nn.LazyBatchNorm2d()


def guarded() -> Any:
    layer = normscope.BatchNorm2d(3)
    layer.set_policy(normscope.Policy(update="never"))
    return layer


REFUSED = [
    (lambda: Doubling(3), "batch", {}, "class Doubling has a forward of its own"),
    (lazy, "batch", {}, "run the model once"),
    (guarded, "torch", {}, "end the guard"),
    (lambda: nn.SyncBatchNorm(3), "batch", {}, "give dims=2"),
    (lambda: normscope.BatchNorm2d(3, act="relu"), "torch", {}, "activates by itself"),
    (lambda: nn.BatchNorm2d(3, track_running_stats=False), "frozen", {}, "no running statistics"),
    (lambda: nn.BatchNorm2d(3, affine=False), "mode", {"num_modes": 2}, "no weight or no bias"),
    (lambda: Named(3), "frozen", {}, "user's own"),
    (
        lambda: nn.BatchNorm2d(3),
        *("conditional", {"num_conditions": 2, "affine": "none"}, "would lose"),
    ),
    (lambda: nn.BatchNorm2d(3), "group", {"num_groups": 2}, "divisible"),
]


@pytest.mark.parametrize(("make", "to", "options", "reason"), REFUSED)
def test_what_cannot_be_kept_is_refused_and_nothing_changes(
    make: Any, to: str, options: dict[str, Any], reason: str
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), make())
    before = [type(m) for m in model]
    with pytest.raises(ModelError, match=f"nothing was converted to {to}: .*{reason}"):
        convert(model, to, **options)
    assert [type(m) for m in model] == before
    if to == "group":
        return
    conversion = convert(model, to, partial=True, **options)
    assert [left.name for left in conversion.refused][-1] == "1"
    assert type(model[1]) is before[1]


def test_nothing_changes_when_the_change_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = state(model)
    calls = []

    def fails(*args: Any) -> str:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return "always"

    monkeypatch.setattr("normscope.conversion.transaction.equality", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(model, "conditional", num_conditions=2)
    assert state(model) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("bach",), "to is 'bach'; it can be 'torch'"),
        (("ghost",), "ghost needs ghost_size"),
        (("batch", "ghost_size"), "batch has no option 'ghost_size'; it takes 'process_group'"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        convert(network(), arguments[0], **dict.fromkeys(arguments[1:], 2))


def test_patterns_choose_layers_and_must_fit() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.BatchNorm1d(2)})
    assert [c.name for c in convert(model, "batch", only=["b*"]).changed] == ["b"]
    with pytest.raises(InputError, match=r"called 'c\*'; there is a, b"):
        convert(model, "batch", only=["c*"])
    with pytest.raises(ModelError, match="no normalisation layer to convert"):
        convert(nn.Linear(2, 2), "batch")


def test_verify_says_what_the_model_cannot_do() -> None:
    conversion = convert(network(), "batch")
    with pytest.raises(ModelError, match=r"cannot be verified: in eval\(\) it fails"):
        conversion.verify(torch.randn(2, 5))
    with pytest.raises(InputError, match="needs a batch"):
        conversion.verify()


def test_memory_format_and_dtype_stay() -> None:
    model = network().to(torch.bfloat16).to(memory_format=torch.channels_last)
    model[1].float()
    convert(model, "conditional", num_conditions=2)
    assert model[1].weight.dtype is torch.float32
    assert model[7].weight.dtype is torch.bfloat16
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_converted_model_is_guarded_and_synchronised_like_any_other() -> None:
    model = network()
    conversion: Conversion = convert(model, "batch")
    before = model[1].running_mean.clone()
    with guard(model, update="never"):
        model.train()(torch.randn(8, 3, 8, 8))
    assert torch.equal(model[1].running_mean, before)
    conversion.revert()
    assert type(model[1]) is nn.BatchNorm2d


def test_an_option_of_a_layer_is_known_to_convert(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sized(normscope.GhostBatchNorm1d):
        def __init__(self, num_features: int, ghost_size: int, extra: int = 0, **more: Any) -> None:
            super().__init__(num_features, ghost_size, **more)
            self.extra = extra

    monkeypatch.setitem(kinds.CLASSES, "ghost", (Sized,) * 3)
    kinds.options_of.cache_clear()
    try:
        done = convert(nn.Sequential(nn.BatchNorm1d(3)), "ghost", ghost_size=2, extra=5)
        assert done.model[0].extra == 5
        with pytest.raises(InputError, match="ghost has no option 'less'; it takes .*'extra'"):
            convert(nn.Sequential(nn.BatchNorm1d(3)), "ghost", ghost_size=2, less=5)
    finally:
        kinds.options_of.cache_clear()
