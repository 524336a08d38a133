"""What all checks share: thresholds, what they need, what is known of a case, what is fixed."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from normscope.doctor.checks import CHECKS, CheckContext
from normscope.doctor.evidence import Evidence
from normscope.probe.compare import Comparison
from tests.doctor.checks.cases import REGISTERED, case, data, layer, stream, wide


def test_a_larger_number_is_graded_by_two_thresholds() -> None:
    check = CHECKS["NS003"]()
    check.warn, check.fail = 1, 2
    assert [check.graded(v) for v in (1, 1.1, 2, 2.1)] == [
        None, ("warning", 1), ("warning", 1), ("error", 2),
    ]  # fmt: skip
    assert check.graded(3, case(layer())) == ("error", 2), "nothing says that it does no harm"
    assert check.graded(3, case(layer(), data=data())) == ("warning", 1)
    assert check.graded(3, case(layer(), data=data(), matters=True)) == ("error", 2)
    mask = torch.zeros(2, 30).bool()
    mask[:, 3:28] = True
    finding = check.finding("a", "info", 1, 2, channels=mask, repair="split", n=1, x=0.12345)
    assert finding.channels == tuple(range(3, 23))
    assert (finding.repair, finding.facts) == ("split", {"n": "1", "x": "0.123"})
    for code, subject, evidence, why in (
        ("NS002", None, None, None), ("NS001", None, None, "doctor.skip.model"),
        ("NS003", None, None, "doctor.skip.model"), ("NS001", nn.BatchNorm1d(2), None, None),
        ("NS003", nn.BatchNorm1d(2), None, "doctor.skip.data"),
        ("NS003", nn.BatchNorm1d(2), data(), None),
    ):  # fmt: skip
        assert CHECKS[code]().missing(case(layer(), subject=subject, data=evidence)) == why


def test_a_gap_is_looked_at_with_data_only() -> None:
    plain = CheckContext([layer()])
    assert not plain.gap_matters
    assert math.isnan(plain.restored)
    assert not plain.keep_stored
    assert plain.scales == {}
    assert plain.away(layer()) is None
    with_data = CheckContext([layer(), layer("b", var=wide(-1, 1))], data=data(gap=Comparison()))
    assert with_data.damaged == {"b"}
    assert with_data.away(layer("b")) is None
    away = with_data.away(layer(mean=wide(1, 1 + 2**0.5)))
    assert away is not None
    torch.testing.assert_close(away, wide(0, 1), atol=1e-6, rtol=1e-6)
    single = data(by_batch={"a": [stream(wide(5, 5), wide(0, 0), 1, 1)]})
    away = CheckContext([layer()], data=single).away(layer())
    assert away is not None
    assert away.tolist() == [0, 0], "one value has no variance"


def test_scales_are_those_of_layers_that_are_whole_and_were_run() -> None:
    mean, var = wide(1, -2, 3, 4), wide(1, 4, 16, 64)
    state = layer(mean=mean, var=var, module=nn.BatchNorm1d(4))
    twice = [stream(2 * mean, 4 * var)]
    calls = {"a": twice, "bad": twice, "same": [stream(mean, var)]}
    states = [state, replace(state, name="gone"), replace(state, name="same")]
    states.append(replace(state, name="bad", var=wide(1, 4, 16, 64) * wide(1, 1, 1, -1)))
    of = CheckContext(
        states, nn.Linear(2, 2), Evidence(by_batch=calls, stored={**calls, "gone": twice})
    )
    assert list(of.scales) == ["a"]
    assert of.scales["a"] == pytest.approx(2)
    states[3] = replace(states[3], var=var)
    assert list(CheckContext(states, of.model, of.data).scales) == ["a", "bad"]


def attributed(**more: Any) -> Any:
    """An attribution whose answers are what it was asked to override."""
    facts = {
        "target": {"a": ("mean", "var"), "b": ("other", "other")}, "train": "train",
        "eval": "eval", "answers": lambda over: over, "by_domain": lambda: "by domain",
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **more})


def test_what_is_fixed_to_measure_a_cause() -> None:
    of = case(layer(), attribution=attributed())

    def fixed(code: str, of: Any) -> Any:
        return CHECKS[code]().fixed(of, ("a",))

    for code, expected in (
        ("NS003", ("stale", {"a": ("mean", "var")}, frozenset())), ("NS017", ("reused", {}, {"a"})),
    ):  # fmt: skip
        name, over = fixed(code, of)
        assert (name, over.stored, over.by_batch) == expected
    assert fixed("NS021", of) == ("domains", "by domain")
    for change, answers in ((0.0011, "train"), (0.0009, "eval")):
        moved = attributed(changes=lambda answers, change=change: change)
        assert fixed("NS001", case(layer(), attribution=moved)) == (
            "mode",
            answers,
        )
    for code in ("NS007", "NS010", "NS004", "NS006"):
        assert fixed(code, of) is None, "no cause, or no other eps was found"
    for code in ("NS001", "NS002", "NS003", "NS006"):
        assert fixed(code, case(layer())) is None


def test_no_check_is_left_out_of_what_is_known_of_them() -> None:
    assert sorted(CHECKS) == list(REGISTERED)
    for code, check in CHECKS.items():
        assert (check.needs, check.specific, check.cause, check.repair) == REGISTERED[code]
