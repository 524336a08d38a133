"""Layers, data and cases made by hand, to which nothing is wrong, and what a check says of them."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from normscope.doctor.checks import CHECKS, CheckContext
from normscope.doctor.checks.base import Skip
from normscope.doctor.evidence import Evidence
from normscope.doctor.state import LayerState
from normscope.moments import Moments
from normscope.probe.compare import Quality
from normscope.probe.stream import MomentStream
from normscope.records import Finding

# what each needs, whether it is particular (2), general or a symptom; its cause and its repair
REGISTERED: dict[str, tuple[str, int, str, str]] = {
    "NS001": ("model", 2, "mode", "eval_mode"),
    "NS002": ("checkpoint", 2, "cold", "correct_cold"),
    "NS003": ("data", 1, "stale", "recalibrate"), "NS004": ("data", 0, "", ""),
    "NS005": ("model", 2, "momentum", "momentum"),
    "NS006": ("checkpoint", 2, "eps", "choose_eps"), "NS007": ("data", 2, "", "own_weight"),
    "NS008": ("data", 2, "", ""), "NS009": ("checkpoint", 2, "not_finite", "repair_channels"),
    "NS010": ("checkpoint", 2, "", ""), "NS011": ("checkpoint", 2, "", ""),
    "NS012": ("model", 2, "", "fold_bias"), "NS013": ("data", 2, "dropout", "recalibrate"),
    "NS014": ("model", 2, "fake_freeze", "freeze"),
    "NS015": ("checkpoint", 2, "averaged", "recalibrate"), "NS016": ("model", 2, "", ""),
    "NS017": ("data", 2, "reused", "split"), "NS018": ("model", 2, "", ""),
    "NS019": ("model", 2, "", ""), "NS020": ("data", 2, "", ""),
    "NS021": ("data", 2, "domains", "domains"), "NS022": ("data", 1, "", "adapt"),
    "NS023": ("checkpoint", 2, "", ""), "NS024": ("data", 2, "", ""),
    "NS025": ("model", 2, "", ""), "NS026": ("data", 2, "", ""),
    "NS027": ("checkpoint", 2, "double_updates", "recalibrate"),
    "NS028": ("checkpoint", 2, "", ""), "NS029": ("data", 2, "", ""),
    "NS030": ("model", 2, "not_following", "copy_buffers"), "NS031": ("checkpoint", 2, "", ""),
    "NS032": ("checkpoint", 2, "", ""), "NS033": ("data", 2, "other_scale", ""),
}  # fmt: skip


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def layer(name: str = "a", **changes: Any) -> LayerState:
    """A layer of two channels to which nothing is wrong."""
    well = LayerState(
        name=name, mean=wide(1, 1), var=wide(2, 2), weight=wide(1, 1), bias=wide(0, 0),
        tracked=1000, momentum=0.1, eps=1e-5, dtype=torch.float32,
    )  # fmt: skip
    return replace(well, **changes)


def stream(mean: Tensor, var: Tensor, batches: int = 4, n: int = 50) -> MomentStream:
    """So many equal batches of n values, with this mean and this unbiased variance in all."""
    found, total = MomentStream(), batches * n
    for _ in range(batches):
        m2 = var * (total - 1) / batches
        found.add(Moments(torch.full(mean.shape[:-1], float(n)).double(), mean, m2), n)
    return found


def data(**more: Any) -> Evidence:
    """Data that agree with `layer`."""
    as_stored = {"a": [stream(wide(1, 1), wide(2, 2))]}
    met = more.pop("by_batch", as_stored)
    return Evidence(**{"by_batch": met, "stored": met, "sizes": [8, 8, 8], **more})


class Sure(CheckContext):
    """A case in which it is given whether the gap matters and whether to keep what is stored."""

    matters, keep, sizes = False, False, {}  # type: ignore[var-annotated]
    gap_matters = property(lambda self: self.matters)
    keep_stored = property(lambda self: self.keep)
    scales = property(lambda self: self.sizes)


def case(*layers: LayerState, matters: bool = False, keep: bool = False, **more: Any) -> Any:
    sizes = more.pop("sizes", {})
    found = Sure(list(layers), **more)
    found.matters, found.keep, found.sizes = matters, keep, sizes
    return found


def found(code: str, of: Any) -> list[Finding]:
    check = CHECKS[code]()
    assert (check.needs, check.specific, check.cause, check.repair) == REGISTERED[code]
    return list(check.find(of))


def one(code: str, of: Any) -> Finding:
    (only,) = found(code, of)
    assert (only.code, only.source) == (code, CHECKS[code].source)
    return only


def told(finding: Finding) -> tuple[Any, ...]:
    measured = round(finding.measured, 6)
    return finding.severity, measured, finding.threshold, finding.confidence, finding.repair


def skipped(code: str, of: Any) -> str:
    with pytest.raises(Skip) as why:
        found(code, of)
    return str(why.value)


def comparison(
    worse: float = 0.0, accuracies: tuple[float, float] = (math.nan, math.nan), **more: Any
) -> Any:
    """A gap whose numbers are given."""
    known = not math.isnan(accuracies[0])
    facts = {
        "known": known, "relative": worse, "disagreement": math.nan, "advantage": 0.0,
        "samples": 24, "accuracies": accuracies, "reference": Quality(), "other": Quality(),
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **more})
