"""What is stored against the data: the whole answer of each check on numbers made by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from normscope.doctor.checks import CHECKS, statistics
from normscope.doctor.checks.base import in_digits
from normscope.doctor.checks.statistics import _eta2, chance
from normscope.doctor.evidence import Composition, Evidence
from normscope.moments import Moments
from normscope.probe.compare import Answer, Quality
from normscope.probe.grammar import Batch
from normscope.probe.stream import MomentStream
from tests.doctor.checks.cases import (
    case,
    comparison,
    data,
    found,
    layer,
    one,
    skipped,
    stream,
    told,
    wide,
)


@pytest.mark.parametrize(
    ("shift", "matters", "keep", "expected"),
    [
        (0.05, True, False, None),
        (0.3, True, False, ("warning", 0.3, 0.1)),
        (0.8, True, False, ("error", 0.8, 0.5)),
        (0.8, False, False, ("warning", 0.8, 0.1)),
        (0.8, True, True, ("error", 0.8, 0.5)),
    ],
)
def test_statistics_that_are_not_those_of_the_data(
    shift: float, matters: bool, keep: bool, expected: Any
) -> None:
    moved = data(by_batch={"a": [stream(wide(1, 1), wide(2, 2))]})
    off = layer(mean=wide(1, 1) - shift * 2**0.5)
    got = found("NS003", case(layer("gone"), off, data=moved, matters=matters, keep=keep))
    if expected is None:
        assert got == []
        return
    (finding,) = got
    assert told(finding) == (*expected, "high", "recalibrate")
    assert finding.channels == (0, 1)
    size = f"{shift:.3g}"
    kind = "kept" if keep else ""
    assert finding.facts == {"shift": size, "ratio": "1", "worst": size, "kind": kind}
    scaled = case(off, data=moved, matters=matters, sizes={"a": 2.0})
    assert found("NS003", scaled) == [], "NS033 says so"


def test_one_channel_of_many_that_is_far_off_is_enough() -> None:
    for away, expected in ((0.4, 0), (0.6, 1)):
        mean = torch.ones(40).double()
        var = torch.full((40,), 2.0).double()
        off = mean.clone()
        off[7] += away * 2**0.5
        of = case(
            layer(mean=off, var=var), data=data(by_batch={"a": [stream(mean, var)]}), matters=True
        )
        got = found("NS003", of)
        assert len(got) == expected
        if got:
            assert (got[0].severity, got[0].threshold, got[0].channels) == ("warning", 0.1, (7,))
            assert got[0].facts["worst"] == "0.6"
    spread = layer(var=wide(8, 8))
    finding = one("NS003", case(spread, data=data(), matters=True))
    assert finding.facts["ratio"] == "4"
    assert finding.facts["shift"] == "0"
    assert finding.measured == pytest.approx(1)


def test_a_distance_that_comes_about_by_chance_is_none() -> None:
    """A running average of a high momentum strays with every batch."""
    stray = MomentStream()
    for shift in (-2.0, 2.0, -2.0, 2.0):
        stray.add(Moments(wide(50).squeeze(), wide(1, 1) + shift, wide(99, 99)), 50)
    off = layer(mean=wide(2.5, 2.5), var=wide(6, 6))
    of = {"data": data(by_batch={"a": [stray]}), "matters": True}
    assert found("NS003", case(replace(off, momentum=1.0), **of)) == []
    assert len(found("NS003", case(replace(off, momentum=0.01), **of))) == 1
    assert len(found("NS003", case(replace(off, momentum=None), **of))) == 1


def test_a_stored_variance_of_zero_has_a_ratio() -> None:
    finding = one("NS003", case(layer(var=wide(0, 2)), data=data(), matters=True))
    assert finding.facts["ratio"] == in_digits((1e-12 / 2) ** 0.5)
    constant = data(by_batch={"a": [stream(wide(1, 1), wide(0, 2))]})
    finding = one("NS003", case(layer(), data=constant, matters=True))
    assert finding.facts["ratio"] == in_digits((2 / 1e-12) ** 0.5)


@pytest.mark.parametrize(
    ("gap", "matters", "keep", "expected"),
    [
        (comparison(0.09), False, False, None),
        (comparison(0.11), False, False, ("warning", 0.11, 0.1)),
        (comparison(0.51), True, False, ("error", 0.51, 0.5)),
        (comparison(0.51), True, True, ("info", 0.51, 0.5)),
        (comparison(0.3, (0.9, 0.8), disagreement=0.019), True, False, None),
        (comparison(0.3, (0.9, 0.8), disagreement=0.021), True, False, ("warning", 0.021, 0.02)),
        (comparison(0.3, (0.9, 0.8), disagreement=0.11), True, False, ("error", 0.11, 0.1)),
        (comparison(0.3, (0.9, 0.8), disagreement=0.11), False, False, ("warning", 0.11, 0.02)),
        (comparison(0.3, (0.8, 0.9), disagreement=0.11, advantage=2.1), False, False, ("info", 0.11, 0.02)),
        (comparison(0.3, (0.8, 0.9), disagreement=0.11, advantage=1.9), False, False, ("warning", 0.11, 0.02)),
    ],
)  # fmt: skip
def test_outputs_that_differ_between_the_modes(
    gap: Any, matters: bool, keep: bool, expected: Any
) -> None:
    got = found("NS004", case(layer(), data=data(gap=gap), matters=matters, keep=keep))
    if expected is None:
        assert got == []
        return
    (finding,) = got
    assert told(finding) == (*expected, "high", "")
    assert finding.facts == {
        "kind": "argmax" if gap.known else "relative", "relative": in_digits(gap.relative),
        "train": in_digits(gap.accuracies[0]), "eval": in_digits(gap.accuracies[1]),
    }  # fmt: skip


def test_a_gap_of_batches_of_this_size_alone_is_a_note() -> None:
    for explained, severity in ((0.99, "info"), (0.5, "warning")):
        attribution: Any = SimpleNamespace(of_batches=explained)
        of = case(layer(), data=data(gap=comparison(0.3)), attribution=attribution)
        assert one("NS004", of).severity == severity
    labelled = comparison(0.3, (0.9, 0.8), disagreement=0.11)
    attribution = SimpleNamespace(of_batches=1.0)
    assert one(
        "NS004", case(layer(), data=data(gap=labelled), attribution=attribution)
    ).severity == ("warning")
    assert skipped("NS004", case(layer(), data=data(gap=comparison(1.0, samples=0)))) == (
        "doctor.skip.outputs"
    )


@pytest.mark.parametrize(
    ("on", "stored", "matters", "severity"),
    [
        (4.0, 4.0, True, "error"), (4.0, 4.0, False, "warning"), (1.0, 1.0, False, "warning"),
        (4.0, 2.0, True, None), (2.4, 2.4, True, None), (2.6, 2.6, True, "error"),
        (1.5, 1.5, True, "error"), (1.7, 1.7, True, None),
    ],
)  # fmt: skip
def test_dropout_whose_variance_is_the_stored_one(
    on: float, stored: float, matters: bool, severity: str | None
) -> None:
    dropped = {"a": [stream(wide(1, 1), wide(on, on))]}
    state = layer(var=wide(stored, stored))
    of = data(dropped=dropped)
    got = found("NS013", case(layer("none"), state, data=of, matters=matters))
    assert [f.severity for f in got] == ([] if severity is None else [severity])
    for finding in got:
        assert told(finding) == (severity, round(2 / on, 6), 0.8, "high", "recalibrate")
        assert finding.facts == {"ratio": in_digits(2 / on)}
    damaged = layer(var=wide(-1, stored))
    assert found("NS013", case(damaged, data=of, matters=True)) == []
    assert skipped("NS013", case(state, data=data())) == "doctor.skip.dropout"


@pytest.mark.parametrize(
    ("apart", "matters", "severity"),
    [(0.09, True, None), (0.11, True, "warning"), (0.6, True, "error"), (0.6, False, "warning"), (0.5, True, "warning")],
)  # fmt: skip
def test_a_layer_of_several_calls(apart: float, matters: bool, severity: str | None) -> None:
    var = wide(2, 2)
    calls = [stream(wide(1, 1), var), stream(wide(1, 1) + (apart - 1e-9) * 2**0.5, var)]
    calls.append(stream(wide(1, 1), var))
    of = case(layer("b"), layer(), data=data(by_batch={"a": calls}), matters=matters)
    got = found("NS017", of)
    assert [f.severity for f in got] == ([] if severity is None else [severity])
    for finding in got:
        assert told(finding) == (severity, apart, 0.1, "high", "split")
        assert finding.facts == {"calls": "3", "distance": in_digits(apart)}
    assert CHECKS["NS017"]().override(of, ("a",)).by_batch == {"a"}


def spread_over(apart: float, sets: int = 2) -> Moments:
    """Sets of 100 values of variance 1 whose means are so far apart, in one of two channels."""
    mean = torch.zeros(sets, 2).double()
    mean[1, 0] = apart
    return Moments(torch.full((sets,), 100.0).double(), mean, torch.full((sets, 2), 100.0).double())


def test_domains_are_weighed_against_classes() -> None:
    places = Composition()
    for _ in range(4):
        places.add(torch.tensor([0, 1] * 4))
    # between / total of the one channel that differs, halved by the other, which does not
    eta = lambda apart: (apart**2 / 4) / (apart**2 / 4 + 1) / 2
    of = data(places=places, by_domain={"a": spread_over(2)}, by_class={"a": spread_over(1)})
    finding = one("NS021", case(layer("b"), layer(), data=of, matters=True))
    assert told(finding) == ("warning", round(eta(2) / eta(1), 6), 1, "high", "domains")
    assert finding.facts == {"domain": in_digits(eta(2)), "label": in_digits(eta(1))}
    assert one("NS021", case(layer(), data=of)).severity == "info"
    of.by_class = {"a": spread_over(3)}
    assert found("NS021", case(layer(), data=of)) == []
    of.by_class = {}
    assert one("NS021", case(layer(), data=of)).facts["label"] == "0.05"
    of.by_class = {"a": spread_over(0)}
    assert one("NS021", case(layer(), data=of)).facts["label"] == "0.01", "at least"
    of.by_domain = {"a": spread_over(0.6)}
    assert found("NS021", case(layer(), data=of)) == [], "a share of 4 % is none"
    per_condition = layer(mean=torch.ones(2, 2).double())
    of.by_domain = {"a": spread_over(2)}
    assert found("NS021", case(per_condition, data=of)) == []
    alone = Composition()
    for domain in (0, 1, 0, 1):
        alone.add(torch.full((8,), domain))
    of.places, of.by_class = alone, {"a": spread_over(3)}
    assert len(found("NS021", case(layer(), data=of))) == 1, "whole batches of one domain"
    assert skipped("NS021", case(layer(), data=data())) == "doctor.skip.domains"


def test_a_share_of_variance_is_the_same_in_every_unit() -> None:
    for unit in (1e-4, 1.0, 1e4):
        whole = spread_over(2)
        sets = Moments(whole.count, whole.mean * unit, whole.m2 * unit**2)
        assert _eta2(sets) == pytest.approx(0.25)
        half = Moments(sets.count, sets.mean, sets.m2 * wide(1, 0))
        assert _eta2(half) == pytest.approx(0.5), "a constant channel has no share"
    constant = Moments(wide(9, 9), torch.zeros(2, 2).double(), torch.zeros(2, 2).double())
    assert _eta2(constant) == 0


def qualities(kind: str) -> tuple[Quality, Quality]:
    before, after = Quality(), Quality()
    for quality, value in ((before, 0.75), (after, 0.25)):
        quality.truth, quality.predicted = wide(3, 0, 1), wide(1, 1, 1)
        if kind == "metric":
            quality.metrics = [value]
        if kind != "loss":
            quality.right = [torch.full((4,), value)]
        quality.losses = [torch.full((4,), value)]
    return before, after


@pytest.mark.parametrize("kind", ["metric", "accuracy", "loss"])
def test_data_on_which_the_stored_statistics_do_better(kind: str) -> None:
    other, reference = qualities(kind)
    gap = comparison(0.3, (0.2, 0.7), other=other, reference=reference)
    far = data(by_batch={"a": [stream(wide(2, 2), wide(2, 2))]}, gap=gap)
    more: dict[str, Any] = {"data": far, "attribution": SimpleNamespace()}
    of = case(layer(), keep=True, **more)
    of.__dict__["restored"] = -3.0
    finding = one("NS029", of)
    assert told(finding) == ("info", round(0.5**0.5, 6), 0.1, "high", "")
    assert finding.facts == {
        "kind": kind, "eval": "0.75", "train": "0.25", "samples": "24", "classes": "2",
        "outputs": "3",
    }  # fmt: skip
    of = case(layer(), keep=False, **more)
    of.__dict__["restored"] = -3.0
    assert found("NS029", of) == []
    near = case(layer(), keep=True, data=data(gap=gap), attribution=more["attribution"])
    near.__dict__["restored"] = -3.0
    assert found("NS029", near) == [], "the statistics are those of the data"
    unknown = case(layer(), data=data(gap=comparison(0.3)), keep=True)
    assert skipped("NS029", unknown) == "doctor.skip.quality"


@pytest.mark.parametrize(("channels", "told_of"), [(20, False), (19, True)])
def test_one_channel_in_twenty_may_be_a_little_off(channels: int, told_of: bool) -> None:
    mean, var = torch.ones(channels).double(), torch.full((channels,), 2.0).double()
    off = mean.clone()
    off[7] += 0.42 * 2**0.5
    near = data(by_batch={"a": [stream(mean, var)]})
    got = found("NS003", case(layer(mean=off, var=var), data=near))
    assert [f.severity for f in got] == ["warning"] * told_of


def test_channels_that_are_broken_or_hardly_seen_do_not_count() -> None:
    var = torch.full((3,), 2.0).double()
    mean = torch.ones(3).double()
    off = layer(mean=wide(math.nan, 1 + 2**0.5, 1), var=var)
    finding = one("NS003", case(off, data=data(by_batch={"a": [stream(mean, var)]})))
    assert finding.channels == (1,)
    assert finding.facts["shift"] == in_digits(0.5**0.5)
    assert finding.facts["ratio"] == "1"


def alternating() -> MomentStream:
    """Batches whose means lie two below and two above 1, of one variance."""
    found = MomentStream()
    for shift in (-2.0, 2.0, -2.0, 2.0):
        found.add(Moments(wide(50).squeeze(), wide(1, 1) + shift, wide(99, 99)), 50)
    return found


@pytest.mark.parametrize(
    ("momentum", "share"),
    [(1.0, 1.0), (2.0, 1.0), (0.1, (0.1 / 1.9) ** 0.5), (0.0, 0.0), (-1.0, 0.0), (None, 0.0)],
)
def test_how_far_a_running_average_strays(momentum: float | None, share: float) -> None:
    """As far as the means of batches stand apart, less where many of them are averaged."""
    of = data(by_batch={"a": [alternating(), stream(wide(1, 1), wide(2, 2))]})
    one = (16 / 3 / (1.98 + 4)) ** 0.5
    strays = chance(of, layer(momentum=momentum))
    assert strays.tolist() == pytest.approx([one * share] * 2, rel=1e-6)


@pytest.mark.parametrize(("times", "told_of"), [(2.9, False), (3.1, True)])
def test_three_times_as_far_is_no_chance(times: float, told_of: bool) -> None:
    of = data(by_batch={"a": [alternating()]})
    state = layer(momentum=0.1, var=(1.98 + 4) * wide(200 / 199, 200 / 199))
    away = times * chance(of, state) * (5.98 * 200 / 199) ** 0.5
    assert bool(found("NS003", case(replace(state, mean=wide(1, 1) + away), data=of))) is told_of


def live(shift: Any, values: Any = (), **more: Any) -> Evidence:
    """Data in use, whose means are so many deviations off."""
    moved = stream(wide(1, 1) + torch.as_tensor(shift) * 2**0.5, wide(2, 2))
    answers = [Answer(torch.as_tensor(v, dtype=torch.float64)) for v in values]
    return Evidence(
        **{"stored": {"a": [moved], "x": [moved], "b": [moved]}, "eval": answers, **more}
    )


def test_data_in_use_are_compared_with_what_is_stored() -> None:
    assert skipped("NS022", case(layer(), data=data())) == "doctor.skip.live"
    for shift, expected in (
        (0.05, None), (0.3, ("warning", 0.3, 0.1)), (0.8, ("error", 0.8, 0.5)),
    ):  # fmt: skip
        got = found("NS022", case(layer(), data=data(), live=live(shift, [[[1.0], [2.0]]])))
        assert [told(f) for f in got] == (
            [] if expected is None else [(*expected, "high", "adapt")]
        )
    broken = layer("x", mean=wide(math.nan, 1))
    three = case(broken, layer("gone"), layer(), layer("b"), live=live(wide(0.3, 0.05)))
    finding = one("NS022", three)
    assert (finding.layer, finding.channels) == ("a", (0,)), "the first that is whole and reached"
    assert finding.facts == {"kind": "plain", "unsure": "nan"}
    whole = case(layer("x", var=wide(-1e-9, 2)), layer(), live=live(wide(0.0, 0.8)))
    assert one("NS022", whole).layer == "a", "what is damaged is not judged"


@pytest.mark.parametrize(
    ("values", "with_data", "unsure", "kind"),
    [
        ([[[0.0, 1.0]], [[1.0, 0.0]]], True, 2.0, "scale"),
        ([[[0.0, 1.0]]], True, 2.01, "classes"),
        ([[[0.0, 1.0]], [[1.0, 0.0, 2.0]]], True, 1.0, "scale"),  # outputs of several widths
        ([[[0.0], [1.0]]], True, 1.0, "plain"),  # no classes
        ([[[0.0, 1.0]], [[0.0, math.inf]]], True, 1.0, "plain"),
        ([[[0.0, 1.0]]], False, 1.0, "plain"),
    ],
)
def test_predictions_after_adapting_tell_what_kind_of_data_are_in_use(
    monkeypatch: pytest.MonkeyPatch, values: Any, with_data: bool, unsure: float, kind: str
) -> None:
    heard: list[Any] = []
    ours = SimpleNamespace(of=lambda kept: "as in training")
    theirs = SimpleNamespace(of=lambda kept: "in use")
    done = SimpleNamespace(
        undo=lambda: heard.append("undone"), unsure=lambda source: unsure * (source == "sure")
    )

    def answers(what: Any) -> Any:
        def heard_of(model: Any, of: Any) -> Any:
            heard.append(of)
            return what

        return heard_of

    monkeypatch.setattr(statistics, "certainty", answers("sure"))
    monkeypatch.setattr(statistics, "adapt", answers(done))
    of = case(
        layer(), subject=torch.nn.Identity(), live=live(0.3, values, reader=theirs),
        data=data(reader=ours) if with_data else None,
    )  # fmt: skip
    finding = one("NS022", of)
    known = kind != "plain"
    assert finding.facts == {"kind": kind, "unsure": in_digits(unsure if known else math.nan)}
    assert heard == (["as in training", "in use", "undone"] if known else [])


@pytest.mark.parametrize(
    ("keep", "shift", "attributed", "told_of"),
    [(True, 0.2, True, True), (False, 0.2, True, False), (True, 0.05, True, False), (True, 0.2, False, False)],
)  # fmt: skip
def test_a_few_samples_over_and_over_stand_for_nothing(
    keep: bool, shift: float, attributed: bool, told_of: bool
) -> None:
    few = data(by_batch={"a": [stream(wide(1, 1) + shift * 2**0.5, wide(2, 2))]}, gap=comparison())
    few.__dict__["distinct"] = 3
    few.kept = [Batch(0, None, 24, ())]
    of = case(layer(), data=few, keep=keep, attribution=SimpleNamespace() if attributed else None)
    of.__dict__["restored"] = -2.0
    got = found("NS029", of)
    assert bool(got) is told_of
    for finding in got:
        assert told(finding) == ("info", 0.2, 0.1, "high", "")
        assert finding.facts == {"kind": "few", "distinct": "3", "samples": "24"}


def test_a_constant_channel_does_not_hide_what_dropout_does() -> None:
    on, off = wide(4, 0), wide(2, 0)
    of = data(by_batch={"a": [stream(wide(1, 1), off)]}, dropped={"a": [stream(wide(1, 1), on)]})
    (finding,) = found("NS013", case(layer(var=on), data=of))
    assert finding.measured == pytest.approx(0.5**0.5)
