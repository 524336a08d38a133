"""What counts as help, as harm and as no change, by labels, by a metric and by the gap alone."""

import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import Tensor

from normscope.doctor import diagnose, repair
from normscope.doctor.held_out import Evaluation, gain, harms, helps, joined, same
from normscope.doctor.remedies import REMEDIES, RepairContext, statistics
from normscope.probe.compare import Answer, Comparison, Goal
from normscope.probe.grammar import Batch
from normscope.records import Score
from normscope.report import machine
from tests.doctor.patients import healthy, in_training, norms

N = 200
LABELS = torch.arange(N) % 4
TRAIN = 4 * torch.eye(4)[LABELS] + torch.randn(N, 4, generator=torch.Generator().manual_seed(0))


def evaluated(
    scores: Tensor, labels: Tensor | None = LABELS, goal: Goal | None = None
) -> Evaluation:
    """Of a model whose answers in train() were TRAIN."""
    goal = goal or Goal()
    batch = Batch(0, (scores, labels), N, labels=labels)
    answers = [goal.answer(scores, batch)]
    compared = Comparison(given=goal.given)
    compared.add(goal.answer(TRAIN, batch), answers[0])
    score = Score(
        accuracy=compared.accuracies[1], loss=compared.other.loss, gap=compared.relative, samples=N
    )
    return Evaluation(score, compared, answers)


def with_gap(of: Evaluation, gap: float) -> Evaluation:
    score = Score(accuracy=of.score.accuracy, loss=of.score.loss, gap=gap, samples=N)
    return Evaluation(score, of.compared, of.answers)


def test_a_loss_that_rises_is_no_help_although_accuracy_rises_and_the_gap_falls() -> None:
    """One more sample right, all others far less sure."""
    before = TRAIN.clone()
    before[0] = before[0].roll(1)
    after = 0.02 * TRAIN
    one, other = with_gap(evaluated(before), 1.0), with_gap(evaluated(after), 0.4)
    assert other.score.accuracy > one.score.accuracy
    assert other.score.loss > 3 * one.score.loss
    assert gain(one, other) < -2
    assert not helps(one, other)
    assert harms(one, other)


def test_accuracy_that_rises_surely_helps_and_one_that_falls_surely_harms() -> None:
    poor = TRAIN.clone()
    poor[:40] = poor[:40].roll(1, 1)
    assert helps(evaluated(poor), evaluated(TRAIN))
    assert harms(evaluated(TRAIN), evaluated(poor))
    assert not helps(evaluated(TRAIN), evaluated(poor))


@pytest.mark.parametrize(("gap", "expected"), [(0.99, False), (0.94, True), (0.4, True)])
def test_without_labels_the_gap_decides(gap: float, expected: bool) -> None:
    one = evaluated(TRAIN + 1, None)
    assert helps(with_gap(one, 1.0), with_gap(one, gap)) is expected
    assert math.isnan(gain(one, one))


def test_a_gap_that_falls_by_half_is_kept_where_nothing_is_worse() -> None:
    one = evaluated(TRAIN)
    assert helps(with_gap(one, 1.0), with_gap(one, 0.4))
    assert not helps(with_gap(one, 1.0), with_gap(one, 0.6))


@pytest.mark.parametrize("what", ["metric", "loss"])
def test_a_metric_or_a_loss_decides_against_the_gap(what: str) -> None:
    sign = 1 if what == "metric" else -1
    goal = Goal(**{what: lambda output, batch: sign * float(output.mean())})
    low, high = evaluated(TRAIN, None, goal), evaluated(TRAIN + 1, None, goal)
    assert high.score.gap > low.score.gap
    if what == "metric":
        assert helps(low, high)
        assert harms(high, low)
    assert not helps(high, low)


def test_nothing_helps_without_samples() -> None:
    assert not helps(Evaluation(), Evaluation())
    assert not same(Evaluation(), Evaluation())


def test_same_is_up_to_rounding() -> None:
    one = evaluated(TRAIN)
    assert same(one, evaluated(TRAIN + 1e-6))
    assert not same(one, evaluated(TRAIN + 0.1))


