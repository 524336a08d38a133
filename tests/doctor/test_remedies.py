"""What each remedy writes, into which layers, and why it cannot be carried out."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope import InputError
from normscope.doctor.held_out import HeldOut
from normscope.doctor.remedies import REMEDIES, RepairContext, Unfit, base, settings, statistics
from normscope.probe.batches import Loader, held_out
from normscope.probe.compare import Goal

DRAW = torch.Generator().manual_seed(0)
X = 2 * torch.randn(48, 3, generator=DRAW) + torch.tensor([3.0, -1.0, 0.5])
ALL = tuple(X.split(12))


def network(*more: nn.Module) -> Any:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(3), *more, nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()


def context(model: nn.Module, batches: Any = ALL, **more: Any) -> RepairContext:
    loader = None if batches is None else Loader(list(batches), model)
    return RepairContext(model, loader, HeldOut(Goal(), loader), **more)


def normed(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def entries(model: Any, batches: Any = ALL) -> Tensor:
    """What the second layer is given where the first normalises by the batch."""
    with torch.no_grad():
        return torch.cat([model[-2](normed(x)) for x in batches])


def assert_statistics(layer: Any, x: Tensor) -> None:
    torch.testing.assert_close(layer.running_mean, x.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, x.var(0), rtol=1e-5, atol=1e-5)


def fresh(layer: Any) -> bool:
    return not layer.running_mean.any() and bool((layer.running_var == 1).all())


def test_the_remedies_and_the_order_in_which_they_are_tried() -> None:
    assert list(REMEDIES) == [
        "eval_mode", "widen", "repair_channels", "choose_eps", "correct_cold", "momentum",
        "copy_buffers", "split", "domains", "freeze", "recalibrate", "own_weight", "fold_bias",
        "adapt",
    ]  # fmt: skip


def test_what_is_left_of_the_start_is_taken_out_of_named_layers() -> None:
    model = network()
    for place in (0, 2):
        model[place].num_batches_tracked.fill_(2)  # 0.81 of the start is left
        model[place].running_mean.fill_(0.19)
        model[place].running_var.fill_(0.81 + 0.19 * 3)
    assert statistics.correct_cold(context(model, None), ("2",)) == ("2",)
    torch.testing.assert_close(model[2].running_mean, torch.ones(4))
    torch.testing.assert_close(model[2].running_var, torch.full((4,), 3.0))
    assert model[0].running_mean[0] == pytest.approx(0.19)
    assert statistics.correct_cold(context(model, None), ()) == ("0", "2")
    with pytest.raises(Unfit, match=r"cannot have started at \(0, 1\) with this momentum"):
        statistics.correct_cold(context(network(), None), ())


def test_statistics_of_the_data_are_written_where_they_are_asked_for() -> None:
    model = network()
    assert statistics.by_batch(context(model), ()) == ("0", "2")
    assert_statistics(model[0], X)
    assert_statistics(model[2], entries(model))
    model = network()
    assert statistics.by_batch(context(model), ("2",)) == ("2",)
    assert fresh(model[0])
    assert_statistics(model[2], entries(model))
    with pytest.raises(Unfit, match="it needs data"):
        statistics.by_batch(context(model, None), ())


def test_means_over_batches_leave_out_what_lies_between_them() -> None:
    model = network()
    uneven = [X[:10], X[10:40] + 5, X[40:]]
    assert statistics.averaged(context(model, uneven), ("0",)) == ("0",)
    torch.testing.assert_close(model[0].running_mean, sum(x.mean(0) for x in uneven) / 3)
    torch.testing.assert_close(model[0].running_var, sum(x.var(0) for x in uneven) / 3)
    assert fresh(model[2])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(x) + self.norm(3 * x + 1))
        return y


def test_a_layer_of_several_calls_is_split_with_the_statistics_of_each() -> None:
    model: Any = Twice().eval()
    with pytest.raises(Unfit, match="runs more than once in a forward"):
        statistics.averaged(context(model), ())
    assert statistics.split_calls(context(model), ()) == ("norm.calls.0", "norm.calls.1")
    assert_statistics(model.norm.calls[0], X)
    assert_statistics(model.norm.calls[1], 3 * X + 1)
    assert fresh(model.last)
    with pytest.raises(Unfit, match="no layer runs more than once"):
        statistics.split_calls(context(network()), ())

    class Elsewhere(Twice):
        def forward(self, x: Tensor) -> Tensor:
            self.norm.weight  # noqa: B018  # of the layer itself, which is no more
            return super().forward(x)

    with pytest.raises((Unfit, normscope.ModelError)):
        statistics.split_calls(context(Elsewhere().eval()), ())


def test_behind_each_other_layers_are_measured_as_eval_runs_them() -> None:
    model = network()
    model[0].running_mean.fill_(9)
    assert statistics.sequential(context(model), ()) == ("0", "2")
    with torch.no_grad():
        assert_statistics(model[0], X)
        assert_statistics(model[2], model[1](model[0](X)))
    model = network()
    assert statistics.sequential(context(model), ("2", "gone")) == ("2",)
    with torch.no_grad():
        assert_statistics(model[2], model[1](model[0](X)))
    assert fresh(model[0])
    model = network()
    assert statistics.everywhere(context(model), ("2",)) == ("0", "2")
    assert_statistics(model[0], X)
    with pytest.raises(Unfit, match="all layers are concerned already"):
        statistics.everywhere(context(model), ())


def in_a_row(number: int) -> Any:
    return nn.Sequential(*(nn.BatchNorm1d(3, affine=False) for _ in range(number))).eval()


@pytest.mark.parametrize(
    ("number", "far", "expected"),
    [(4, (1,), ("1",)), (5, (1, 3), ("1", "3")), (4, (0, 1, 2), None), (4, (), None), (2, (1,), ("1",))],
)  # fmt: skip
def test_a_few_layers_that_are_far_off_are_mended_alone(
    number: int, far: tuple[int, ...], expected: Any
) -> None:
    model = in_a_row(number)
    statistics.sequential(context(model), ())
    for place in far:
        model[place].running_mean += 2 * model[place].running_var.sqrt()
    before = [layer.running_mean.clone() for layer in model]
    if expected is None:
        with pytest.raises(Unfit, match="no few layers are off far more than most"):
            statistics.outliers(context(model), ())
        return
    assert statistics.outliers(context(model), ()) == expected
    for place, layer in enumerate(model):
        assert torch.equal(layer.running_mean, before[place]) is (place not in far)


def test_buffers_of_a_reference_are_copied_by_name_and_shape() -> None:
    model, other = network(), network()
    other[0].running_mean.fill_(4), other[0].running_var.fill_(5)
    other[2] = nn.BatchNorm1d(7)
    with pytest.raises(Unfit, match=r"it needs the model that this one follows \(reference\)"):
        statistics.copy_buffers(context(model, None), ())
    assert statistics.copy_buffers(context(model, None, reference=other), ()) == ("0",)
    assert model[0].running_mean.tolist() == [4, 4, 4]
    assert model[0].running_var.tolist() == [5, 5, 5]
    assert fresh(model[2])
    with pytest.raises(Unfit, match="these layers cannot be measured: no forward runs them"):
        statistics.copy_buffers(context(model, None, reference=other), ("2",))


def test_live_data_that_judge_are_not_adapted_to() -> None:
    model = network()
    with pytest.raises(Unfit, match=r"it needs data as in use \(live\)"):
        statistics.adapt_statistics(context(model), ())
    live = Loader(list(X.split(6)), model)
    assert statistics.adapt_statistics(context(model, None, live=live), ()) == ("0", "2")
    read = torch.cat([x for i, x in enumerate(X.split(6)) if not held_out(i)])
    assert len(read) < len(X)
    share = len(read) / (len(read) + 16)
    torch.testing.assert_close(model[0].running_mean, share * read.mean(0))
    torch.testing.assert_close(model[0].running_var, (1 - share) + share * read.var(0))


def test_channels_that_are_not_finite_get_the_statistics_of_the_data_alone() -> None:
    model = network()
    model[0].running_mean.copy_(torch.tensor([7.0, torch.nan, 7.0]))
    model[0].running_var.copy_(torch.tensor([8.0, 8.0, -1.0]))
    assert statistics.repair_channels(context(model), ()) == ("0",)
    mean, var = X.mean(0), X.var(0)
    torch.testing.assert_close(model[0].running_mean, torch.stack([torch.tensor(7.0), *mean[1:]]))
    torch.testing.assert_close(model[0].running_var, torch.stack([torch.tensor(8.0), *var[1:]]))
    assert fresh(model[2])


def test_sixteen_bits_of_named_layers_become_thirty_two() -> None:
    model = network()
    model[0].half(), model[2].bfloat16()
    model[2].weight.requires_grad_(False)
    values = model[2].running_var.float()
    assert statistics.widen(context(model, None), ("2",)) == ("2",)
    kinds = {name: value.dtype for name, value in model[2].state_dict().items()}
    assert kinds.pop("num_batches_tracked") == torch.int64
    assert set(kinds.values()) == {torch.float32}
    assert torch.equal(model[2].running_var, values)
    assert isinstance(model[2].weight, nn.Parameter)
    assert (model[2].weight.requires_grad, model[2].bias.requires_grad) == (False, True)
    assert model[0].running_mean.dtype == torch.float16
    bare: Any = nn.Sequential(nn.BatchNorm1d(3, affine=False).half())
    statistics.widen(context(bare, None), ())
    assert bare[0].running_mean.dtype == torch.float32


def test_an_input_that_is_not_finite_has_no_statistics() -> None:
    class Overflows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.inf

    model = nn.Sequential(nn.BatchNorm1d(3), Overflows(), nn.BatchNorm1d(3)).eval()
    with pytest.raises(Unfit, match="the input of 2 is not finite"):
        statistics.by_batch(context(model), ("2",))
    assert statistics.by_batch(context(model), ("0",)) == ("0",)


def test_why_a_layer_cannot_be_measured() -> None:
    model: Any = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "group": nn.GroupNorm(1, 3)})
    model.forward = lambda x: model["group"](model["norm"](x))
    with pytest.raises(Unfit, match="cannot be measured: it normalises within each sample"):
        statistics.by_batch(context(model.eval()), ("group",))


@pytest.mark.parametrize(("now", "then"), [(0.9, 0.1), (0.997, 0.003), (1.0, 0.1), (0.0, 0.1)])
def test_a_momentum_becomes_what_is_left_to_one(now: float, then: float) -> None:
    model = network()
    for place in (0, 2):
        model[place].momentum = now
    assert settings.momentum(context(model, None), ("0",)) == ("0",)
    assert (model[0].momentum, model[2].momentum) == (then, now)
    assert fresh(model[0])


def test_every_part_goes_to_eval_although_one_overrides_train() -> None:
    class Stubborn(nn.Identity):
        def train(self, mode: bool = True) -> "Stubborn":
            self.training = True
            return self

    model = nn.Sequential(nn.BatchNorm1d(3), Stubborn()).train()
    assert settings.eval_mode(context(model, None), ("0",)) == ("0",)
    assert not any(part.training for part in model.modules())


def test_a_useless_bias_goes_into_the_running_mean() -> None:
    model: Any = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)
    ).eval()  # fmt: skip
    model[1].running_mean.fill_(2)
    bias, expected = model[0].bias.detach().clone(), model[:2](X)
    assert settings.fold_bias(context(model, None), ()) == ("1", "3")
    assert model[0].bias is None
    assert model[2].bias is None
    torch.testing.assert_close(model[1].running_mean, 2 - bias)
    torch.testing.assert_close(model[:2](X), expected)
    with pytest.raises(Unfit, match="no linear map with a bias stands directly before"):
        settings.fold_bias(context(model, None), ())


def test_a_layer_frozen_by_half_is_frozen_whole_as_it_is_or_anew() -> None:
    for remedy, as_is in ((settings.freeze, True), (settings.freeze_anew, False)):
        model = network()
        model[0].track_running_stats = False
        model[0].running_mean.fill_(2)
        assert remedy(context(model), ("0",)) == ("0",)
        assert isinstance(model[0], normscope.FrozenBatchNorm1d)
        assert type(model[2]) is nn.BatchNorm1d
        if as_is:
            assert model[0].running_mean.tolist() == [2, 2, 2]
        else:
            assert_statistics(model[0], X)


def test_domains_need_numbers_from_zero_that_are_not_too_many() -> None:
    labels = torch.zeros(12).long()
    with pytest.raises(Unfit, match="it needs the domain of each sample, as the third entry"):
        settings.domains(context(network()), ())
    many = [(x, labels, labels + 256) for x in ALL]
    with pytest.raises(Unfit, match="domains are numbered up to 256; number them from 0 to 255"):
        settings.domains(context(network(), many), ())
    model = network()
    two = [(x, labels, torch.full((12,), i % 2)) for i, x in enumerate(ALL * 4)]
    assert settings.domains(context(model, two), ()) == ("0", "2")
    assert isinstance(model[0], normscope.ConditionalBatchNorm1d)
    assert model[0].running_mean.shape == (2, 3)
    assert model[0].weight.shape == (3,), "scale and shift stay shared"
    assert model[0].missing == "pooled"


def labelled(model: Any, scale: float) -> list[Any]:
    """Batches whose classes the model tells apart with variances of `scale` under no eps."""
    y = torch.arange(240) % 3
    x = scale * (3 * torch.eye(3)[y] + torch.randn(240, 3, generator=DRAW))
    model[0].running_mean.copy_(x.mean(0)), model[0].running_var.copy_(x.var(0))
    return list(zip(x.split(24), y.split(24), strict=True))


def test_another_eps_is_kept_where_labels_say_so_and_else_the_old_one() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3, eps=1e-2)).eval()
    batches = labelled(model, 0.01)
    assert settings.choose_eps(context(model, batches), ("0",)) == ("0",)
    assert model[0].eps < 1e-3
    other: Any = nn.Sequential(nn.BatchNorm1d(3, eps=1e-5)).eval()
    batches = labelled(other, 1.0)
    with pytest.raises(Unfit, match="no other eps of 1e-06, 1e-05, 0.0001, 0.001, 0.01 does"):
        settings.choose_eps(context(other, batches), ())
    assert other[0].eps == 1e-5


def test_settings_and_names_are_those_of_the_states_that_are_asked_for() -> None:
    of = context(network())
    assert [s.name for s in of.states(())] == ["0", "2"]
    assert [s.name for s in of.states(("2", "gone"))] == ["2"]
    assert [s.name for s in of.states(("gone",))] == ["0", "2"], "where there is none, all"
    assert of.part == "all"
    once = of.measured()
    assert of.measured() is once
    assert of.measured(dropout=True) is not once
    of.forget()
    assert of.measured() is not once


def test_layers_that_no_forward_runs_are_no_outliers() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = in_a_row(4), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.used(x)
            return y

    model: Any = Part().eval()
    statistics.sequential(context(model), ())
    model.used[1].running_mean += 3
    assert statistics.outliers(context(model), ()) == ("used.1",)
    assert statistics.by_batch(context(model), ()) == ("used.0", "used.1", "used.2", "used.3")
    with pytest.raises(Unfit, match="these layers cannot be measured: no forward runs them"):
        statistics.by_batch(context(model), ("spare",))


def test_layers_that_cannot_be_converted_are_no_end_of_a_repair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise InputError("no layer fits")

    monkeypatch.setattr(settings, "convert", fails)
    numbers = torch.arange(12) % 2
    of = context(network(), [(x, numbers, numbers) for x in ALL])
    for remedy in (settings.freeze, settings.freeze_anew, settings.domains):
        with pytest.raises(Unfit, match="no layer fits"):
            remedy(of, ("0",))


def test_three_layers_in_a_row_are_measured_as_eval_runs_them() -> None:
    torch.manual_seed(2)
    model: Any = network(nn.Linear(3, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3))
    assert statistics.sequential(context(model), ()) == ("0", "3", "6")
    with torch.no_grad():
        for place in (0, 3, 6):
            assert_statistics(model[place], model[:place](X))


def test_a_setting_is_chosen_on_as_many_samples_as_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for most, batches in ((23, 2), (24, 2), (25, 3), (1000, 4)):
        monkeypatch.setattr(base, "KEPT", most)
        assert len(context(network()).chooser().batches) == batches, "of twelve samples"
