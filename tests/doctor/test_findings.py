"""The numbers and facts that findings carry, and the statistics of samples behind them."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import normscope
from normscope.doctor import assert_healthy, diagnose
from normscope.records import Finding
from tests.doctor.patients import healthy, in_training, norms


def only(code: str, model: Any, **more: Any) -> Finding:
    (finding,) = diagnose(model, select=[code], **more).findings
    return finding


def test_sixteen_bits_and_a_mean_that_drowns_the_spread() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean[1], model[0].running_var[1] = -50.0, 2.0e-3
    found = only("NS023", model)
    assert found.measured == pytest.approx(50 / 0.002**0.5, rel=1e-5)
    assert (found.threshold, found.channels, found.facts["kind"]) == (1000, (1,), "ratio")
    model[0].running_mean.zero_()
    found = only("NS023", model.half())
    assert (found.measured, found.threshold) == (16, 32)
    assert (found.facts["kind"], found.facts["dtype"], found.repair) == ("bits", "float16", "widen")


def test_small_variances_are_told_by_their_smallest_and_their_share() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(5, eps=1e-3))
    model[0].running_var.copy_(torch.tensor([4e-3, 2e-3, 8e-3, 1.0, 2e-2]))
    found = only("NS006", model)
    assert found.measured == pytest.approx(3 / 5)
    assert found.channels == (0, 1, 2)
    assert float(found.facts["smallest"]) == pytest.approx(2e-3, rel=0.01)
    assert float(found.facts["eps"]) == pytest.approx(1e-3)


def test_gates_that_never_open_or_never_close_are_a_share_of_the_channels() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(8))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-9.0, -2.9, 0, 0, 0, 2.9, 3.1, 9.0]))
    found = only("NS011", model)
    assert found.measured == 3 / 8
    assert found.channels == (0, 6, 7)
    assert (found.facts["shut"], found.facts["open"], found.facts["of"]) == ("1", "2", "8")


def test_a_scale_that_is_not_finite_is_found_beside_the_statistics() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[2:] = torch.nan, torch.inf
    first, second = diagnose(model, select=["NS009"]).findings
    assert (first.measured, first.channels, first.repair) == (0.25, (1,), "")
    assert (second.measured, second.channels, second.severity) == (0.5, (2, 3), "error")
    assert (first.facts["count"], second.facts["of"]) == ("1", "4")


def test_steps_of_several_batches_are_told_with_their_number() -> None:
    found = only("NS019", healthy(), accumulate=4)
    assert (found.measured, found.facts["n"], found.severity) == (4, "4", "info")
    assert diagnose(healthy(), select=["NS019"], accumulate=1).passed == ("NS019",)


def test_another_eps_than_the_passports_is_an_error_and_another_momentum_a_warning() -> None:
    model = healthy()
    own = normscope.passport(model)
    norms(model)[0].eps = 1e-3
    norms(model)[1].momentum = 0.5
    found = diagnose(model, select=["NS032"], passport=own).findings
    kinds = {finding.facts["kind"]: finding.severity for finding in found}
    assert kinds == {"eps": "error", "momentum": "warning"}


def test_the_cause_of_a_gap_is_read_on_the_batches_of_training() -> None:
    model = healthy()
    norms(model)[0].running_mean += 4
    found = diagnose(model, in_training()[:8], select=["NS003"])
    assert [f.layer for f in found.findings] == ["2"]
    assert found.findings[0].measured > found.findings[0].threshold


def test_the_answer_of_a_check_is_a_record() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2))
    model[0].num_batches_tracked.fill_(1000)
    model[0].running_mean += 0.5
    assert assert_healthy(model).codes == diagnose(model).codes
    model[0].track_running_stats = False
    (found,) = diagnose(model, select=["NS014"]).findings
    assert (found.measured, found.threshold, found.facts["kind"]) == (1, 0, "untracked")


def test_the_distance_of_statistics_is_graded_and_its_parts_are_told() -> None:
    """A shift of the mean by d deviations is a distance of d; a factor of the deviation likewise."""
    for away, severity, threshold in ((0.3, "warning", 0.1), (0.8, "error", 0.5)):
        model = healthy()
        layer = norms(model)[0]
        layer.running_mean += away * layer.running_var.sqrt()
        found = diagnose(model, in_training(), select=["NS003"]).findings[0]
        assert found.layer == "2"
        assert found.measured == pytest.approx(away, abs=0.06)
        assert (found.severity, found.threshold) == (severity, threshold)
        assert float(found.facts["shift"]) == pytest.approx(away, abs=0.06)
        assert float(found.facts["ratio"]) == pytest.approx(1, abs=0.1)


def test_the_checks_and_the_causes_are_told_one_after_the_other() -> None:
    heard: list[tuple[int, int, str]] = []
    model = healthy()
    norms(model)[0].running_mean += 3
    found = diagnose(
        model,
        in_training(),
        select=["NS003", "NS009"],
        on_progress=lambda *step: heard.append(step),
    )
    assert found.codes == ("NS003",)
    assert heard[0] == (0, 0, "data")
    assert heard[-3:] == [(0, 2, "NS003"), (1, 2, "NS009"), (0, 1, "NS003")]


def test_data_that_cannot_judge_are_told_by_what_they_lack() -> None:
    few = in_training()[0][0][:4].repeat(16, 1, 1, 1)
    batches = [(few + 1e-4 * torch.randn_like(few), torch.arange(4).repeat(16)) for _ in range(4)]
    found = only("NS029", healthy(), batches=batches)
    assert (found.facts["kind"], found.facts["distinct"]) == ("few", "4")


def test_live_data_are_compared_by_their_unbiased_variance() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()
    x = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]])
    model[0].running_var.copy_(x.var(0))
    assert diagnose(model, [x], live=[x], select=["NS022"]).passed == ("NS022",)
    model[0].running_var.copy_(x.var(0, correction=0))
    found = only("NS022", model, batches=[x], live=[x])
    assert found.measured == pytest.approx(1 - 0.75**0.5, rel=1e-3)


def test_losses_of_both_modes_are_told_where_labels_say_something() -> None:
    x = [x for x, _ in in_training()[:3]]
    labelled, alone = (
        diagnose(healthy(), data, select=["NS003"]) for data in (in_training()[:3], x)
    )
    assert labelled.gap is not None
    assert alone.gap is not None
    assert 0 < labelled.gap.eval_loss < 1
    assert 0 < labelled.gap.train_loss < 1
    assert math.isnan(alone.gap.eval_loss)
    assert math.isnan(alone.gap.train_loss)


def test_what_lies_between_batches_is_a_cause_beside_those_of_findings() -> None:
    for kind, name, code in (
        ("shuffled", "small_batch", "NS007"),
        ("sorted", "composition", "NS008"),
    ):
        found = diagnose(healthy(), in_training(kind=kind))
        closes = [cause.closes for cause in found.causes]
        assert closes == sorted(closes, reverse=True)
        assert len(closes) > 3
        (cause,) = [c for c in found.causes if c.name in ("small_batch", "composition")]
        assert (cause.name, cause.code) == (name, code)
        assert 0.5 < cause.closes <= 1, "the whole gap of a healthy model"


@pytest.mark.parametrize(("apart", "severity"), [(0.3, "warning"), (4.0, "error")])
def test_a_layer_of_several_places_is_an_error_where_they_are_far_apart(
    apart: float, severity: str
) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.norm(x), self.norm(x + apart)], 1)

    found = only("NS017", Shared().eval(), batches=list(torch.randn(96, 3).split(32)))
    assert (found.severity, found.facts["calls"]) == (severity, "2")
    assert found.measured == pytest.approx(apart, rel=0.15)


def test_what_kind_of_distance_it_is() -> None:
    model = healthy()
    norms(model)[0].running_mean += 0.8 * norms(model)[0].running_var.sqrt()
    assert not diagnose(model, in_training(), select=["NS003"]).findings[0].facts.get("kind")
