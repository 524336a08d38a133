"""How layers stand to each other: the whole answer of each check."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.doctor.checks import structure
from normscope.errors import ModelError
from normscope.probe.grammar import Batch
from tests.doctor.checks.cases import case, data, found, layer, one, skipped, told, wide


def test_biases_that_a_norm_takes_away_are_counted() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), nn.Linear(3, 4), nn.BatchNorm1d(4),
        nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(4),
    )  # fmt: skip
    finding = one("NS012", case(layer(), subject=model))
    assert told(finding) == ("info", 2, 0, "medium", "fold_bias")
    assert finding.facts == {"first": "1", "norm": "2", "pairs": "2", "count": "7"}
    assert found("NS012", case(layer(), subject=nn.Sequential(model[3], model[4]))) == []


def test_a_norm_on_the_output() -> None:
    norm = nn.BatchNorm1d(2)
    for last, told_of in ((nn.Identity(), True), (nn.Flatten(), True), (nn.ReLU(), False)):
        got = found("NS025", case(layer(), subject=nn.Sequential(nn.Linear(2, 2), norm, last)))
        assert [(f.layer, *told(f)) for f in got] == [("1", "info", 1, 0, "medium", "")] * told_of
    assert found("NS025", case(layer(), subject=nn.Sequential(norm))) == [], "it is all there is"


def folded(
    monkeypatch: pytest.MonkeyPatch, difference: float, x: Tensor, rounding: float = 0.0,
    layers: Any = ("a", "b"), **more: Any,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """A case whose folded model differs by so much, and what it was asked for."""
    asked: list[Any] = []

    def verify(inputs: Tensor, tolerance: float) -> Any:
        asked.append((len(inputs), tolerance))
        return SimpleNamespace(difference=difference)

    fold = lambda model: SimpleNamespace(folded=layers, verify=verify)
    monkeypatch.setattr(structure, "fold", more.pop("fold", fold))
    batch = Batch(0, None, len(x), more.pop("args", (x,)), more.pop("kwargs", {}))
    of = data(kept=[batch], rounding=rounding)
    return case(*more.pop("states", (layer(),)), subject=nn.Identity(), data=of), asked


X = torch.zeros(20, 2)


@pytest.mark.parametrize(
    ("x", "rounding", "allowed"),
    [
        (X, 0.0, 3.5e-4), (X.double(), 0.0, 3.5e-4), (X, 2**-8, 2**-4), (X.half(), 0.0, 2**-5),
        (X.half(), 2**-8, 2**-4), (X.half(), 2**-12, 2**-5),
    ],
)  # fmt: skip
def test_a_folded_model_may_differ_by_the_rounding_of_what_it_computes_in(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, rounding: float, allowed: float
) -> None:
    of, asked = folded(monkeypatch, allowed, x, rounding)
    assert found("NS024", of) == []
    assert asked == [(16, pytest.approx(allowed))]
    of, _ = folded(monkeypatch, 1.01 * allowed, x, rounding)
    finding = one("NS024", of)
    assert finding.threshold == pytest.approx(allowed)
    assert finding.measured == pytest.approx(1.01 * allowed)
    assert (finding.layer, finding.severity, finding.facts) == ("", "error", {"count": "2"})


def test_what_cannot_be_folded_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(problem: Exception) -> Any:
        def fold(model: nn.Module) -> Any:
            raise problem

        return fold

    more: Any
    for more in (
        {"args": (X, X)}, {"args": ([X],)}, {"kwargs": {"mask": X}}, {"x": X.long()},
        {"states": (layer(var=wide(math.nan, 1)),)}, {"layers": ()},
        *({"fold": fails(e)} for e in (ModelError("no"), TypeError("no"), RuntimeError("no"))),
    ):  # fmt: skip
        given: dict[str, Any] = {"x": X, **more}
        of, _ = folded(monkeypatch, 9.0, **given)
        assert skipped("NS024", of) == "doctor.skip.fold", more
    of, _ = folded(monkeypatch, 9.0, X)
    assert len(found("NS024", of)) == 1
