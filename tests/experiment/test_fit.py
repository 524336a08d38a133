"""A run from start to end: what it records, what survives an interrupt, what it refuses."""

import errno
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_iris

import normscope
from normscope.errors import FileError, InputError, MissingExtraError
from normscope.experiment import fit
from normscope.experiment.comparison import epochs_to_95, judged, rows
from normscope.experiment.data import load
from normscope.experiment.folder import RunFolder
from normscope.experiment.loop import Trainer
from normscope.experiment.nets import ModelConfig, norm_layers
from normscope.experiment.telemetry import Telemetry, keep_lines, read_lines, traces
from normscope.lens import sinks
from normscope.records import Epoch, Member, Run, RunConfig, Sweep

# 105 training samples: 6 steps an epoch, so 18 a network, 144 in all, and 96 of the sweep
SMALL = RunConfig(
    data="iris",
    net="mlp",
    norms=("batch", "none", "affine_only", "per_class"),
    epochs=3,
    batch_size=16,
    lr=0.1,
    seed=5,
    seeds=2,
    every=4,
    sweep=(0.01, 0.1),
)
STEPS = 144 + 144


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """An uninterrupted run of SMALL."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return fit.train(SMALL, out), out


def test_train_takes_samples_and_shows_the_network(tmp_path: Path) -> None:
    options: dict[str, Any] = {"norms": ["batch"], "epochs": 2, "seeds": 1, "sweep": (), "seed": 3}
    named = normscope.train("iris", **options)
    given = normscope.train(load_iris(return_X_y=True), **options, out=tmp_path / "run")
    assert [m.curve for m in given.members] == [m.curve for m in named.members]
    assert given.inspection is not None
    assert named.inspection is not None
    assert given.inspection.layers == named.inspection.layers
    assert RunFolder(tmp_path / "run").read().to_json() == given.to_json()
    assert given.config.data == "in memory"
    with pytest.raises(InputError, match="was trained on data in memory"):
        fit.load_run(tmp_path / "run")
    assert normscope.train(
        load_iris(return_X_y=True), **options, out=str(tmp_path / "run"), resume=True
    ).complete
    with pytest.raises(InputError, match=r"the data: dict was given; \(x, y\)"):
        normscope.train({"x": 1}, **options)  # type: ignore[arg-type, unused-ignore]


class Stop:
    """Ctrl-C, or a crash, at a step."""

    def __init__(self, at: int, kind: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.kind = at, kind

    def __call__(self, done: int, total: int, message: str) -> None:
        if done == self.at:
            raise self.kind


def timeless(run: Run) -> dict[str, Any]:
    """A run's JSON without what a clock decides."""
    value: dict[str, Any] = json.loads(run.to_json())
    for part in (*value["members"], *value["rows"]):
        part["seconds"] = None
    return value