def test_repair_reads_no_sample_that_judges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy sees 70 % of the batches, the judge the others, and both see all of theirs."""
    model = healthy()
    for norm in norms(model):
        norm.running_var *= 6
    batches = in_training(64)
    marked = [(x, y, torch.full((len(x),), i)) for i, (x, y) in enumerate(batches)]
    seen: dict[str, set[int]] = {"apart": set(), "read": set()}
    found = diagnose(model, batches)

    def forward(net: Any, batch: Any) -> Any:
        seen["read" if measuring else "apart"].add(int(batch[2][0]))
        return net(batch[0])

    measuring = False
    plain = RepairContext.measured

    def measured(context: RepairContext, *args: Any, **options: Any) -> Any:
        nonlocal measuring
        measuring = True
        try:
            return plain(context, *args, **options)
        finally:
            measuring = False

    monkeypatch.setattr(RepairContext, "measured", measured)
    monkeypatch.setitem(REMEDIES, "recalibrate", (statistics.by_batch,))
    repair(model, found, marked, forward=forward, labels=1, remedies=["recalibrate"])
    assert not seen["apart"] & seen["read"]
    assert seen["apart"] | seen["read"] == set(range(len(batches)))
    assert 0.2 < len(seen["apart"]) / len(batches) < 0.4


def test_junit_fails_on_warnings_and_on_errors_and_not_on_notes() -> None:
    model = healthy()
    norms(model)[0].momentum = 0.99  # a warning
    norms(model)[1].running_mean[0] = torch.nan  # an error
    record = diagnose(model)
    grave = {f.code: f.severity for f in record.findings}
    assert grave["NS005"] == "warning"
    assert grave["NS009"] == "error"
    assert grave["NS012"] == "info"
    suite = ET.fromstring(machine.junit(record, "en"))
    failed = {c.get("name", "")[:5] for c in suite if c.find("failure") is not None}
    assert failed == {code for code, severity in grave.items() if severity != "info"}
    assert suite.get("failures") == str(len(failed))
    noted = {c.get("name", "")[:5] for c in suite if c.find("system-out") is not None}
    assert "NS012" in noted


def test_answers_are_joined_sample_by_sample() -> None:
    batch = Batch(0, (TRAIN, LABELS), N, labels=LABELS)
    whole = Goal().answer(TRAIN, batch)
    parts = [
        Goal().answer(a, Batch(0, (a, b), len(a), labels=b))
        for a, b in zip(TRAIN.split(50), LABELS.split(50), strict=True)
    ]
    found = joined(parts)
    for name in ("values", "losses", "right", "choices", "predicted", "truth"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    assert isinstance(found, Answer)


@pytest.mark.parametrize("what", ["loss", "metric"])
def test_a_loss_and_a_metric_get_outputs_of_the_batch_beside_them(what: str) -> None:
    """Mixtures of several batches and parts of one are compared by their outputs alone."""
    model = healthy()
    for norm in norms(model):
        norm.running_mean += 1.5 * norm.running_var.sqrt()
    batches = [(x, y, torch.arange(len(x)) % 2) for x, y in in_training(64)]
    whole = []

    def error(output: Tensor, batch: Any) -> Tensor:
        whole.append(len(output) == len(batch[0]) == len(batch[1]))
        return torch.nn.functional.cross_entropy(output, batch[1])

    goal = error if what == "loss" else lambda output, batch: -float(error(output, batch))
    found = diagnose(model, batches, **{what: goal})
    assert {"small_batch", "domains"} & {cause.name for cause in found.causes}
    assert len(whole) > 2 * len(batches)
    assert all(whole)


@pytest.mark.parametrize(
    ("samples", "rise", "helped"),
    [(200, 0.007, False), (200, 0.008, True), (1000, 0.004, False), (1000, 0.006, True)],
)
def test_accuracy_must_rise_by_more_than_a_sample_and_by_half_a_point(
    samples: int, rise: float, helped: bool
) -> None:
    """Where the loss rises within chance, accuracy and a gap that falls by half decide."""
    worse = torch.linspace(-1, 1, samples)
    worse += 1.5 * worse.std() / samples**0.5  # 1.5 standard errors

    def state(accuracy: float, gap: float, losses: Tensor) -> Evaluation:
        compared = Comparison(given=True)
        compared.other.losses = [losses]
        return Evaluation(Score(accuracy=accuracy, loss=1, gap=gap, samples=samples), compared)

    one = state(0.5, 1.0, torch.ones(samples))
    assert gain(one, state(0.5, 1.0, 1 + worse)) == pytest.approx(-1.5)
    assert helps(one, state(0.5 + rise, 0.49, 1 + worse)) is helped
    assert not helps(one, state(0.5 + rise, 0.51, 1 + worse)), "the gap has not fallen by half"
