"""How batches are made: the whole answer of each check on numbers made by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from normscope.doctor.checks.base import in_digits
from normscope.doctor.evidence import Composition, LayerSample
from normscope.moments import Moments
from tests.doctor.checks.cases import case, comparison, data, found, layer, one, skipped, told, wide


@pytest.mark.parametrize(
    ("size", "positions", "matters", "expected"),
    [
        (16, 1, True, None), (15, 1, True, ("warning", 15, 16)), (3, 1, True, ("error", 3, 16)),
        (4, 1, True, ("warning", 4, 16)), (3, 1, False, ("warning", 3, 16)),
        (1, 9, True, ("warning", 9, 16)),
    ],
)  # fmt: skip
def test_batches_that_are_too_small(
    size: int, positions: int, matters: bool, expected: Any
) -> None:
    def sample(p: int) -> LayerSample:
        independent = Moments(wide(100).squeeze(), wide(0, 0), wide(100, 100) / p)
        whole = Moments(wide(100 * p).squeeze(), wide(0, 0), wide(100 * p, 100 * p))
        return LayerSample(sizes=[size] * 3, positions=p, means=independent, all=whole)

    layers = {"a": sample(positions), "large": sample(100)}
    of = case(
        layer("large"), layer("none"), layer(), data=data(layers=layers, sizes=[size] * 3),
        matters=matters,
    )  # fmt: skip
    got = found("NS007", of)
    if expected is None:
        assert got == []
        return
    (finding,) = got
    assert told(finding) == (*expected, "high", "own_weight")
    assert finding.layer == "a"
    assert finding.facts == {"size": str(size), "kind": "alone" if size == 1 else "small"}


def test_a_last_batch_of_one_is_told_where_it_would_fail() -> None:
    of = data(sizes=[64, 64, 1], layers={"a": LayerSample(sizes=[64, 64, 1])})
    finding = one("NS007", case(layer(), data=of))
    assert (finding.layer, finding.facts) == ("", {"size": "1", "kind": "last"})
    assert told(finding) == ("warning", 1, 16, "high", "own_weight")
    of.layers = {"a": LayerSample(sizes=[64, 64, 1], positions=4)}
    assert found("NS007", case(layer(), data=of)) == [], "an image has several positions"
    of.layers = {"a": LayerSample(sizes=[640])}
    assert found("NS007", case(layer(), data=of)) == [], "the number of samples is not known"
    assert skipped("NS007", case(layer("b"), data=of)) == "doctor.skip.none"


def of_labels(*batches: list[int]) -> Composition:
    found = Composition()
    for labels in batches:
        found.add(torch.tensor(labels))
    return found


SORTED = of_labels(*[[i % 2] * 8 for i in range(6)])


PLACES = of_labels(*[[0, 1, 2, 3] * 2] * 6)


@pytest.mark.parametrize(
    ("labels", "matters", "keep", "expected"),
    [
        (SORTED, True, False, ("error", 1, 0.3)), (SORTED, False, False, ("warning", 1, 0.1)),
        (SORTED, True, True, ("warning", 1, 0.1)), (PLACES, True, False, ("error", 1, 0.3)),
        (PLACES, False, False, ("info", 1, 0.1)), (PLACES, True, True, ("warning", 1, 0.1)),
    ],
)  # fmt: skip
def test_batches_whose_samples_belong_together(
    labels: Composition, matters: bool, keep: bool, expected: Any
) -> None:
    finding = one("NS008", case(layer(), data=data(labels=labels), matters=matters, keep=keep))
    assert told(finding) == (*expected, "high", "")
    kind = "mates" if labels is SORTED else "places"
    assert (finding.layer, finding.facts) == ("", {"kind": kind, "left": "0"})


def test_why_nothing_can_be_said_of_the_composition_of_batches() -> None:
    for labels, why in (
        (of_labels(*[[3] * 8] * 6), "doctor.skip.one_class"),
        (of_labels([0, 1, 0, 1]), "doctor.skip.one_batch"),
        (Composition(), "doctor.skip.labels"),
    ):
        assert skipped("NS008", case(layer(), data=data(labels=labels))) == why


def of_correlation(r: float, batches: int = 400, n: int = 8) -> LayerSample:
    """Sample means whose share r of variance lies between the batches."""
    within = 1 - r
    msw, msb = within, within + n * r
    m2 = wide(msw * batches * (n - 1) + msb * (batches - 1))
    means = Moments(wide(batches * n).squeeze(), wide(0), m2)
    return LayerSample(
        sizes=[n] * batches, means=means, within=wide(msw * batches * (n - 1)), all=means
    )


def test_the_layer_whose_samples_hang_together_most_is_told() -> None:
    layers = {"a": of_correlation(0.0), "b": of_correlation(0.3), "c": of_correlation(0.5)}
    layers |= {"d": of_correlation(0.4), "e": LayerSample()}
    assert layers["b"].batch_correlation()[0] == pytest.approx(0.3)
    finding = one("NS008", case(layer(), data=data(layers=layers), matters=True))
    assert (finding.layer, finding.severity) == ("c", "error")
    assert finding.measured == pytest.approx(0.5)
    assert finding.facts == {"kind": "means", "left": in_digits(0.5 * 7 / 8)}
    alone = {"a": of_correlation(0.05)}
    assert found("NS008", case(layer(), data=data(layers=alone), matters=True)) == []


@pytest.mark.parametrize(
    ("padded", "known", "matters", "severity"),
    [(0.04, False, False, None), (0.06, False, False, "warning"), (0.06, True, False, "info"), (0.06, True, True, "warning")],
)  # fmt: skip
def test_padding_that_counts_as_data(
    padded: float, known: bool, matters: bool, severity: str | None
) -> None:
    gap = comparison(0.0, (0.9, 0.9)) if known else comparison()
    layers = {"a": LayerSample(padded=padded), "b": LayerSample(padded=0.9), "0": LayerSample()}
    layers = layers if severity else {"a": layers["a"]}
    of = case(layer("none"), layer("0"), layer(), layer("b"), data=data(gap=gap, layers=layers),
              matters=matters)  # fmt: skip
    got = found("NS020", of)
    assert [f.severity for f in got] == ([] if severity is None else [severity])
    for finding in got:
        assert told(finding) == (severity, padded, 0.05, "medium", "")
        assert finding.layer == "a", "the first that is reached"


def test_an_output_that_depends_on_its_company() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2)
    )
    for norm, severity, confidence, kind in (
        (True, "error", "high", "norm"), (False, "warning", "medium", "other"),
    ):  # fmt: skip
        of = case(layer(), subject=model, data=data(leak=0.0011, normalised=norm))
        finding = one("NS026", of)
        assert told(finding) == (severity, 0.0011, 1e-3, confidence, "")
        assert (finding.layer, finding.facts) == ("1", {"change": "0.0011", "kind": kind})
    other = nn.Sequential(nn.BatchNorm1d(2))
    assert one("NS026", case(layer(), subject=other, data=data(leak=1.0))).layer == ""
    assert found("NS026", case(layer(), subject=model, data=data(leak=0.0009))) == []
    for sizes, why in (([2, 1], "outputs"), ([1, 2], "single")):
        of = case(layer(), subject=model, data=data(leak=math.nan, sizes=sizes))
        assert skipped("NS026", of) == f"doctor.skip.{why}"
