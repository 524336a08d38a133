"""Telemetry in a training loop: what it says, where it goes, and that it is nothing when off."""

import csv
import gc
import json
import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normscope
from normscope import lens
from normscope.errors import InputError, ModelError
from normscope.functional import moments
from normscope.lens import callbacks, sinks
from normscope.lens.monitor import shift
from normscope.records import Inspection
from tests.extras import lightning_module, quiet_import

X, Y = torch.randn(32, 3, 4, 4), torch.arange(32) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8))


class Kept:
    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.steps.append((step, dict(values)))


def trained(model: nn.Module, watching: lens.Monitor, steps: int, x: Tensor = X) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        with watching.step(Y):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), Y).backward()
            optimiser.step()


def test_every_scalar_is_what_numpy_says() -> None:
    model, kept = network(), Kept()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias, std=2)
    with torch.no_grad():
        model(X)
        model.train()
        before = model[0](X).double().numpy()
        gamma, beta = (p.detach().double().numpy().copy() for p in model[1].parameters())
        stored, var = (
            b.double().numpy().copy() for b in (model[1].running_mean, model[1].running_var)
        )
        output = nn.functional.batch_norm(
            model[0](X), None, None, model[1].weight, model[1].bias, training=True
        ).numpy()
    trained(model, lens.monitor(model, every=1, to=[kept]), 1)
    ((step, values),) = kept.steps
    assert step == 0
    assert {name.rpartition("/")[0] for name in values} == {"1", "5"}
    found = {n.partition("/")[2]: v for n, v in values.items() if n.startswith("1/")}
    assert len(found) <= 20
    new_gamma, new_beta = (p.detach().double().numpy() for p in model[1].parameters())
    flat = np.moveaxis(before, 1, -1).reshape(-1, 6)
    mean, batch_var = flat.mean(0), flat.var(0)
    owner = np.repeat(Y.numpy(), 16)
    between = sum((owner == k).mean() * (flat[owner == k].mean(0) - mean) ** 2 for k in range(4))
    share = (output > 0).mean((0, 2, 3))
    z, stretch = (mean - stored) / np.sqrt(var), np.sqrt(batch_var / var) - 1
    grads = [p.grad for p in model[1].parameters()]
    expected = {
        "gamma_mean": new_gamma.mean(),
        "gamma_off_one": np.sqrt(np.square(new_gamma - 1).mean()),
        "beta_rms": np.sqrt(np.square(new_beta).mean()),
        "gate": np.abs(new_beta / new_gamma).mean(),
        "flips": (new_gamma * gamma < 0).mean(),
        "gamma_update": np.log10(np.linalg.norm(new_gamma - gamma) / np.linalg.norm(gamma)),
        "beta_update": np.log10(np.linalg.norm(new_beta - beta) / np.linalg.norm(beta)),
        "gamma_grad": float(grads[0].norm()),
        "beta_grad": float(grads[1].norm()),
        "values": 512,
        "mean_z": np.sqrt(np.square(z).mean()),
        "var_ratio": (batch_var / var).mean(),
        "drift": np.sqrt(z**2 + stretch**2).mean(),
        "firing": share.mean(),
        "dead": (share < 1e-3).mean(),
        "open": (share > 1 - 1e-3).mean(),
        "eta2": (between / batch_var).mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_off_is_nothing_and_on_holds_no_tensors() -> None:
    model, kept = network(), Kept()
    watching = lens.monitor(model, every=3, to=[kept])
    seen: list[int] = []
    model[3].register_forward_hook(lambda *a: seen.append(hooks(model) - 1))
    trained(model, watching, 7)
    assert seen == [4, 0, 0, 4, 0, 0, 4]
    assert [step for step, _ in kept.steps] == [0, 3, 6]
    assert hooks(model) == 1
    held = [v for v in vars(watching).values() if v not in (watching.layers,)]
    gc.collect()
    inside = [o for o in gc.get_referents(*held) if isinstance(o, Tensor)]
    assert not inside
    assert all(type(value) is float for value in watching.last.values())


def test_training_is_the_same_with_and_without() -> None:
    plain, watched = network(), network()
    trained(plain, lens.monitor(plain, every=1000), 4)
    trained(watched, lens.monitor(watched, every=1), 4)
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_fails_leaves_no_hook() -> None:
    model = network()
    watching = lens.monitor(model, every=1)
    with pytest.raises(RuntimeError), watching.step(Y):
        model(X[:, :2])
    assert hooks(model) == 0
    assert watching.count == 0


def test_the_names_before_still_serve() -> None:
    assert lens.watch is lens.monitor
    assert lens.Watch is lens.Monitor


def test_the_shift_is_the_gaussian_wasserstein_distance_in_standard_deviations() -> None:
    x = torch.randn(500, 3, dtype=torch.float64)
    x[:, 2] = 4.0  # a constant channel has no standard deviation to measure by
    m, s = x.mean(0), x.std(0, correction=0)
    y = x * torch.tensor([1.5, 1.0, 1.0]) + torch.tensor([0.0, 2.0, 1.0])
    moved = [
        math.hypot(0.5 * float(m[0]), 0.5 * float(s[0])) / float(s[0]),
        2 / float(s[1]),
    ]
    assert shift(moments(x), moments(y)) == pytest.approx(sum(moved) / 2)
    assert shift(moments(x), moments(x)) == 0
    assert math.isnan(shift(moments(x[:, 2:]), moments(y[:, 2:])))


def test_measuring_on_fixed_samples_shows_what_moved_and_moves_nothing() -> None:
    model, kept = network(), Kept()
    model.append(nn.Dropout(0.5))
    monitor = lens.monitor(model, every=1000, to=[kept])
    first = monitor.measure(lambda: model(X), 0)
    assert not any("shift" in name or "grad" in name or "update" in name for name in first)
    nn.functional.cross_entropy(model(X), Y).backward()
    with torch.no_grad():
        model[0].bias += 0.5
        model[1].weight *= 3
    before = {name: t.clone() for name, t in model.state_dict().items()}
    versions = [p._version for p in model.parameters()]
    random = torch.get_rng_state()
    seen = monitor.measure(lambda: model(X), 7, loss=0.25)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert hooks(model) == 0
    assert kept.steps == [(0, first), (7, seen)]
    assert seen["loss"] == 0.25
    assert seen["1/values"] == 512
    assert seen["1/gamma_grad"] == pytest.approx(float(model[1].weight.grad.norm()))
    with torch.no_grad():
        spread = model[0](X).double().transpose(0, 1).flatten(1).std(1, correction=0)
    assert seen["1/shift_in"] == pytest.approx(float((0.5 / spread).mean()), rel=1e-5)
    assert seen["1/shift_out"] == pytest.approx(2, rel=1e-3)  # mean 0, from std 1 to 3
    other = lens.monitor(model)
    other.load_state_dict(monitor.state_dict())
    assert other.measure(lambda: model(X), 8)["1/shift_in"] == 0


def test_a_measurement_that_fails_leaves_the_model_as_it_was() -> None:
    model = network()
    monitor = lens.monitor(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def run() -> None:
        model(X)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monitor.measure(run, 0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert hooks(model) == 0
    assert "1/shift_in" not in monitor.measure(lambda: model(X), 1)


def test_batches_of_several_ranks_are_measured_as_one() -> None:
    parts: list[Any] = []

    def first(part: Any) -> Any:
        parts.append(part)
        return part

    model = network().eval()
    one = lens.monitor(model).measure(lambda: model(X), 0)
    lens.Monitor(model, lens.monitor(model).layers, merge=first).measure(lambda: model(X[:20]), 0)
    rest = iter(parts)
    merged = lens.Monitor(model, lens.monitor(model).layers, merge=lambda part: part + next(rest))
    assert merged.measure(lambda: model(X[20:]), 0) == pytest.approx(one)


def test_hooks_are_registered_by_probe_and_where_a_model_is_to_keep_them() -> None:
    source = Path(lens.__file__).parents[1]
    found = [p for p in source.rglob("*.py") if "register_forward" in p.read_text("utf-8")]
    elsewhere = {"/".join(p.relative_to(source).parts) for p in found if p.parent.name != "probe"}
    assert elsewhere == {"doctor/calls.py", "layers/guarding.py"}


def test_bad_input() -> None:
    with pytest.raises(InputError, match="every is 0"):
        lens.monitor(network(), every=0)
    with pytest.raises(ModelError, match="no normalisation layer"):
        lens.monitor(nn.Sequential(nn.LayerNorm(3)))


def test_csv_is_continued_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "norms.csv"
    sinks.csv(path)(0, {"a,b/gamma_mean": 0.5, "c/firing": 0.25})
    sinks.csv(path)(3, {"c/firing": 1e-7})
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(r["step"], r["layer"], r["measure"], float(r["value"])) for r in rows] == [
        ("0", "a,b", "gamma_mean", 0.5),
        ("0", "c", "firing", 0.25),
        ("3", "c", "firing", 1e-7),
    ]
    other = tmp_path / "other.csv"
    other.write_text("mine\n")
    with pytest.raises(InputError, match="is no table of telemetry"):
        sinks.csv(other)
    assert other.read_text() == "mine\n"


def test_jsonl_holds_tables_and_scalars(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "norms.jsonl"
    layers = {"1": model[1]}
    with torch.no_grad():
        model[1].weight[0] = math.inf
        model[1].bias[1] = 0.123456789
    to = [sinks.jsonl(path, layers, seed=3)]
    lens.Monitor(model, layers, sinks=to).measure(lambda: model(X), 4, loss=0.5)
    lens.Monitor(model, layers, sinks=to).measure(lambda: model(X), 8)
    one, two = map(json.loads, path.read_text().splitlines())
    assert [(line["step"], line["seed"], line.get("loss")) for line in (one, two)] == [
        (4, 3, 0.5),
        (8, 3, None),
    ]
    row = one["layers"]["1"]
    assert row["gamma"] == [None, 1, 1, 1, 1, 1]
    assert row["beta"][1] == 0.12346
    assert row["running_var"] == [1] * 6
    assert row["values"] == 512


@pytest.mark.parametrize("kind", [normscope.ConditionalBatchNorm1d, normscope.ModeNorm1d])
def test_tables_of_groups_are_pooled(kind: Any) -> None:
    layer = kind(4, 3)
    nn.init.normal_(layer.running_mean)
    found = sinks.tables(layer)
    assert {name: t.shape for name, t in found.items()} == dict.fromkeys(
        ("gamma", "beta", "running_mean", "running_var"), (4,)
    )
    mean = layer.running_mean.mean(0)
    torch.testing.assert_close(found["running_mean"], mean)
    spread = 1 + layer.running_mean.var(0, correction=0)  # the law of total variance
    torch.testing.assert_close(found["running_var"], spread)


def test_log_and_tensorboard(tmp_path: Path) -> None:
    board = pytest.importorskip("torch.utils.tensorboard")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told: list[tuple[dict[str, float], int]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append((values, step))

    model = network()
    with board.SummaryWriter(tmp_path) as writer:
        to = [sinks.logged(Run()), sinks.tensorboard(writer, layers={"1": model[1]})]
        trained(model, lens.monitor(model, every=2, to=to), 3)
    assert [step for _, step in told] == [0, 2]
    events = reader.EventAccumulator(str(tmp_path), {"histograms": 0})
    events.Reload()
    assert [h.step for h in events.Histograms("norms/1/gamma")] == [0, 2]
    assert sorted(events.Tags()["histograms"]) == ["norms/1/beta", "norms/1/gamma"]
    for name, value in told[1][0].items():
        last = events.Scalars(name)[-1]
        assert (last.step, last.value) == (2, pytest.approx(value, rel=1e-6))


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    pl = quiet_import("pytorch_lightning")
    kept = Kept()
    callback = callbacks.lightning(every=2, to=[kept])
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    module = lightning_module(network())
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=8))
    assert [step for step, _ in kept.steps] == [1, 3]  # after the step that was measured
    for key in ("gamma_grad", "eta2", "firing", "gamma_update"):
        assert math.isfinite(kept.steps[1][1][f"net.1/{key}"])
    assert hooks(module) == 0


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer(tmp_path: Path) -> None:
    transformers = quiet_import("transformers")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    kept, model = Kept(), Model()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=[callbacks.trainer(every=2, to=[kept])],
    )
    trainer.train()
    assert [step for step, _ in kept.steps] == [1, 3]
    for key in ("gamma_grad", "firing", "gamma_update"):
        assert math.isfinite(kept.steps[1][1][f"net.1/{key}"])
    assert hooks(model) == 0


def test_labels_in_batches() -> None:
    assert callbacks.labels_of((X, Y)) is Y
    assert callbacks.labels_of({"x": X, "labels": Y}) is Y
    assert callbacks.labels_of(namedtuple("Batch", "image target name")(X, Y, "a")) is Y
    without: list[Any] = [X, (X,), [], (X, X), {"x": X}, (X, Y > 1), None]
    for batch in without:
        assert callbacks.labels_of(batch) is None


# --- two inspections side by side ---


def inspected(model: nn.Module, x: Tensor = X) -> Inspection:
    return lens.inspect(model, [(x, Y)])


def test_nothing_differs_from_itself() -> None:
    seen = inspected(network())
    same = lens.compare(seen, seen)
    assert [layer.name for layer in same.layers] == ["1", "5"]
    for layer in same.layers:
        assert layer.moved == layer.statistics == layer.gamma == layer.beta == layer.gates == 0
        assert all(stage.lda[0] == stage.lda[1] for stage in layer.stages)
    assert type(same).from_json(same.to_json()) == same


def test_what_moved_is_measured() -> None:
    model = network()
    before = inspected(model)
    with torch.no_grad():
        model[0].bias += 0.5
        model[1].weight[:3].neg_()
        model[1].bias += 2
    change = lens.compare(before, inspected(model)).layers[0]
    flat = model[0](X).detach().double().transpose(0, 1).flatten(1)
    assert change.moved == pytest.approx(float((0.5 / flat.std(1, correction=0)).mean()), rel=1e-5)
    assert change.statistics == 0
    assert change.gates == 0.5
    assert change.gamma == pytest.approx(math.sqrt(2), rel=1e-6)
    assert change.beta == pytest.approx(2, rel=1e-6)
    firing = np.array(inspected(model).layers[0].firing) - np.array(before.layers[0].firing)
    assert change.firing == pytest.approx(np.abs(firing).max())
    assert np.abs(firing)[:, change.channel].max() == change.firing


def test_what_cannot_be_compared() -> None:
    seen = inspected(network())
    with pytest.raises(InputError, match="the first has 4 classes, the second 2"):
        lens.compare(seen, lens.inspect(network(), [(X, Y % 2)]))
    with pytest.raises(InputError, match="no layer is in both"):
        lens.compare(seen, inspected(nn.Sequential(nn.BatchNorm2d(3))))
    wide = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7))
    with pytest.raises(InputError, match="layer 1 has 6 channels in the first and 7"):
        lens.compare(seen, inspected(wide))
