"""Adapting to live data, the collapse that is taken back, and the watch during training."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normscope import InputError, ModelError
from normscope.doctor import (
    Watch,
    adapt,
    assert_healthy,
    callbacks,
    certainty,
    diagnose,
    repair,
)
from normscope.doctor.adapt import Certainty
from tests.doctor.patients import healthy, in_training, judges, norms, state
from tests.extras import quiet_import


def live(change: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(change(x), y) for x, y in judges()]


@torch.no_grad()
def right(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    return float(torch.cat([model(x).argmax(1) == y for x, y in batches]).double().mean())


def test_adapted_statistics_are_the_weighted_mean() -> None:
    model = healthy()
    layer = norms(model)[0]
    batches = live(lambda x: 0.4 * x + 1)
    source = layer.running_mean.clone()
    with torch.no_grad():
        x = torch.cat([model[:2](x) for x, _ in batches])
    done = adapt(model, batches, prior=100)
    want = (100 * source + len(x) * x.mean(0)) / (100 + len(x))
    torch.testing.assert_close(layer.running_mean, want, rtol=1e-4, atol=1e-4)
    assert done.samples == len(x)
    before = state(healthy())
    assert state(done.undo()) == before


def test_a_change_of_scale_is_helped_and_that_is_known_without_labels() -> None:
    model = healthy()
    sure = certainty(model, in_training())
    batches = live(lambda x: 0.4 * x + 1)
    ill = right(model, batches)
    done = adapt(model, batches)
    assert right(model, batches) > ill + 0.1
    assert done.promising(sure)
    done.undo()
    torch.manual_seed(0)
    noise = live(lambda x: torch.randn_like(x))
    assert not adapt(model, noise).promising(sure)


def test_learning_that_collapses_is_taken_back() -> None:
    torch.manual_seed(0)
    model = healthy()
    noise = live(lambda x: x + 2 * torch.randn_like(x))
    statistics_only = healthy()
    adapt(statistics_only, noise)
    done = adapt(model, noise, learn=True, lr=0.3, steps=10)
    assert done.collapsed
    assert state(model) == state(statistics_only)
    assert [p.requires_grad for p in model.parameters()] == [True] * 10
    mild = adapt(model, live(lambda x: 0.5 * x), learn=True)
    assert not mild.collapsed
    with pytest.raises(InputError, match="prior is -1"):
        adapt(model, noise, prior=-1)


def test_a_failing_loader_leaves_the_model() -> None:
    model = healthy()
    before = state(model)
    with pytest.raises(InputError, match="gave no sample"):
        adapt(model, [])
    assert state(model) == before


def test_the_watch_tells_each_finding_once() -> None:
    model = healthy().train()
    told: list[Any] = []
    watch = Watch(model, told.append)
    watch()
    assert told == []
    norms(model)[0].running_var[2] = torch.inf
    assert watch().codes[0] == "NS009"
    watch()
    assert [(f.code, f.layer) for f in told] == [("NS009", "2")]
    with pytest.warns(UserWarning, match="NS009 error in 2"):
        Watch(model)()


def test_assert_healthy_names_every_finding() -> None:
    assert_healthy(healthy(), in_training())
    model = healthy()
    norms(model)[0].running_mean += 9
    with pytest.raises(AssertionError, match=r"not healthy:\nNS003 error in 2"):
        assert_healthy(model, in_training())
    with pytest.raises(InputError, match="fail_on is 'all'"):
        assert_healthy(model, fail_on="all")


def test_the_fixture_is_found_by_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from torch import nn\n"
        "def test_it(assert_healthy):\n"
        "    layer = nn.BatchNorm1d(2)\n"
        "    layer.running_var.fill_(-1)\n"
        "    assert_healthy(layer)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "normscope.pytest_plugin", "-q", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "NS009 error in BatchNorm1d" in done.stdout


def test_repair_adapts_to_live_data_where_these_gain() -> None:
    model = healthy()
    before, batches = state(model), live(lambda x: 0.4 * x + 1)
    found = diagnose(model, in_training(), live=batches)
    drift = next(f for f in found.findings if f.code == "NS022")
    assert drift.facts["kind"] == "scale"
    ill = right(model, batches)
    done = repair(model, found, in_training(), live=batches)
    assert done.record.kept == ("adapt",)
    assert right(model, batches) > ill + 0.1
    assert state(done.undo()) == before
    assert repair(model, found, in_training()).record.trials[0].note == (
        "it needs data as in use (live)"
    )
    torch.manual_seed(0)
    noise = live(lambda x: torch.randn_like(x))
    found = diagnose(model, in_training(), live=noise)
    drift = next(f for f in found.findings if f.code == "NS022")
    assert drift.facts["kind"] == "classes"
    assert state(model) == before


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_lightning_asks_the_cheap_checks_each_epoch(tmp_path: Path) -> None:
    pl = quiet_import("pytorch_lightning")

    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = healthy()
            norms(self.net)[0].momentum = 0.99

        def training_step(self, batch: Any, place: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    told: list[Any] = []
    callback = callbacks.lightning(told.append)
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(in_training()[:4], batch_size=None))
    assert [(f.code, f.layer) for f in told] == [("NS005", "net.2")]  # once, not once an epoch
    assert callback.record.layers == 2


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer_asks_the_cheap_checks_each_epoch(tmp_path: Path) -> None:
    transformers = quiet_import("transformers")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = healthy()
            norms(self.net)[0].momentum = 0.99

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    told: list[Any] = []
    callback = callbacks.trainer(told.append)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, num_train_epochs=2,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    x, y = in_training()[0]
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    transformers.Trainer(
        model=Model(), args=arguments, train_dataset=data, callbacks=[callback]
    ).train()
    assert [(f.code, f.layer) for f in told] == [("NS005", "net.2")]
    assert callback.record.layers == 2


def test_entropy_is_compared_with_that_of_the_source() -> None:
    sure = replace(adapt(healthy(), in_training()[:2]), after=Certainty(0.3, 1.0))
    assert sure.unsure(Certainty(0.2, 1.0)) == pytest.approx(1.5)
    assert sure.unsure(Certainty(0.01, 1.0)) == pytest.approx(6), "of 0.05 nats at least"
    assert [sure.promising(Certainty(e, 1.0)) for e in (0.151, 0.149)] == [True, False]


def test_outputs_that_are_no_scores_have_no_entropy() -> None:
    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(x)
            return y.sum(1)

    model, batches = Values().eval(), [torch.randn(8, 3) + 2 for _ in range(3)]
    for value in (certainty(model, batches), adapt(model, batches).after):
        assert math.isnan(value.entropy)
        assert math.isnan(value.diversity)
    assert (model.norm.running_mean > 1).all(), "the statistics are adapted all the same"
    with pytest.raises(ModelError, match="no score of classes .* leave learn out"):
        adapt(model, batches, learn=True)
