"""Every public name used as the docs use it: a file for mypy --strict, which no test runs."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor, nn

import normscope
from normscope import records
from normscope.doctor import Adaptation, Recalibration, Repair
from normscope.lens import Monitor

Batches = list[tuple[Tensor, Tensor]]


def seeing(model: nn.Module, loader: Batches) -> None:
    seen = normscope.inspect(model, loader, classes=["cat", "dog"], progress=False)
    assert_type(seen, records.Inspection)
    assert_type(seen.to_rows(), list[dict[str, Any]])
    seen.to_frame()
    seen.plot(1)
    assert_type(seen.save_html("page.html", lang="zh"), Path)
    assert_type(seen.save("seen.json"), Path)
    assert_type(records.Inspection.load("seen.json"), records.Inspection)
    assert_type(records.Inspection.from_json(seen.to_json()), records.Inspection)
    assert_type(normscope.load("seen.json"), records.Record)
    assert_type(normscope.compare(seen, seen), records.Difference)
    assert_type(seen.layers[0].stages[0].eta2_mean, float)
    lesson = normscope.explain([[50, 52, 54, 56], [2, 4, 6, 8]], gamma=[5, 2], beta=[10, 3])
    assert_type(lesson, records.Lesson)


def healing(model: nn.Module, loader: Batches, optimizer: torch.optim.Optimizer) -> None:
    found = normscope.diagnose(model, loader, optimizer=optimizer, progress=True)
    assert_type(found, records.Diagnosis)
    assert_type(found.codes, tuple[str, ...])
    repair = normscope.repair(model, found, loader)
    assert_type(repair, Repair)
    assert_type(repair.record, records.Repaired)
    assert_type(repair.undo(), nn.Module)
    assert_type(normscope.recalibrate(model, loader), Recalibration)
    assert_type(normscope.adapt(model, loader), Adaptation)
    normscope.assert_healthy(model, loader)
    watching = normscope.monitor(model, every=10)
    assert_type(watching, Monitor)
    for x, y in loader:
        with watching.step(y), normscope.guard(model, update="step", optimizer=optimizer):
            model(x).sum().backward()
    normscope.commit(model)
    normscope.merge_ranks(model)
    with normscope.snapshot(model):
        model.train()


def exchanging(model: nn.Module, state: dict[str, Tensor], arrays: dict[str, Any]) -> None:
    done = normscope.convert(model, "ghost", ghost_size=16)
    assert_type(done.verify(torch.randn(4, 3, 8, 8)).ok, bool)
    folded = normscope.fold(model)
    assert_type(folded.model, nn.Module)
    normscope.from_keras(arrays)
    normscope.from_flax(arrays, eps=1e-3)
    normscope.from_inplace_abn(state)
    assert_type(normscope.Policy(), normscope.Policy)


def proving(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    assert_type(normscope.parity(model, other, x, ignore=["momentum"]), records.Parity)
    assert_type(normscope.assert_parity(model, other, x).ok, bool)
    own = normscope.passport(model, [x])
    assert_type(own, records.Passport)
    assert_type(normscope.write_passport("model.pt", own), Path)
    assert_type(normscope.read_passport("model.pt"), records.Passport | None)
    assert_type(normscope.apply_passport(other, own), tuple[str, ...])
    assert_type(normscope.claims("residual_depth", seeds=1), records.Claims)
    run = normscope.train("digits", norms=["batch"], epochs=3, seeds=1, sweep=(), out="runs/mine")
    assert_type(run, records.Run)


def layers(x: Tensor) -> None:
    for layer in (
        normscope.BatchNorm2d(3, eps=1e-3, act="relu", bias=False, device="cpu"),
        normscope.GhostBatchNorm2d(3, 16, momentum=None),
        normscope.BatchRenorm2d(3, r_max=2.0, dtype=torch.float64),
        normscope.EvalNorm2d(3, 0.1, affine=False),
    ):
        assert_type(layer.num_features, int)
        layer(x, residual=x, mask=x[:, 0] > 0)
    normscope.FrozenBatchNorm2d(3, act="silu")(x)
    normscope.ModeNorm2d(3, num_modes=2)(x)
    conditional = normscope.ConditionalBatchNorm2d(3, num_conditions=4, missing="pooled")
    with normscope.condition(torch.tensor([0, 1])):
        conditional(x)
    for made in (
        normscope.BatchNorm1d(3), normscope.BatchNorm3d(3),
        normscope.GhostBatchNorm1d(3, 4), normscope.GhostBatchNorm3d(3, 4),
        normscope.BatchRenorm1d(3), normscope.BatchRenorm3d(3),
        normscope.EvalNorm1d(3), normscope.EvalNorm3d(3),
    ):  # fmt: skip
        assert_type(made.eps, float)
    for other in (
        normscope.FrozenBatchNorm1d(3), normscope.FrozenBatchNorm3d(3),
        normscope.ModeNorm1d(3, 2), normscope.ModeNorm3d(3, 2),
        normscope.ConditionalBatchNorm1d(3, 2), normscope.ConditionalBatchNorm3d(3, 2),
    ):  # fmt: skip
        assert_type(other.training, bool)
    with normscope.recompute():
        normscope.BatchNorm2d(3)(x)
    assert_type(normscope.functional.batch_norm(x, training=True), Tensor)
    assert_type(normscope.moments.Moments, type[normscope.Moments])


def failing() -> None:
    kinds: tuple[type[normscope.NormscopeError], ...] = (
        normscope.InputError,
        normscope.ModelError,
        normscope.FileError,
        normscope.MissingExtraError,
    )
    assert_type(kinds[0].slug, str)
    np.asarray(kinds)
