"""Which channels are told apart, in which order, and by what numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from normscope.doctor.channels import channel_gaps
from normscope.doctor.checks import CheckContext
from normscope.doctor.evidence import Evidence
from normscope.doctor.state import LayerState
from normscope.records import Finding

MEAN, VAR = torch.zeros(16).double(), torch.full((16,), 4.0).double()


def state(name: str, off: dict[int, float]) -> LayerState:
    mean = MEAN.clone()
    for channel, deviations in off.items():
        mean[channel] = 2 * deviations
    return LayerState(name, mean, VAR.clone(), None, None, 1, 0.1, 1e-5, torch.float32)


def finding(layer: str, severity: Any = "warning") -> Finding:
    return Finding(code="NS003", severity=severity, layer=layer, measured=1, threshold=0, source="")


def gaps(
    *states: LayerState, found: Any = None, known: tuple[Tensor, Tensor] = (MEAN, VAR)
) -> list[tuple[str, int, float]]:
    data = Evidence(
        by_batch={s.name: [] for s in states if s.name != "unseen"},
        _population={s.name: known for s in states},
    )
    named = [finding(s.name) for s in states] if found is None else found
    told = channel_gaps(CheckContext(list(states), data=data), named)
    return [(gap.layer, gap.channel, round(gap.distance, 6)) for gap in told]


def test_the_furthest_channels_come_first_and_those_that_are_alike_not_at_all() -> None:
    assert gaps(state("a", {3: 0.5, 7: -2, 9: 0.1, 11: 0.11})) == [
        ("a", 7, 2), ("a", 3, 0.5), ("a", 11, 0.11),
    ]  # fmt: skip
    assert gaps(state("a", {})) == []
    assert channel_gaps(CheckContext([state("a", {1: 3})]), [finding("a")]) == (), "no data"


def test_layers_take_turns_the_one_that_is_furthest_off_first() -> None:
    many = state("many", dict.fromkeys(range(16), 1.0))
    worst, none = state("worst", {1: 3, 2: 0.2}), state("none", {})
    found = gaps(none, many, worst)
    assert [name for name, _, _ in found[:5]] == ["worst", "many", "worst", "many", "many"]
    assert len(found) == 12
    assert len(gaps(many)) == 12


def test_layers_with_a_note_or_that_no_data_reached_are_left_out() -> None:
    states = [state(name, {1: 3}) for name in ("noted", "bad", "unseen", "well")]
    named = [finding("noted", "info"), finding("bad", "error"), finding("unseen"), finding("")]
    assert gaps(*states, found=named) == [("bad", 1, 3)]


def test_the_numbers_of_a_channel_are_those_stored_and_those_of_the_data() -> None:
    data = Evidence(by_batch={"a": []}, _population={"a": (MEAN + 1, VAR)})
    of = replace(state("a", {}), var=torch.full((16,), 9.0).double())
    of.mean[5] = 4
    (first, *_) = channel_gaps(CheckContext([of], data=data), [finding("a")])
    assert (first.layer, first.channel, first.condition) == ("a", 5, None)
    assert (first.stored_mean, first.stored_var, first.mean, first.var) == (4, 9, 1, 4)
    assert first.distance == pytest.approx((3**2 + 1**2) ** 0.5 / 2)
    unknown = (MEAN, torch.full((16,), torch.nan).double())
    assert gaps(state("a", {1: 3}), known=unknown) == [], "one value has no variance"


def test_statistics_by_condition_are_told_with_their_condition() -> None:
    mean, var = torch.zeros(2, 3).double(), torch.ones(2, 3).double()
    off = mean.clone()
    off[1, 2] = 5
    of = LayerState("a", off, var, None, None, 1, 0.1, 1e-5, torch.float32)
    data = Evidence(by_batch={"a": []}, _population={"a": (mean, var)})
    (gap,) = channel_gaps(CheckContext([of], data=data), [finding("a")])
    assert (gap.condition, gap.channel, gap.stored_mean, gap.distance) == (1, 2, 5, 5)
