"""By how many times inputs are larger than in training: on measured data and on numbers by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.doctor.evidence import Evidence, collected, norms_by_name
from normscope.doctor.scale import other_columns, other_scale
from normscope.doctor.state import LayerState, of_model
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal
from tests.doctor.checks.cases import stream, wide

MEAN, VAR = wide(1, -2, 3, 4), wide(1, 4, 16, 64)


def read(model: nn.Module, batches: Any) -> Evidence:
    loader = Loader(batches, model)
    return collected(model, loader, norms_by_name(model), Goal())


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (lambda x: 3 * x, 3.0), (lambda x: x / 2, 0.5), (lambda x: 1.4 * x, 0.0), (lambda x: x, 0.0),
        (lambda x: x + 2, 0.0), (lambda x: x * torch.tensor([2.0, 3, 4, 5]), 0.0),
        (lambda x: x * torch.tensor([2.0, 2, 2, 2.4]), (8 * 2.4) ** 0.25),
        (lambda x: x * torch.tensor([2.0, 2, 2, 2.6]), 0.0),
        (lambda x: 3 * (x - x.mean(0)) + x.mean(0), 0.0),
    ],
    ids=["three times", "half", "little", "same", "shift", "several factors", "alike", "unlike", "spread alone"],
)  # fmt: skip
def test_by_how_many_times_inputs_are_larger(change: Any, factor: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=draw) * torch.tensor([1.0, 2, 4, 8]) + torch.arange(4) + 1
    norm: Any = nn.BatchNorm1d(4)
    norm.running_mean.copy_(x.mean(0)), norm.running_var.copy_(x.var(0))
    model = nn.Sequential(norm, nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    first, second = of_model(model)
    data = read(model, list(change(x).split(50)))
    assert other_scale(model, data, first) == pytest.approx(factor, rel=0.01)
    assert other_scale(model, data, second) == 0, "never updated"


def test_a_layer_behind_another_has_no_scale_of_its_own() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=draw) * torch.tensor([1.0, 2, 4, 8]) + torch.arange(4) + 1
    first, second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    model = nn.Sequential(first, second).eval()
    with torch.no_grad():
        first.running_mean.copy_(x.mean(0)), first.running_var.copy_(x.var(0) * 9)
        second.running_var.copy_(torch.tensor([1.0, 2, 4, 8]) / 16)
        second.running_mean.fill_(1)
    data = read(model, list(x.split(50)))
    assert other_scale(model, data, of_model(model)[1]) == 0


def stored(mean: Tensor = MEAN, var: Tensor = VAR, module: nn.Module | None = None) -> LayerState:
    layer = nn.BatchNorm1d(len(mean)) if module is None else module
    return LayerState("a", mean, var, None, None, 1, 0.1, 1e-5, torch.float32, module=layer)


def factor(
    state: LayerState, mean: Tensor, var: Tensor, again: Tensor | None = None,
    model: nn.Module | None = None,
) -> float:  # fmt: skip
    """Of data with these statistics, and in eval() with AGAIN as their mean."""
    calls = {"a": [stream(mean, var)]}
    in_eval = calls if again is None else {"a": [stream(again, var)]}
    whole = nn.Sequential(nn.Linear(2, 2), state.module) if model is None else model
    return other_scale(whole, Evidence(by_batch=calls, stored=in_eval), state)


def test_what_has_no_factor() -> None:
    state = stored()
    assert factor(state, 2 * MEAN, 4 * VAR) == pytest.approx(2)
    assert factor(stored(0 * MEAN, torch.ones(4).double()), 2 * MEAN, 4 * VAR) == 0, "fresh"
    calls = {"a": [stream(2 * MEAN, 4 * VAR)]}
    assert other_scale(nn.Linear(2, 2), Evidence(by_batch=calls), state) == 0, "not run in eval()"
    assert factor(state, 2 * MEAN, 4 * VAR, again=2 * MEAN + 2e-4) == 0, "a norm comes before"
    assert factor(state, 2 * MEAN, 4 * VAR, again=2 * MEAN + 1e-6) == pytest.approx(2)


def test_frozen_layers_of_a_model_that_learns_may_have_moved() -> None:
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm)
    state, of = stored(module=norm), (2 * MEAN, 4 * VAR)
    norm.weight.requires_grad_(False)
    assert factor(state, *of, model=model) == pytest.approx(2), "the shift learns"
    norm.bias.requires_grad_(False)
    assert factor(state, *of, model=model) == 0
    model.requires_grad_(False)
    assert factor(state, *of, model=model) == pytest.approx(2), "nothing learns"
    bare = nn.BatchNorm1d(4, affine=False)
    assert factor(stored(module=bare), *of) == pytest.approx(2), "nothing to freeze"
    norm.add_module("inside", nn.Linear(1, 1))
    assert factor(state, *of, model=model) == 0, "its own parameters count alone"


@pytest.mark.parametrize(
    ("var", "known", "expected"),
    [
        ([1.0, 4, 16, 64, 256], [4.0, 16, 64, 256, 1024], 2),
        ([1.0, 4, 16, 64, 256], [4.0, 16, 64, 256, 9e-9], 2),  # a constant of the data
        ([1.0, 4, 16, 64, 1e-8], [4.0, 16, 64, 256, 1024], 2),  # a constant of before
        ([1.0, 4, 16, 64, -1.0], [4.0, 16, 64, 256, 1024], 2),
        ([1.0, 4, 16, 1e-9, 1e-9], [4.0, 16, 64, 256, 1024], 0),  # three are too few
    ],
)  # fmt: skip
def test_four_channels_that_vary_are_needed(
    var: list[float], known: list[float], expected: float
) -> None:
    mean = wide(1, -2, 3, 4, 5)
    state = stored(mean, wide(*var))
    assert factor(state, 2 * mean, wide(*known)) == pytest.approx(expected)


def test_factors_must_be_alike_and_more_alike_than_the_variances() -> None:
    """The logarithms of factors may spread by 0.1, and by half of those of the variances."""
    for spread, expected in ((0.099, True), (0.101, False)):
        step = torch.tensor([-1.5, -0.5, 0.5, 1.5]).double()
        logs = step / step.std() * spread
        found = factor(stored(), 2 * MEAN, 4 * VAR * (2 * logs).exp())
        assert (found > 0) is expected
    step = torch.tensor([-1.5, -0.5, 0.5, 1.5]).double()
    narrow = (step / step.std() * 0.16).exp()  # variances, so 0.08 of deviations
    for spread, expected in ((0.079, True), (0.081, False)):
        found = factor(
            stored(MEAN, narrow), 2 * MEAN, 4 * narrow * (2 * step / step.std() * spread).exp()
        )
        assert (found > 0) is expected


@pytest.mark.parametrize(
    ("size", "expected"), [(1.49, 0), (1.51, 1.51), (1 / 1.51, 1 / 1.51), (1 / 1.49, 0)]
)
def test_a_factor_is_one_and_a_half_at_least(size: float, expected: float) -> None:
    assert factor(stored(), size * MEAN, size**2 * VAR) == pytest.approx(expected)


def test_means_must_move_with_the_spread() -> None:
    """By a tenth of what the factor would bring to them, and of a deviation, at least."""
    mean, var = torch.full((4,), 2.0).double(), VAR / VAR * wide(1, 2, 3, 4)
    due = ((mean / (4 * var).sqrt()).square().mean()) ** 0.5  # of factor 2, in deviations
    assert float(due) < 1
    for share, expected in ((0.09, 0), (0.11, 2)):
        moved = share * (4 * var).sqrt()
        assert factor(stored(mean, var), mean + moved, 4 * var) == pytest.approx(expected)
    far = 40 * var.sqrt()  # of factor 2, twenty deviations
    for share, expected in ((0.09, 0), (0.11, 2)):
        moved = share * far
        assert factor(stored(far, var), far + moved, 4 * var) == pytest.approx(expected)


def test_means_in_proportion_to_variances_are_a_multiplied_buffer() -> None:
    assert factor(stored(), 4 * MEAN, 4 * VAR) == 0
    off = 0.11 * (4 * VAR).sqrt()
    assert factor(stored(), 4 * MEAN + off, 4 * VAR) == pytest.approx(2), "not in proportion"
    near = stored(0.1 * VAR.sqrt(), VAR)
    assert factor(near, 4 * 0.1 * VAR.sqrt(), 4 * VAR) == pytest.approx(2), "both fit"


def columns(
    mean: Tensor, var: Tensor, state: LayerState | None = None, again: Tensor | None = None
) -> list[bool] | None:
    """The channels that are other ones in data with these statistics."""
    calls = {"a": [stream(mean, var)]}
    in_eval = calls if again is None else {"a": [stream(again, var)]}
    found = other_columns(Evidence(by_batch=calls, stored=in_eval), state or stored())
    return None if found is None else found.tolist()


def test_columns_in_another_order_or_unit_are_marked() -> None:
    first, last = [1, 0, 2, 3], [0, 1, 3, 2]
    assert columns(MEAN[first], VAR[first]) == [True, True, False, False]
    assert columns(MEAN[last], VAR[last]) == [False, False, True, True], "0.52 deviations off"
    times = wide(1, 3, 1, 1)
    assert columns(times * MEAN, times**2 * VAR) == [False, True, False, False]
    of_means_near_zero = wide(1, 1, 3, 1)  # 3 / 4 deviations
    assert columns(of_means_near_zero * MEAN, of_means_near_zero**2 * VAR) == [0, 0, 1, 0]
    near = wide(1, -2, 1, 4)  # a quarter of a deviation, which a factor leaves where it is
    assert columns(of_means_near_zero * near, of_means_near_zero**2 * VAR, stored(near)) is None


def test_what_training_moved_is_no_other_column() -> None:
    assert columns(MEAN, VAR) is None
    assert columns(MEAN + 3 * VAR.sqrt(), VAR) is None, "all moved"
    assert columns(MEAN + wide(0, 6, 0, 0), VAR) is None, "a mean that moved alone"
    assert columns(wide(1, 3, 3, 3) * MEAN, wide(1, 9, 9, 9) * VAR) is None, "most have a factor"
    first = [1, 0, 2, 3]
    fresh = stored(0 * MEAN, torch.ones(4).double())
    assert columns(MEAN[first], VAR[first], fresh) is None
    by_condition = stored(MEAN.expand(2, 4), VAR.expand(2, 4))
    assert columns(MEAN[first], VAR[first], by_condition) is None
    assert columns(MEAN[first], VAR[first], again=MEAN) is None, "a norm comes before"
    calls = {"a": [stream(MEAN[first], VAR[first])]}
    assert other_columns(Evidence(by_batch=calls), stored()) is None, "not run in eval()"
