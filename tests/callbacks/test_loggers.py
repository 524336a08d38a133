"""Telemetry reaches the loggers that people have; what was written is read back."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normscope import lens
from normscope.errors import InputError, MissingExtraError
from normscope.lens import sinks
from tests.extras import lightning_module, quiet_import

X, Y = torch.randn(24, 3), torch.arange(24) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def train(model: nn.Module, watching: lens.Monitor, steps: int = 3) -> dict[int, dict[str, float]]:
    """Train, and return what was measured by step."""
    optimiser, seen = torch.optim.SGD(model.parameters(), 0.1), {}
    for step in range(steps):
        with watching.step(Y):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            optimiser.step()
        seen[step] = dict(watching.last)
    return {step: values for step, values in seen.items() if step % watching.every == 0}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard reads: name -> step -> value."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: dict[str, dict[int, float]] = {}
    for file in folder.rglob("events.out.tfevents*"):
        events = reader.EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({e.step: e.value for e in events.Scalars(name)})
    return found


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run of wandb: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + size > len(data):
            return
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(part)
            part = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DISABLE_CODE", "true")
    wandb, model = quiet_import("wandb"), network()
    with pytest.raises(InputError, match=r"no run of wandb is active; start one with wandb.init"):
        sinks.sink(wandb)
    run = wandb.init(project="p", mode="offline", dir=tmp_path)
    try:
        to = sinks.wandb(layers={"1": model[1]})  # of the active run
        watching = lens.monitor(model, every=2, to=[to])
        seen: dict[int, dict[str, float]] = {}
        for step in range(4):
            seen |= {2 * step: train(model, watching, 2)[0]}
            run.log({"loss": step}, step=2 * step + 1)  # a loop that counts steps itself
        lens.monitor(model, to=[run])
    finally:
        run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows: list[dict[str, Any]] = []
    axes: dict[str, str] = {}
    for _ in range(200):  # its service writes the last of it behind finish()
        found = list(records(file))
        if found and found[-1].HasField("exit"):
            break
        time.sleep(0.05)
    for record in found:
        if record.HasField("history"):
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif record.HasField("metric"):
            axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
    assert axes["norms/*"] == "norms/step"
    written = {row["norms/step"]: row for row in rows if "norms/step" in row}
    assert written.keys() == seen.keys() == {0, 2, 4, 6}
    for step, values in seen.items():
        assert {n: written[step]["norms/" + n] for n in values} == pytest.approx(values)
        assert sum(written[step]["norms/1/gamma/values"]) == 5, "a histogram of 5 channels"
    assert [row["loss"] for row in rows if "loss" in row] == [0, 1, 2, 3], "none came too late"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow, model = quiet_import("mlflow"), network()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with pytest.raises(InputError, match="no run of MLflow is active"):
        sinks.sink(mlflow)
    with mlflow.start_run() as run:
        seen = train(model, lens.monitor(model, every=2, to=[mlflow]))
    client = mlflow.MlflowClient()
    many = {f"layer{i}[0]/gate": i / 7 for i in range(1200)}  # more than one request takes
    sinks.mlflow(run.info.run_id, prefix="", client=client)(5, many)
    sinks.sink(run)(9, {"1/gate": 0.5})
    for step, values in seen.items():
        for name, value in values.items():
            history = client.get_metric_history(run.info.run_id, f"norms/{name}")
            assert {m.step: m.value for m in history}[step] == value
    found = client.get_run(run.info.run_id).data.metrics
    assert found["norms/1/gate"] == 0.5
    assert {n: v for n, v in found.items() if n.startswith("layer")} == {
        name.replace("[", "_").replace("]", "_"): value for name, value in many.items()
    }


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_whatever_lightning_logs_to(tmp_path: Path) -> None:
    pl = quiet_import("pytorch_lightning")
    callback = lens.callbacks.lightning(every=2)
    loggers = [pl.loggers.CSVLogger(tmp_path / "csv"), pl.loggers.TensorBoardLogger(tmp_path)]
    pl.Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    ).fit(lightning_module(network()), DataLoader(TensorDataset(X, Y), batch_size=6))
    board = scalars(tmp_path)
    (table,) = tmp_path.rglob("metrics.csv")
    head, *lines = (line.split(",") for line in table.read_text().splitlines())
    rows = {int(row[head.index("step")]): dict(zip(head, row, strict=True)) for row in lines}
    assert sorted(rows) == [1, 3]
    assert board["norms/net.1/values"] == {1: 6, 3: 6}
    for name, value in callback.watching.last.items():
        assert board[f"norms/{name}"][3] == pytest.approx(value, rel=1e-6)
        assert float(rows[3][f"norms/{name}"]) == pytest.approx(value)


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_whatever_a_trainer_of_transformers_reports_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = quiet_import("transformers")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    trainer = transformers.Trainer(
        model=Model(),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=6,
            num_train_epochs=1,
            use_cpu=True,
            report_to=["tensorboard"],
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=[{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)],
    )
    callback = lens.callbacks.trainer(every=2, to=[trainer, tmp_path / "norms.jsonl"])
    trainer.add_callback(callback)
    trainer.train()
    board = scalars(tmp_path)
    assert board["train/norms/net.1/values"] == {1: 6, 3: 6}  # so transformers names them
    for name, value in callback.watching.last.items():
        assert board[f"train/norms/{name}"][3] == pytest.approx(value, rel=1e-6)
    assert len((tmp_path / "norms.jsonl").read_text().splitlines()) == 2
    assert "gamma_mean" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_the_trackers_of_accelerate(tmp_path: Path) -> None:
    accelerate, model = quiet_import("accelerate"), network()
    accelerator = accelerate.Accelerator(log_with="tensorboard", project_dir=tmp_path, cpu=True)
    accelerator.init_trackers("run")
    seen = train(model, lens.monitor(model, every=2, to=[accelerator]))
    accelerator.end_training()
    board = scalars(tmp_path)
    for step, values in seen.items():
        for name, value in values.items():
            assert board[f"norms/{name}"][step] == pytest.approx(value, rel=1e-6)


def test_files_and_functions_are_named_as_they_are(tmp_path: Path) -> None:
    told: list[int] = []
    model = network()
    to = [str(tmp_path / "a.csv"), tmp_path / "a.jsonl", lambda step, values: told.append(step)]
    seen = train(model, lens.monitor(model, every=2, to=to))
    assert told == [0, 2]
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + sum(map(len, seen.values()))
    lines = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [0, 2]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("norms.txt", "norms.txt is no .csv or .jsonl file; name one to write to"),
        (3, "telemetry cannot be written to an object of type int; give a path"),
        (SimpleNamespace(), "an object of type SimpleNamespace"),
    ],
)
def test_what_nothing_can_be_written_to(target: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lens.monitor(network(), to=[target])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'normscope\[{name}\]'"):
        getattr(sinks, name)("run")
