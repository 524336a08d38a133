"""What closes the gap between train() and eval(): overrides, causes, and when a gap matters."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from normscope.doctor import diagnose
from normscope.doctor.attribution import Attribution, Override, _target
from normscope.doctor.checks import CHECKS, CheckContext
from normscope.doctor.evidence import collected, norms_by_name
from normscope.doctor.state import of_model
from normscope.errors import InputError
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal
from tests.doctor.patients import Batches, healthy, in_training, norms, state


def attributed(model: nn.Module, batches: Batches | None = None) -> Any:
    loader = Loader(in_training()[:8] if batches is None else batches, model)
    layers = norms_by_name(model)
    return Attribution(model, loader, collected(model, loader, layers, Goal()), of_model(model))


def test_the_overrides_of_one_statistic_and_of_one_layer_close_what_was_done_to_it() -> None:
    model = healthy()
    norms(model)[1].running_mean += 3 * norms(model)[1].running_var.sqrt()
    before = state(model)
    found = attributed(model)
    assert found.closes(found.restored) > 0.8
    assert found.closes(found.answers(Override({}))) == pytest.approx(0, abs=1e-6)
    assert found.changes(found.restored) > 0.2
    assert found.advantage(found.restored) > 2
    assert found.answers(Override(dict(found.target))) is found.restored, "not run again"
    parts = {name: found.closes(found.answers(over)) for name, over in found.parts().items()}
    assert parts["stale_mean"] > 0.8
    assert abs(parts["stale_var"]) < 0.1
    assert abs(parts["unbiased"]) < 0.1
    first, second = found.by_layer()
    assert [first.name, second.name] == ["2", "5"]
    assert second.both > 0.8
    assert second.mean > 0.8
    assert max(map(abs, (first.both, first.mean, first.var, second.var))) < 0.15
    assert second.distance == pytest.approx(3, rel=0.1)
    assert first.distance < 0.5
    assert len(second.worst) == 5
    assert state(model) == before


def test_the_correction_of_small_batches_is_undone_for_every_layer() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Unflatten(1, (3, 1)), nn.BatchNorm1d(3)).eval()
    batches: Batches = [(torch.randn(5, 3), torch.arange(5) % 3) for _ in range(4)]
    for norm in norms(model):
        norm.running_var.fill_(5.0)
    stored = attributed(model, batches).parts()["unbiased"].stored
    assert list(stored) == ["0", "2"]
    for mean, var in stored.values():
        assert torch.equal(mean, torch.zeros(3).double())
        torch.testing.assert_close(var, torch.full((3,), 4.0).double())


def test_batches_of_one_class_are_told_from_statistics_that_are_off() -> None:
    found = attributed(healthy(), in_training(kind="sorted"))
    assert 0.5 < found.of_batches <= 1
    stale = healthy()
    norms(stale)[1].running_mean += 3 * norms(stale)[1].running_var.sqrt()
    assert attributed(stale).of_batches == pytest.approx(0.15, abs=0.1)
    one = attributed(healthy(), in_training()[:1])
    assert one.of_batches == 0, "nothing to mix"


def test_a_healthy_model_has_no_gap_to_close() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    found = attributed(model, in_training()[:2])
    assert found.closes(found.restored) == 0
    assert found.layers == {}
    assert found.by_layer() == ()


@pytest.mark.parametrize(
    ("relative", "matters"), [(0.0, False), (0.099, False), (0.101, True), (math.inf, True)]
)
def test_without_labels_a_gap_matters_by_the_outputs(relative: float, matters: bool) -> None:
    case: Any = CheckContext(layers=[])
    assert not case.gap_matters, "without data"
    case = CheckContext(layers=[])
    case.data = SimpleNamespace(gap=SimpleNamespace(known=False, relative=relative))
    assert case.gap_matters is matters


@pytest.mark.parametrize(
    ("advantage", "fall", "loss", "restored", "matters"),
    [
        (-2.1, 0.006, 1.0, 0.0, True),
        (-1.9, 0.006, 1.0, 0.0, False),  # within the standard error
        (-2.1, 0.004, 9.0, 0.0, False),  # sure, and too little of the accuracy to matter
        (2.1, 0.006, 1.0, 0.0, False),
        (-2.1, math.nan, 1.2, 0.0, True),  # judged by a loss
        (-2.1, math.nan, 1.1, 0.0, False),  # sure, and too little of the loss
        (0.0, 0.006, 1.0, 2.1, True),  # the statistics of the data do better than eval()
        (0.0, 0.0, 1.2, 2.1, True),
        (0.0, 0.0, 1.1, 2.1, False),
        (0.0, 0.006, 1.2, 1.9, False),
        (0.0, 0.0, 1.0, -9.0, False),
    ],
)
def test_with_labels_a_gap_matters_beyond_the_standard_error(
    advantage: float, fall: float, loss: float, restored: float, matters: bool
) -> None:
    case: Any = CheckContext(layers=[])
    better = SimpleNamespace(accuracy=0.9, loss=1.0, metrics=[])
    worse = SimpleNamespace(accuracy=0.9 - fall, loss=loss, metrics=[])
    gap = SimpleNamespace(known=True, advantage=advantage, reference=better, other=worse)
    case.data = SimpleNamespace(gap=gap, few=False)
    case.attribution = SimpleNamespace(
        restored=[],
        advantage=lambda answers: restored,
        against_eval=lambda answers: SimpleNamespace(reference=worse, other=better),
    )
    assert case.gap_matters is matters
    assert case.keep_stored is (restored < -2)
    case.data.few = True
    assert case.keep_stored


@pytest.mark.parametrize(("metrics", "matters"), [([0.9], True), ([], False)])
def test_a_metric_says_alone_what_matters(metrics: list[float], matters: bool) -> None:
    case: Any = CheckContext(layers=[])
    of = SimpleNamespace(accuracy=math.nan, loss=math.nan, metrics=metrics)
    gap = SimpleNamespace(known=True, advantage=-2.1, reference=of, other=of)
    case.data = SimpleNamespace(gap=gap, few=False)
    assert case.gap_matters is matters


def test_a_layer_that_never_counted_is_a_cause_of_its_own() -> None:
    model = healthy()
    for norm in norms(model):
        norm.reset_running_stats()
    causes = {cause.name: cause for cause in diagnose(model, in_training()).causes}
    assert causes["never_updated"].closes > 0.6
    assert "cold" not in causes


def test_the_furthest_channels_are_those_of_the_layer_that_is_off() -> None:
    model = healthy()
    norms(model)[1].running_mean[[3, 8]] += (
        torch.tensor([5.0, -9.0]) * norms(model)[1].running_var[[3, 8]].sqrt()
    )
    first, second, *_ = diagnose(model, in_training()).channels
    assert [(gap.layer, gap.channel) for gap in (first, second)] == [("5", 8), ("5", 3)]
    assert first.distance == pytest.approx(9, rel=0.2)


def test_what_lies_between_batches_is_a_share_of_the_whole_gap() -> None:
    """Against plain torch: a layer in train() on the batches, on all of them mixed, in eval()."""
    draw = torch.Generator().manual_seed(0)
    model: Any = nn.Sequential(nn.BatchNorm1d(2)).eval()
    x = [torch.randn(16, 2, generator=draw) + shift for shift in (-0.3, 0.1, 0.0, 0.2)]
    model[0].running_mean.fill_(3)
    found = attributed(model, [(part,) for part in x])
    given = torch.cat([(p - p.mean(0)) / (p.var(0, correction=0) + 1e-5).sqrt() for p in x])
    whole = torch.cat(x)
    mixed = (whole - whole.mean(0)) / (whole.var(0, correction=0) + 1e-5).sqrt()
    rms = lambda values: float(values.pow(2).mean().sqrt())
    with torch.no_grad():
        share = rms(mixed - given) / rms(model(whole) - given)
    assert 0.02 < share < 0.2
    assert found.of_batches == pytest.approx(share, rel=1e-3)


def test_a_layer_that_never_counted_beside_a_cold_one_is_corrected_with_it() -> None:
    model = healthy()
    norms(model)[0].reset_running_stats()
    cold = norms(model)[1]
    cold.num_batches_tracked.fill_(10)
    share = 0.9**10
    cold.running_mean.mul_(1 - share)
    cold.running_var.mul_(1 - share).add_(share)
    causes = {cause.name: cause for cause in diagnose(model, in_training()).causes}
    assert "never_updated" not in causes, "one of them was updated"
    assert causes["cold"].layers == ("2", "5")
    assert causes["cold"].closes > 0.5


def test_what_is_cold_is_overridden_by_its_correction_and_the_rest_by_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).eval()
    for norm in norms(model):
        norm.num_batches_tracked.fill_(1)
    norms(model)[0].running_mean.fill_(0.5)
    norms(model)[0].running_var.fill_(1.9)
    states = {state.name: state for state in of_model(model)}
    target = {name: (torch.full((2,), 7.0), torch.full((2,), 9.0)) for name in states}
    case: Any = SimpleNamespace(
        attribution=SimpleNamespace(states=states, target=target, answers=lambda over: over.stored)
    )
    fixed = CHECKS["NS002"]().fixed(case, ("0", "1"))
    assert fixed is not None
    stored: Any
    name, stored = fixed
    assert name == "cold"
    torch.testing.assert_close(stored["0"][0], torch.full((2,), 5.0).double())  # 0.5 / (1 - 0.9)
    torch.testing.assert_close(stored["0"][1], torch.full((2,), 10.0).double())  # (1.9 - 0.9) / 0.1
    assert stored["1"] is target["1"], "nothing was ever put in it"


def test_with_statistics_of_its_own_every_domain_is_normalised_for_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    model: Any = nn.Sequential(nn.BatchNorm1d(2)).eval()
    domain = torch.arange(40) % 2
    x = torch.randn(40, 2, generator=draw) + 4 * domain[:, None]
    labels = torch.zeros(40).long()
    sizes = [10, 10, 10, 9, 1]
    parts = zip(x.split(sizes), labels.split(sizes), domain.split(sizes), strict=True)
    found = attributed(model, list(parts))
    values = torch.cat([answer.values for answer in found.by_domain()])
    for number in (0, 1):
        own = x[:39][domain[:39] == number]  # one sample of a batch has no variance
        expected = (x[domain == number] - own.mean(0)) / (own.var(0) + 1e-5).sqrt()
        torch.testing.assert_close(
            values[domain == number], expected.double(), rtol=1e-3, atol=1e-3
        )


def moved(layers: int = 1, size: int = 10, number: int = 8) -> tuple[Any, Batches]:
    """Layers one behind the other, all off, and small batches that are never joined."""
    draw = torch.Generator().manual_seed(0)
    model: Any = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(layers))).eval()
    for place, norm in enumerate(model):
        norm.running_mean.fill_(1 + place)
    labels = torch.arange(size) % 2
    return model, [(torch.randn(size, 2, generator=draw), labels, labels) for _ in range(number)]


def test_parts_and_mixtures_of_batches_have_no_goal() -> None:
    whole: list[bool] = []

    def metric(output: Any, batch: Any) -> float:
        whole.append(len(output) == len(batch[0]) == 10)
        return 0.0

    model, batches = moved()
    loader, layers = Loader(batches, model), norms_by_name(model)
    data = collected(model, loader, layers, Goal(metric))
    found = Attribution(model, loader, data, of_model(model))
    assert found.of_batches > 0
    assert len(found.by_domain()) == 8
    assert math.isfinite(found.advantage(found.restored))
    assert all(whole)
    asked = len(whole)
    found.answers(Override({}))
    assert len(whole) == asked + 8, "whole batches are judged"
    found.answers(Override({}), goal=Goal())
    assert len(whole) == asked + 8


def test_noise_is_no_part_of_a_gap() -> None:
    model, batches = moved()
    found = attributed(model, batches)
    before = found.changes(found.restored)
    found._data.noise = 0.6 * before
    assert found.changes(found.restored) == pytest.approx(0.8 * before)
    found._gap = 1.1e-3
    assert found.closes(found.eval) != 0
    found._gap = 0.9e-3
    assert found.closes(found.train) == 0, "there is nothing to close"


def test_without_labels_no_advantage_is_known() -> None:
    model, batches = moved()
    found = attributed(model, [(x,) for x, *_ in batches])
    assert math.isnan(found.advantage(found.restored))
    assert not found.against_eval(found.restored).known
    assert found.against_eval(found.train).relative == pytest.approx(found.changes(found.train))


def test_single_layers_are_measured_on_a_quarter_and_only_those_furthest_off() -> None:
    model, batches = moved(layers=10)
    for near in (3, 6):
        model[near].running_mean.zero_()
        model[near].running_var.fill_(1.01)
    found, asked = attributed(model, batches), []
    answers = found.answers

    def spied(override: Override, batches: Any = None, **more: Any) -> Any:
        asked.append((list(override.stored), len(batches)))
        return answers(override, batches, **more)

    found.answers = spied
    told = found.by_layer()
    assert [gap.name for gap in told] == [str(i) for i in range(10) if i not in (3, 6)]
    assert [names for names, _ in asked] == [[gap.name] for gap in told for _ in range(3)]
    assert {number for _, number in asked} == {2}, "20 of 80 samples"
    assert all(len(gap.worst) == 2 for gap in told)
    model[9].running_var.zero_()
    assert attributed(model, batches).by_layer()[-1].distance <= 1e6, "a number for every report"


def test_a_quarter_is_a_batch_at_least() -> None:
    model, batches = moved(number=3)
    found, asked = attributed(model, batches), []
    answers = found.answers

    def spied(override: Override, few: Any) -> Any:
        asked.append(len(few))
        return answers(override, few)

    found.answers = spied
    (gap,) = found.by_layer()
    assert set(asked) == {1}, "7.5 of 30 samples"
    assert gap.both == pytest.approx(1, abs=0.4)


def test_mixed_batches_are_eight_times_as_large_and_128_samples_at_least() -> None:
    for size, number, expected in ((10, 40, [128, 128, 128, 16]), (20, 10, [160, 40])):
        model, batches = moved(size=size, number=number)
        found, asked = attributed(model, batches), []
        answers = found.answers

        def spied(override: Override, parts: Any, **more: Any) -> Any:
            assert override.by_batch == {"0"}
            asked.append([p.size for p in parts])  # noqa: B023
            return answers(override, parts, **more)  # noqa: B023

        found.answers = spied
        assert 0 < found.of_batches <= 1
        assert asked == [expected]


def test_where_batches_cannot_be_mixed_nothing_is_said_of_it() -> None:
    model, batches = moved()
    found = attributed(model, batches)

    def fails(*_: Any, **__: Any) -> Any:
        raise InputError("no")

    found.answers = fails
    assert found.of_batches == 0
    found = attributed(model, batches)
    found.answers = lambda over, parts, **_: [found.eval[0] for _ in parts]
    assert found.of_batches == 0, "an answer of another length"
    found = attributed(model, batches)
    found._loader = SimpleNamespace(together=lambda *_: batches[0], rows=lambda *_: None)
    assert found.of_batches == 0, "rows that cannot be taken out"


def test_channels_of_which_the_data_hold_too_little_keep_what_is_stored() -> None:
    data: Any = SimpleNamespace(
        population=lambda name: (torch.tensor([1.0, 2.0]), torch.tensor([3.0, math.nan]))
    )
    stored: Any = SimpleNamespace(mean=torch.tensor([5.0, 6.0]), var=torch.tensor([7.0, 8.0]))
    mean, var = _target(data, "a", stored)
    assert (mean.tolist(), var.tolist()) == ([1, 6], [3, 8])
    model, batches = moved(layers=2)
    loader, layers = Loader(batches, model), norms_by_name(model)
    states = of_model(model)
    states[1] = replace(states[1], module=None)
    found = Attribution(model, loader, collected(model, loader, layers, Goal()), states)
    assert list(found.states) == list(found.layers) == ["0"]
    del found._data.by_batch["0"]
    assert Attribution(model, loader, found._data, states).states == {}


def test_answers_of_layers_by_the_batch_are_of_batches_as_they_came() -> None:
    model, batches = moved()
    found = attributed(model, batches)
    by_batch = found.answers(Override(by_batch={"0"}))
    x = batches[2][0].double()
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(by_batch[2].values, expected, rtol=1e-4, atol=1e-4)
    again = found.answers(Override({"0": (torch.zeros(2), torch.ones(2))}))
    torch.testing.assert_close(again[2].values, x / (1 + 1e-5) ** 0.5, rtol=1e-5, atol=1e-5)
    target = dict(found.target)
    assert found.answers(Override(target)) is found.restored
    assert found.answers(Override(target), found._kept) is not found.restored
    assert found.answers(Override(target, {"0"})) is not found.restored
    model, batches = moved(layers=2)
    found = attributed(model, batches)
    assert found.answers(Override({"1": found.target["1"]})) is not found.restored