def files(out: Path) -> dict[str, bytes]:
    """Weights and telemetry of a run, byte for byte."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


# --- what a run holds -------------------------------------------------------------------------


def test_a_small_training_reaches_its_accuracy_and_is_recorded(tmp_path: Path) -> None:
    config = RunConfig(
        data="digits",
        net="mlp",
        norms=("batch", "none"),
        epochs=3,
        batch_size=32,
        lr=0.1,
        seed=0,
        seeds=1,
        every=20,
    )
    seen: list[tuple[int, int]] = []
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    run = fit.train(
        config, tmp_path / "run", on_progress=lambda done, total, _: seen.append((done, total))
    )
    assert (torch.get_num_threads(), bool((torch.get_rng_state() == random).all())) == (
        threads,
        True,
    )
    assert seen == [(step, 2 * 3 * 39) for step in range(1, 2 * 3 * 39 + 1)]
    assert run.complete
    assert run.inspection is None
    batch, none = run.members
    assert batch.accuracy > 0.95
    assert none.accuracy > 0.85
    assert batch.parameters == none.parameters + 2 * 3 * 64
    assert [epoch.epoch for epoch in batch.curve] == [1, 2, 3]
    assert batch.curve[-1].test_accuracy == batch.accuracy
    assert (run.train_size, run.test_size) == (1258, 539)
    folder = RunFolder(tmp_path / "run")
    assert timeless(folder.read()) == timeless(run)
    assert not folder.checkpoint.exists()
    again, model, data = fit.load_run(tmp_path / "run")
    assert timeless(again) == timeless(run)
    with torch.no_grad():
        for network, member in ((model, batch), (fit.load_member(folder.root, "none", 0), none)):
            right = network(data.test_x).argmax(1) == data.test_y
            assert right.double().mean().item() == pytest.approx(member.accuracy)


def test_traces_show_gamma_beta_statistics_gradient_and_drift(whole: tuple[Run, Path]) -> None:
    run, out = whole
    named = {(t.norm, t.layer): t for t in run.traces}
    assert list(named) == [(n, f"norm{i}") for n in SMALL.norms for i in (1, 2, 3)]
    state = safetensors.torch.load_file(out / "members" / "batch-5" / "model.safetensors")
    for i in (1, 2, 3):
        trace = named["batch", f"norm{i}"]
        assert trace.step == (0, 4, 8, 12, 16)
        assert trace.gamma[0] == (1.0,) * 64
        assert trace.beta[0] == (0.0,) * 64
        for table in (trace.gamma, trace.beta, trace.running_mean, trace.running_var):
            assert {len(row) for row in table} == {64}
        final = state[f"norm{i}.weight"]  # two steps after the last line, at a falling rate
        torch.testing.assert_close(torch.tensor(trace.gamma[-1]), final, atol=0.02, rtol=0)
        assert math.isnan(trace.gradient[0])
        assert math.isnan(trace.drift[0])
        assert min(trace.gradient[1:]) > 0
        assert min(trace.drift[1:]) > 0
        none = named["none", f"norm{i}"]
        assert none.gamma == none.running_mean == ()
        assert none.drift[1:] == none.drift_after[1:]  # an identity
        assert {len(row) for row in named["per_class", f"norm{i}"].running_var} == {64}


def test_the_trap_is_marked_and_evaluated_without_the_label(whole: tuple[Run, Path]) -> None:
    run, _ = whole
    named = {row.norm: row for row in run.rows}
    assert named["per_class"].leaks
    assert named["per_class"].without_label is not None
    assert named["batch"].without_label is None
    assert not named["batch"].leaks


def test_gamma_and_beta_alone_are_a_row_of_the_comparison(whole: tuple[Run, Path]) -> None:
    run, out = whole
    data = load("iris", seed=5)
    row = next(row for row in run.rows if row.norm == "affine_only")
    found = [m for m in run.members if m.norm == "affine_only"]
    assert (row.seeds, row.learning) == (2, 2 * 3 * 64 + 3 * 65)  # and the head
    assert row.before == pytest.approx(sum(m.accuracy_before for m in found) / 2)
    for m in found:
        fresh = ModelConfig.of("mlp", "affine_only", data).build(m.seed).eval()
        with torch.no_grad():
            right = (fresh(data.test_x).argmax(1) == data.test_y).double().mean()
        assert m.accuracy_before == pytest.approx(float(right))
        state = safetensors.torch.load_file(
            out / "members" / f"affine_only-{m.seed}" / "model.safetensors"
        )
        moved = {n for n, t in fresh.state_dict().items() if not torch.equal(t, state[n])}
        assert {n.split(".")[0] for n in moved} == {"norm1", "norm2", "norm3", "head"}
    batch = next(row for row in run.rows if row.norm == "batch")
    assert batch.learning == batch.parameters


def test_who_was_taken_for_whom_is_counted_where_the_label_is_given(
    whole: tuple[Run, Path],
) -> None:
    run, _ = whole
    for m in run.members:
        if not m.leaks:
            assert m.confusion == m.confusion_without_label == ()
            continue
        for counts, accuracy in (
            (m.confusion, m.accuracy),
            (m.confusion_without_label, m.accuracy_without_label),
        ):
            assert sum(map(sum, counts)) == run.test_size
            hits = sum(counts[k][k] for k in range(3))
            assert hits / run.test_size == pytest.approx(accuracy)


def test_domains_are_scored_apart(tmp_path: Path) -> None:
    norms = ("conditional", "separate", "shared", "batch")
    config = replace(
        SMALL,
        norms=norms,
        domains=("clean", "noise", "invert"),
        seeds=1,
        epochs=1,
        sweep=(),
    )
    run = fit.train(config, tmp_path / "run")
    for member, row in zip(run.members, run.rows, strict=True):
        assert list(member.accuracy_by_domain) == ["clean", "noise", "invert"]
        assert row.by_domain == member.accuracy_by_domain
        mean = sum(member.accuracy_by_domain.values()) / 3
        assert member.accuracy == pytest.approx(mean)
    _, model, _ = fit.load_run(tmp_path / "run")
    assert model.norm1.running_mean.shape == (3, 64)
    separate = fit.load_member(tmp_path / "run", "separate", 5)
    assert len(separate.nets) == 3


def test_a_loss_that_is_not_finite_ends_one_network_only(tmp_path: Path) -> None:
    config = replace(SMALL, norms=("none", "batch"), lr=1e25, sweep=(0.1, 1e25), epochs=2)
    run = fit.train(config, tmp_path / "run")
    assert run.complete
    for member in run.members:
        if member.norm == "none":
            assert member.status == "diverged"
            assert math.isnan(member.accuracy)
            assert member.epochs_to_95 is None
    row = run.rows[0]
    assert (row.norm, row.seeds, row.diverged) == ("none", 2, 2)
    assert math.isnan(row.mean)
    sweep = run.sweeps[0]
    assert math.isnan(sweep.accuracy[1])
    assert (sweep.lowest, sweep.highest) == (0.1, 0.1)
    assert '"accuracy": null' in (tmp_path / "run" / "run.json").read_text()


# --- interrupted and continued ----------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [(1,), (9,), (18,), (27, 30), (80, 81, 86), (143,), (160,), (287,)],
    ids=str,
)
def test_an_interrupted_run_ends_with_the_same_bits(
    steps: tuple[int, ...], whole: tuple[Run, Path], tmp_path: Path
) -> None:
    expected, reference = whole
    out = tmp_path / "run"
    for i, step in enumerate(steps):
        stopped = fit.train(SMALL, out, resume=i > 0, on_progress=Stop(step))
        assert not stopped.complete
        assert timeless(RunFolder(out).read()) == timeless(stopped)
    seen: list[int] = []
    run = fit.train(SMALL, out, resume=True, on_progress=lambda done, *_: seen.append(done))
    assert run.complete
    assert timeless(run) == timeless(expected)
    assert files(out) == files(reference)
    assert seen[-1] == STEPS
    assert len(seen) < STEPS or steps == (1,)  # what was done is not done again


@pytest.mark.parametrize("step", [9, 82, 200])
def test_a_killed_run_continues_too(step: int, whole: tuple[Run, Path], tmp_path: Path) -> None:
    expected, reference = whole
    out = tmp_path / "run"
    with pytest.raises(SystemError):  # nothing catches it: the record is as after a kill
        fit.train(SMALL, out, on_progress=Stop(step, SystemError))
    with (out / "telemetry.jsonl").open("a") as file:
        file.write('{"norm": "batch", "seed": 5, "st')
    run = fit.train(SMALL, out, resume=True)
    assert timeless(run) == timeless(expected)
    assert files(out) == files(reference)


def test_a_stopped_run_shows_what_is_done(tmp_path: Path) -> None:
    run = fit.train(SMALL, tmp_path / "run", on_progress=Stop(18 + 14))
    done, stopped = run.members
    assert (done.norm, done.seed, done.status) == ("batch", 5, "done")
    assert (stopped.norm, stopped.seed, stopped.status) == ("batch", 6, "stopped")
    assert [epoch.epoch for epoch in stopped.curve] == [1, 2]
    assert stopped.accuracy == stopped.curve[-1].test_accuracy
    assert [(row.norm, row.seeds, row.mean) for row in run.rows] == [("batch", 1, done.accuracy)]
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_complete_run_is_given_back_untouched(whole: tuple[Run, Path]) -> None:
    run, out = whole
    before = (out / "run.json").read_bytes(), files(out)
    again = fit.train(SMALL, out, resume=True, on_progress=Stop(1))
    assert timeless(again) == timeless(run)
    assert ((out / "run.json").read_bytes(), files(out)) == before


def test_resume_refuses_what_would_not_be_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(FileError, match="there is no run record"):
        fit.train(SMALL, out, resume=True)
    fit.train(SMALL, out, on_progress=Stop(20))
    other = replace(SMALL, epochs=4, norms=("batch", "none"), sweep=())
    with pytest.raises(InputError) as caught:
        fit.train(other, out, resume=True)
    for part in ("epochs was 3 and is now 4", "sweep was 0.01,0.1 and is now none", "norms was b"):
        assert part in str(caught.value)
    assert "lr was" not in str(caught.value)
    monkeypatch.setattr("normscope.experiment.data.TEST_SHARE", 0.4)
    with pytest.raises(InputError, match="iris is not what the run in .* was started with"):
        fit.train(SMALL, out, resume=True)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (self.path,))


def bomb(good: bytes, marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def torch_bomb(good: bytes, marker: Path) -> bytes:
    torch.save({"model": Bomb(marker)}, marker.with_name("bomb.pt"))
    return marker.with_name("bomb.pt").read_bytes()


def other_tensors(good: bytes, marker: Path) -> bytes:
    return saved({"weight": torch.zeros(2)})


def wrong_shape(good: bytes, marker: Path) -> bytes:
    content = torch.load(io.BytesIO(good), weights_only=True)
    content["trainer"]["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3, 3)
    return saved(content)


def swollen(good: bytes, marker: Path) -> bytes:
    content = torch.load(io.BytesIO(good), weights_only=True)
    content["trainer"]["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1).expand(10**12)
    return saved(content)


def wrong_kind(good: bytes, marker: Path) -> bytes:
    return saved(torch.load(io.BytesIO(good), weights_only=True) | {"telemetry": {"norm1/in": 3}})


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (bomb, "no whole checkpoint of a run; nothing in it was run, start again"),
        (torch_bomb, "no whole checkpoint"),
        (lambda good, _: good[:-100], "no whole checkpoint"),
        (lambda good, _: good[:5], "no whole checkpoint"),
        (lambda good, _: b"", "no whole checkpoint"),
        (other_tensors, "no whole checkpoint"),
        (swollen, "no whole checkpoint"),
        (wrong_shape, "does not fit this network"),
        (wrong_kind, "does not fit this network"),
    ],
    ids=["pickle", "torch", "cut", "stub", "empty", "other", "swollen", "shape", "kind"],
)
def test_a_checkpoint_that_is_no_checkpoint_runs_nothing(
    broken: Callable[[bytes, Path], bytes], message: str, tmp_path: Path
) -> None:
    out, marker = tmp_path / "run", tmp_path / "ran"
    fit.train(SMALL, out, on_progress=Stop(13))
    state = RunFolder(out).checkpoint
    state.write_bytes(broken(state.read_bytes(), marker))
    before = (out / "run.json").read_bytes()
    with pytest.raises(FileError, match=message) as caught:
        fit.train(SMALL, out, resume=True)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert json.loads(before)["kind"] == "run"
    state.unlink()  # without it the network starts again
    assert fit.train(SMALL, out, resume=True).complete


def test_a_model_that_is_no_model_is_one_sentence(whole: tuple[Run, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[1], out)
    model, marker = out / "model.safetensors", tmp_path / "ran"
    other = safetensors.torch.save({"weight": torch.zeros(2)})
    for content in (bomb(b"", marker), model.read_bytes()[:-9], other, other_tensors(b"", marker)):
        model.write_bytes(content)
        with pytest.raises(FileError) as caught:
            fit.load_run(out)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    with pytest.raises(FileError, match="there is no checkpoint"):
        fit.load_member(out, "layer", 0)


# --- the folder -------------------------------------------------------------------------------


def test_a_folder_is_replaced_only_when_that_is_said(
    whole: tuple[Run, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[1], out)
    (out / "notes.txt").write_text("mine")
    short = replace(SMALL, norms=("layer",), seeds=1, epochs=1, sweep=())
    before = files(out)
    with pytest.raises(FileError, match="holds a run already; name another folder, or"):
        fit.train(short, out)
    with pytest.raises(InputError, match="there are no data 'nothing'"):
        fit.train(replace(short, data="nothing"), out, overwrite=True)
    assert files(out) == before  # a run that cannot start replaces nothing
    fit.train(short, out, overwrite=True)
    assert sorted(files(out)) == [
        "members/layer-5/model.safetensors",
        "model.safetensors",
        "notes.txt",
        "telemetry.jsonl",
    ]


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "list.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileError, match="holds files that are no run's"):
            fit.train(SMALL, tmp_path, overwrite=overwrite)
    assert (tmp_path / "members" / "list.txt").read_text() == "mine"
    with pytest.raises(FileError, match=r"list.txt is a file; name a folder"):
        fit.train(SMALL, tmp_path / "members" / "list.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"seed": -1}, "seed is -1"),
        ({"every": 0}, "every is 0"),
        ({"lr": 0.0}, "a learning rate is 0.0"),
        ({"lr": math.nan}, "a learning rate is nan"),
        ({"sweep": (0.1, math.inf)}, "a learning rate is inf"),
        ({"norms": ()}, "the norms are none; name one or more"),
        ({"norms": ("batch", "batch")}, "each once"),
        ({"norms": ("batch", "magic")}, "there is no norm 'magic'"),
        ({"net": "cnn"}, "the net cnn needs images"),
        (
            {"norms": ("batch",), "freeze_head": True},
            "freeze_head is for affine_only, which is not among the",
        ),
    ],
)
def test_a_config_that_cannot_be_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fit.train(replace(SMALL, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("writes", [3, 5, 9, 14])
def test_a_full_disk_leaves_everything_whole(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(writes))

    def full(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "run"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="no space left to write") as caught:
        fit.train(SMALL, out)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    check_whole(out)
    assert fit.train(SMALL, out, resume=True).complete


def test_a_small_file_system_that_fills_up(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        with pytest.raises(FileError, match="no space left to write"):
            fit.train(SMALL, disk / "run")
        check_whole(disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def check_whole(out: Path) -> None:
    assert not RunFolder(out).read().complete
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]
    for path in out.rglob("*.safetensors"):
        safetensors.torch.load_file(path)


# --- telemetry --------------------------------------------------------------------------------


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    assert read_lines(path) == []
    one, two = (f'{{"norm": "batch", "seed": 0, "step": {i}, "layers": {{}}}}' for i in (1, 2))
    path.write_text(f'{one}\n{two}\n{{"st')
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    keep_lines(path, lambda line: line["step"] > 1)
    assert path.read_text() == f"{two}\n"
    for broken in ('{"st', '{"step": 1}', "[]", "3"):
        path.write_text(f"{one}\n{broken}\n{two}\n")
        with pytest.raises(FileError, match="line 2 is none that a run writes; start again"):
            traces(path)


def measured(trainer: Trainer, path: Path) -> Telemetry:
    sink = sinks.jsonl(path, norm_layers(trainer.model), norm=trainer.config.norm, seed=0)
    return Telemetry(trainer, [sink])


def test_recording_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    data = load("iris")
    config = ModelConfig.of("mlp", "batch", data)
    trainer = Trainer(data, config, 0, lr=0.1, epochs=1, batch_size=16)
    telemetry = measured(trainer, tmp_path / "lines")
    telemetry.record()
    trainer.train_epoch(1, lambda _: None)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    random = torch.get_rng_state()
    telemetry.record(0.5)
    assert all(torch.equal(t, before[n]) for n, t in trainer.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks for m in trainer.model.modules())
    first, second = read_lines(tmp_path / "lines")
    assert "loss" not in first
    assert second["loss"] == 0.5
    for name in ("norm1", "norm2", "norm3"):
        line, module = second["layers"][name], getattr(trainer.model, name)
        assert line["gamma"] == pytest.approx(module.weight.tolist(), rel=1e-4)
        assert line["gamma_grad"] == pytest.approx(module.weight.grad.norm().item(), rel=1e-4)
        # the samples leave the layer with mean beta and std gamma, by their own statistics
        step = torch.hypot(module.weight - 1, module.bias).mean().item()
        assert line["shift_out"] == pytest.approx(step, rel=2e-3)


def test_the_shift_goes_on_after_a_resume(tmp_path: Path) -> None:
    data = load("iris")
    config = ModelConfig.of("mlp", "none", data)
    trainer = Trainer(data, config, 0, lr=0.1, epochs=1, batch_size=16)
    telemetry, fresh = (measured(trainer, tmp_path / name) for name in "ab")
    telemetry.record()
    trainer.train_epoch(1, lambda _: None)
    fresh.monitor.load_state_dict(telemetry.monitor.state_dict())
    for each in (fresh, telemetry):
        each.record(0.1)
    assert read_lines(tmp_path / "b") == read_lines(tmp_path / "a")[1:]


# --- the comparison ---------------------------------------------------------------------------


def member(norm: str, seed: int, accuracy: float, **changes: Any) -> Member:
    plain: dict[str, Any] = {
        "norm": norm,
        "seed": seed,
        "status": "done",
        "accuracy": accuracy,
        "leaks": False,
        "accuracy_without_label": None,
        "accuracy_by_domain": {},
        "epochs_to_95": 2,
        "parameters": 10,
        "seconds": 1.0,
        "curve": (),
    }
    return Member(**plain | changes)


def test_rows_are_means_over_the_seeds_that_finished() -> None:
    nan = math.nan
    members = [
        member("batch", 0, 0.9, seconds=1.0, accuracy_by_domain={"a": 1.0, "b": 0.8}),
        member("batch", 1, 0.8, seconds=3.0, accuracy_by_domain={"a": 0.7, "b": 0.9}),
        member("batch", 2, nan, status="diverged", epochs_to_95=None, seconds=2.0),
        member("batch", 3, 0.1, status="stopped", epochs_to_95=None),
        member("none", 0, nan, status="diverged", epochs_to_95=None),
        member("per_class", 0, 1.0, leaks=True, accuracy_without_label=0.2, epochs_to_95=None),
        member("layer", 0, 0.1, status="stopped"),
    ]
    sweeps = [Sweep(norm="batch", lr=(0.1,), accuracy=(0.9,), lowest=0.1, highest=0.3)]
    table = {r.norm: r for r in rows(("per_class", "batch", "none", "layer"), members, sweeps)}
    assert list(table) == ["per_class", "batch", "none"]
    batch = table["batch"]
    assert (batch.seeds, batch.diverged) == (3, 1)
    assert batch.mean == pytest.approx(0.85)
    assert batch.spread == pytest.approx(0.1 / math.sqrt(2))
    assert batch.epochs_to_95 == 2
    assert batch.seconds == pytest.approx(2)
    assert batch.by_domain == pytest.approx({"a": 0.85, "b": 0.85})
    assert (batch.lr_lowest, batch.lr_highest) == (0.1, 0.3)
    assert math.isnan(table["none"].mean)
    assert (table["none"].diverged, table["none"].lr_lowest) == (1, None)
    trap = table["per_class"]
    assert (trap.leaks, trap.without_label) == (True, 0.2)
    assert math.isnan(trap.spread)
    assert math.isnan(trap.epochs_to_95)


def test_epochs_to_95_are_counted_to_the_best_of_the_same_curve() -> None:
    def curve(*accuracies: float) -> list[Epoch]:
        return [
            Epoch(epoch=i, train_loss=1.0, test_loss=1.0, test_accuracy=a)
            for i, a in enumerate(accuracies, start=1)
        ]

    assert epochs_to_95(curve(0.5, 0.93, 0.96, 1.0, 0.7)) == 3
    assert epochs_to_95(curve(0.2)) == 1
    assert epochs_to_95([]) is None


def test_a_rate_trains_at_nine_tenths_of_the_best_honest_accuracy() -> None:
    def sweep(norm: str, *accuracy: float) -> Sweep:
        lr = (0.01, 0.1, 1.0)
        return Sweep(norm=norm, lr=lr, accuracy=accuracy, lowest=None, highest=None)

    found = judged(
        (
            sweep("batch", 0.725, 0.8, 0.75),
            sweep("none", 0.71, 0.73, math.nan),
            sweep("layer", 0.1, math.nan, 0.1),
            sweep("per_class", 0.3, 1.0, 1.0),  # its 1.0 sets no mark for the others
        )
    )
    assert [(s.lowest, s.highest) for s in found] == [
        (0.01, 1.0),
        (0.1, 0.1),
        (None, None),
        (0.1, 1.0),
    ]
    alone = judged((sweep("per_class", 0.5, 0.95, 1.0),))
    assert (alone[0].lowest, alone[0].highest) == (0.1, 1.0)


# --- tensorboard ------------------------------------------------------------------------------


def test_tensorboard_shows_curves_and_histograms_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(SMALL, norms=("batch",), seeds=1, sweep=())
    out = tmp_path / "run"
    fit.train(config, out, tensorboard=True, on_progress=Stop(15))
    run = fit.train(config, out, tensorboard=True, resume=True)
    events = EventAccumulator(str(out / "tensorboard" / "batch-5"), {"histograms": 0})
    events.Reload()
    points = events.Scalars("accuracy/test")
    assert [point.step for point in points] == [6, 12, 18]
    curve = run.members[0].curve
    assert [point.value for point in points] == pytest.approx([e.test_accuracy for e in curve])
    assert [h.step for h in events.Histograms("norms/norm1/gamma")] == [0, 4, 8, 12, 16]
    assert "norms/norm3/beta" in events.Tags()["histograms"]
    names = {"loss/train", "loss/test", "norms/loss", "norms/norm2/shift_in"}
    assert names <= set(events.Tags()["scalars"])


def test_events_that_cannot_be_written_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = replace(SMALL, norms=("batch",), seeds=1, sweep=())
    out = tmp_path / "run"
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with pytest.raises(FileError, match="events cannot be written to .*batch-5: No space left"):
        fit.train(config, out, tensorboard=True)
    monkeypatch.undo()
    check_whole(out)
    assert fit.train(config, out, tensorboard=True, resume=True).complete


def test_tensorboard_that_is_not_there_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'normscope\[tensorboard\]'"):
        fit.train(SMALL, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
