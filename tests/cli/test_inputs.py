"""Models, data and functions of a user's own by the command line: as the library takes them."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from normscope.cli import main
from normscope.cli.app import progress_bar
from normscope.records import Inspection

FILE = """
import itertools, os, signal, warnings
import torch
from torch import nn

COUNT, NOT_CALLABLE = 640, 3
SHIFT = torch.tensor([9.0, -9.0, 3.0])

def samples():
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(COUNT) % 3
    y = y[torch.randperm(COUNT, generator=draw)]
    return torch.randn(COUNT, 3, generator=draw) + 6 * torch.eye(3)[y], y

def net():
    '''Healthy, and all but perfect.'''
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False)).eval()
    x, _ = samples()
    with torch.no_grad():
        model[0].running_mean.copy_(x.mean(0))
        model[0].running_var.copy_(x.var(0))
        model[0].num_batches_tracked.fill_(1000)
        model[1].weight.copy_(4 * torch.eye(3))
    return model

def stale():
    model = net()
    model[0].running_mean += SHIFT
    return model

class Wide(nn.Module):
    '''A thousand classes, three of which are in the data.'''
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 1000)
        self.load_state_dict({
            **{f"norm.{k}": v for k, v in net()[0].state_dict().items()},
            "head.weight": torch.zeros(1000, 3).index_copy(0, torch.tensor(LABELS), 4 * torch.eye(3)),
            "head.bias": torch.full((1000,), -9.0).index_fill(0, torch.tensor(LABELS), 0.0),
        })
    def forward(self, x):
        return self.head(self.norm(x))

LABELS = [285, 700, 967]

def wide():
    return Wide().eval()

def table():
    x, y = samples()
    return x.numpy(), torch.tensor(LABELS)[y].numpy()

def named_classes():
    x, y = samples()
    return x, y, ["a", "b", "c"]

def words():
    x, y = samples()
    return x, ["abc"[i] for i in y]

def conditions():
    x, y = samples()
    return x, y, torch.arange(COUNT) % 2

def regression():
    x, _ = samples()
    return x, (x - x.mean(0)) / x.std(0) * 4

def uneven():
    x, y = samples()
    return x, y[:-1]

def wide_batches():
    x, y = samples()
    return list(zip(x.split(64), torch.tensor(LABELS)[y].split(64)))

def two_batches():
    return wide_batches()[:2]

def data_loader():
    x, y = samples()
    data = torch.utils.data.TensorDataset(x, torch.tensor(LABELS)[y])
    return torch.utils.data.DataLoader(data, batch_size=64)

def data_set():
    return torch.utils.data.TensorDataset(*samples())

def dicts():
    return [{"x": x, "grade": y} for x, y in batches()]

def triples():
    return [(x, "a note", y) for x, y in batches()]

def batches():
    x, y = samples()
    return list(zip(x.split(64), y.split(64)))

def endless():
    return itertools.cycle(batches())

def once():
    return iter(batches())

class Scan:
    def __init__(self, x, y):
        self.x, self.y = x, y

def scans():
    return [Scan(x, y) for x, y in batches()]

def run(model, scan):
    assert isinstance(scan, Scan)
    return model(scan.x)

def stop_at_second_remedy(model, scan):
    if type(model[0]).__name__ == "EvalNorm1d":
        os.kill(os.getpid(), signal.SIGTERM)
    return model(scan.x)

def grades(batch):
    return batch.y

def right(output, scan):
    return (output.argmax(1) == scan.y).double().mean()

def wrong(output, scan):
    return (output.argmax(1) != scan.y).double()

def fails(*given):
    raise RuntimeError("no such luck")

def text(*given):
    return "good"

def nothing():
    return None

WAVES = torch.stack([torch.sign(torch.sin(torch.arange(0.5, 16) / 16 * 6.2832 * f)) for f in (1, 2, 4)])

def waves():
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, 3, (320,), generator=draw)
    x = WAVES[y] + 0.3 * torch.randn(320, 16, generator=draw)
    return list(zip(x.unsqueeze(1).split(32), y.split(32)))

def deaf():
    '''Its stored mean lies so far off that no value passes the ReLU.'''
    model = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU(), nn.Conv1d(1, 3, 16), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].running_mean.fill_(9.0)
        model[0].num_batches_tracked.fill_(1000)
        model[2].weight.copy_(WAVES.unsqueeze(1))
    return model

def warns():
    warnings.warn("mind the gap", stacklevel=1)
    return batches()

class Stops:
    def __iter__(self):
        for i, batch in enumerate(batches()):
            if i == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

def stops():
    return Stops()
"""


def own(name: str) -> Any:
    space: dict[str, Any] = {"__name__": "own"}
    exec(compile(FILE, "own.py", "exec"), space)
    return space[name]


class Command:
    """Runs the command in this process."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "own.py").write_text(FILE)
        patch.chdir(folder)
        self._patch, self._capture = patch, capture

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        given = [f"own.py{a}" if str(a).startswith(":") else str(a) for a in arguments]
        self._patch.setattr(sys, "argv", ["normscope", *given])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        said = self._capture.readouterr()
        return int(code), said.out, said.err

    def record(self, *arguments: object) -> dict[str, Any]:
        """What a command with --json says; it must not have failed."""
        code, out, err = self(*arguments, "--json")
        assert code in (0, 1), err
        found: dict[str, Any] = json.loads(out)
        return found

    def gap(self, *arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = self.record("diagnose", *arguments)["gap"]
        return found


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("what", ["inspect", "diagnose", "repair", "convert"])
def test_every_command_takes_one_of_several_state_dicts(what: str, command: Command) -> None:
    state = own("net")().state_dict()
    torch.save({"g": own("stale")().state_dict(), "g_ema": state}, "gan.pt")
    given = (what, "--model", ":net", "--weights", "gan.pt")
    more: tuple[object, ...] = {
        "repair": ("--loader", ":batches", "--out", "a.st"),
        "convert": ("--to", "torch", "--out", "a.st"),
    }.get(what, ("--loader", ":batches"))
    code, _, err = command(*given, *more)
    assert (code, "'g', 'g_ema'" in err) == (2, True)
    code, _, err = command(*given, *more, "--key", "g_ema")
    assert code in (0, 1), err
    if what == "convert":
        assert torch.equal(load_file("a.st")["0.running_mean"], state["0.running_mean"])


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(command: Command) -> None:
    code, _, err = command("diagnose", "--model", ":net", "--loader", ":warns")
    assert code == 0
    assert err == "normscope: mind the gap\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(quiet=False, batches=10) as show:
        show(3, 0, "data")
        show(10, 0, "data")
        show(0, 5, "NS001")  # another part: time is measured anew
        show(1, 5, "NS002")
    assert "data" in screen.getvalue() or "NS002" in screen.getvalue()
    command("diagnose", "--model", ":net", "--loader", ":batches")
    assert "NS0" in screen.getvalue()
    for log in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", log)
        monkeypatch.setenv("FORCE_COLOR", "1")  # as many services that keep logs have it
        with progress_bar(quiet=log.isatty()) as show:
            show(1, 5, "NS001")
        assert log.getvalue() == ""


@pytest.mark.parametrize(
    ("loader", "labels"), [("dicts", "grade"), ("triples", "2"), ("scans", "own.py:grades")]
)
def test_labels_are_where_it_is_said(loader: str, labels: str, command: Command) -> None:
    common = ("--model", ":net", "--loader", f":{loader}", "--forward", ":run")
    given = common if loader == "scans" else common[:4]
    assert command.gap(*given)["eval_accuracy"] is None, "nobody said where they are"
    assert command.gap(*given, "--labels", labels)["eval_accuracy"] > 0.99


def test_functions_are_taken_as_they_are(command: Command) -> None:
    """Objects that nothing but the user's own functions can read."""
    gap = command.gap(
        "--model", ":stale", "--loader", ":scans", "--forward", ":run",
        "--metric", ":right", "--loss", ":wrong",
    )  # fmt: skip
    assert gap["train_metric"] > 0.99 > 0.9 > gap["eval_metric"]
    assert gap["eval_loss"] == pytest.approx(1 - gap["eval_metric"])


def test_what_is_good_decides_a_repair(command: Command) -> None:
    given = ("--model", ":stale", "--loader", ":scans", "--forward", ":run", "--metric", ":right")
    code, _, err = command("repair", *given, "--out", "new.safetensors")
    assert code == 0, err
    mended = load_file("new.safetensors")
    before = own("stale")().state_dict()
    assert (mended["0.running_mean"] - before["0.running_mean"]).abs().max() > 8


def test_the_model_that_is_averaged_is_named(command: Command) -> None:
    codes = [
        {f["code"] for f in command.record("diagnose", "--model", model, "--reference", ":net")["findings"]}
        for model in (":stale", ":net")
    ]  # fmt: skip
    assert codes[0] - codes[1], "buffers that do not follow the reference"


def test_the_reference_may_be_weights(command: Command) -> None:
    """As a training run leaves them: the weights of the model beside those of its average."""
    save_file(own("net")().state_dict(), "net.safetensors")
    found = [
        command.record("diagnose", "--model", ":stale", "--reference", reference)["findings"]
        for reference in (":net", "net.safetensors")
    ]
    assert found[0] == found[1]
    assert "NS030" in {f["code"] for f in found[1]}
    Path("notes.txt").write_text("no weights", encoding="utf-8")
    code, _, err = command("diagnose", "--model", ":stale", "--reference", "notes.txt")
    assert code == 2, err
    assert "is text; give safetensors or a torch checkpoint" in err


def test_batches_limit_what_is_read(command: Command) -> None:
    for loader in (":endless", ":batches"):
        given = ("--model", ":net", "--loader", loader)
        assert command.gap(*given, "--batches", 5)["samples"] == 5 * 64
        seen = command.record("inspect", *given, "--batches", 5)
        assert sum(seen["counts"]) == 5 * 64


def test_an_iterator_serves_diagnosis_and_repair(command: Command) -> None:
    both = command.record(
        "repair", "--model", ":stale", "--loader", ":once", "--live", ":once", "--out", "a.st"
    )
    assert both["repair"]["trials"]
    assert both["repair"]["after"]["accuracy"] > 0.99


def test_a_checkpoint_alone_with_the_eps_of_training(command: Command) -> None:
    state = own("net")().state_dict()
    state["0.running_var"] = torch.full((3,), 2e-5)
    torch.save(state, "a.pt")
    codes = {
        eps: {f["code"] for f in command.record("diagnose", "--weights", "a.pt", "--eps", eps)["findings"]}
        for eps in ("1e-5", "1e-12")
    }  # fmt: skip
    assert codes["1e-5"] - codes["1e-12"] == {"NS006"}
    code, _, err = command("diagnose", "--model", ":net", "--eps", "1e-5")
    assert (code, "--eps is for a checkpoint alone" in err) == (2, True)


@pytest.mark.parametrize(
    "data", ["--data table", "--loader table", "--data wide_batches", "--data two_batches",
             "--loader data_loader", "--data data_loader"],
)  # fmt: skip
def test_labels_are_not_renumbered(data: str, command: Command) -> None:
    option, _, name = data.partition(" ")
    given = ("--model", ":wide", option, f":{name}")
    assert command.gap(*given)["eval_accuracy"] > 0.99
    judged = command.record("repair", *given, "--out", "a.st", "--dry-run")["repair"]["before"]
    assert judged["accuracy"] > 0.99
    seen = command.record("inspect", *given)
    assert [k for k, count in enumerate(seen["counts"]) if count] == [285, 700, 967]
    assert seen["layers"][0]["stages"][0]["nearest_mean_accuracy"] > 0.99


def test_labels_of_a_file_are_not_renumbered(command: Command) -> None:
    x, y = own("samples")()
    rows = [
        ",".join([*(f"{v:.4f}" for v in row), str(285 + 341 * int(k))])
        for row, k in zip(x, y, strict=True)
    ]
    Path("a.csv").write_text("\n".join(["a,b,c,label", *rows]))
    seen = command.record("inspect", "--model", ":wide", "--data", "a.csv")
    assert [k for k, count in enumerate(seen["counts"]) if count] == [285, 626, 967]


def test_all_samples_are_split_and_left_as_they_are(command: Command) -> None:
    _, y = own("samples")()
    seen = command.record("inspect", "--model", ":net", "--data", ":named_classes")
    assert seen["classes"] == ["a", "b", "c"]
    counts = torch.tensor(seen["counts"])
    assert ((counts - 0.3 * torch.bincount(y)).abs() <= 1).all(), "each class has its share"
    # not standardised, or the stored statistics would be far off
    assert command.gap("--model", ":net", "--data", ":named_classes")["relative"] < 0.2
    words = command.record("inspect", "--model", ":net", "--data", ":words")
    assert (words["classes"], words["counts"]) == (seen["classes"], seen["counts"])
    for data, named in ((":conditions", True), (":named_classes", False)):  # as in a batch
        skipped = command.record("diagnose", "--model", ":net", "--data", data)["skipped"]
        assert ("NS021" in {s["code"] for s in skipped}) is not named


def test_targets_that_are_values(command: Command) -> None:
    gap = command.gap("--model", ":net", "--data", ":regression")
    assert gap["eval_loss"] < 0.1
    worse = command.gap("--model", ":stale", "--data", ":regression")
    assert worse["eval_loss"] > 1 > worse["train_loss"]
    code, said, _ = command("inspect", "--model", ":net", "--data", ":regression")
    assert code == 0
    assert "labels" in said


@pytest.mark.parametrize("what", ["inspect", "diagnose", "repair"])
@pytest.mark.parametrize("option", ["--data", "--loader"])
def test_a_data_set_is_refused_with_what_to_do(what: str, option: str, command: Command) -> None:
    out = ("--out", "a.st") if what == "repair" else ()
    code, said, err = command(what, "--model", ":net", option, ":data_set", *out)
    assert (code, said) == (2, "")
    assert err.count("\n") == 1
    assert "wrap it: torch.utils.data.DataLoader(dataset, batch_size=64)" in err


def test_data_and_loader_mean_the_same(command: Command) -> None:
    for name in (":wide_batches", ":table"):
        for what in ("inspect", "diagnose"):
            one, two = (
                command.record(what, "--model", ":wide", o, name) for o in ("--data", "--loader")
            )
            assert one == two


def test_a_run_on_other_data(command: Command) -> None:
    from normscope.experiment.data import load

    code, _, err = command(
        "train", "--data", "digits", "--norm", "batch", "--epochs", 2, "--seeds", 1, "--no-sweep",
        "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    own = command.record("inspect", "--model", "run")
    x = load("digits").test_x.flatten(1)[:, :4]
    some = [
        f"{','.join(map(str, row.tolist()))},{label}"
        for row, label in zip(x, [3, 5] * 100, strict=False)
    ]
    Path("few.csv").write_text("\n".join(["a,b,c,d,label", *some]))
    code, _, err = command("inspect", "--model", "run", "--data", "few.csv")
    assert code == 2, "four columns are no digits"
    Path("few.py").write_text(
        "from sklearn.datasets import load_digits\n"
        "def f():\n"
        "    d = load_digits()\n"
        "    some = (d.target == 3) | (d.target == 5)\n"
        "    return d.images[some], d.target[some]\n"
        "def other():\n"
        "    d = load_digits()\n"
        "    return d.images, d.target + 5\n"
    )
    seen = command.record("inspect", "--model", "run", "--data", "few.py:f")
    assert [k for k, count in enumerate(seen["counts"]) if count] == [3, 5]
    assert seen["classes"] == own["classes"]
    assert sum(seen["counts"]) < sum(own["counts"])
    code, _, err = command("inspect", "--model", "run", "--data", "few.py:other")
    assert (code, err.count("\n")) == (2, 1)
    assert "class '10', which the run was not trained on" in err


WRONG = [
    ("diagnose --model :net --loader :scans --forward :nowhere", "has no 'nowhere'"),
    ("diagnose --model :net --loader :scans --forward nowhere.py:f", "no file nowhere.py"),
    ("diagnose --model :net --loader :scans --forward run", "--forward is run; write"),
    ("diagnose --model :net --loader :scans --forward :NOT_CALLABLE", "of type int; a function"),
    ("diagnose --model :net --loader :scans --forward :fails", "RuntimeError: no such luck"),
    ("diagnose --model :net --loader :batches --metric :fails", "metric(output, batch) failed"),
    ("diagnose --model :net --loader :batches --metric :text", "metric(output, batch) failed"),
    ("diagnose --model :net --loader :batches --loss :fails", "loss(output, batch) failed"),
    ("diagnose --model :net --loader :batches --labels :fails", "labels(batch) failed"),
    ("diagnose --model :net --loader :batches --labels 7", "has no 7 to take labels from"),
    ("diagnose --model :net --loader :batches --labels grade", "has no 'grade'"),
    ("diagnose --model :net --reference :nothing", "must give a torch.nn.Module"),
    ("diagnose --model :net --reference :fails", "fails() failed: RuntimeError"),
    ("diagnose --model :net --metric :right", "--metric has no effect without --data"),
    ("diagnose --weights a.pt --forward :run", "--forward has no effect without --model"),
    ("diagnose --model :net --data :table --loader :batches", "give one of them"),
    ("diagnose --model :net --loader :nothing", "NoneType, which cannot be iterated over"),
    ("diagnose --model :net --loader digits", "--loader is digits; write"),
    ("diagnose --model :net --data :uneven", "639 and 640 samples"),
    ("diagnose --model :net --loader :fails", "fails() failed: RuntimeError: no such luck"),
    ("inspect --model :net --data :nothing", "NoneType, which cannot be iterated over"),
    ("inspect --model :net --loader :batches --labels :fails", "labels(batch) failed"),
    ("inspect --model :net --weights a.pt --key b --data :table", "a.pt"),
    ("repair --out b.st --model :net --loader :batches --metric :fails", "failed on batch"),
    ("repair --out b.st --model :net --data :table --live :nowhere", "has no 'nowhere'"),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG, ids=[line for line, _ in WRONG])
def test_what_cannot_be_used_is_one_sentence(line: str, sentence: str, command: Command) -> None:
    code, out, err = command(*line.split())
    assert (code, out) == (2, ""), err
    assert sentence in err
    assert err.strip().count("\n") == 0, err
    assert not Path("b.st").exists()


def test_what_an_own_weight_asks_of_a_loader_is_said(command: Command) -> None:
    common = ("repair", "--model", ":deaf", "--loader", ":waves", "--out", "a.st")
    _, _, err = command(*common, "--remedy", "own_weight")
    assert "normscope.doctor.own_weight(model, [], 0)" in err
    _, _, err = command(*common, "--remedy", "recalibrate")
    assert "own_weight" not in err


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_ctrl_c(interrupt: Any, command: Command) -> None:
    """Also in a background job of a script, which ignores Ctrl-C."""
    usual = signal.signal(signal.SIGINT, interrupt)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        code, _, err = command(
            "inspect", "--model", ":net", "--loader", ":stops", "--save", "a.json"
        )
        assert signal.getsignal(signal.SIGINT) is interrupt
        assert signal.getsignal(signal.SIGTERM) is terminate
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, usual)
    assert code == 130
    assert "stopped after" in err
    assert sum(Inspection.from_json(Path("a.json").read_text()).counts) == 5 * 64


def test_sigterm_keeps_what_was_judged(command: Command, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "normscope", "repair", "--model", "own.py:stale", "--loader",
            "own.py:scans", "--forward", "own.py:stop_at_second_remedy", "--metric", "own.py:right",
            "--remedy", "recalibrate,own_weight", "--out", "new.safetensors", "--json",
        ],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    record = json.loads(done.stdout)["repair"]
    assert not record["complete"]
    assert [(t["remedy"], t["kept"]) for t in record["trials"]] == [("recalibrate", True)]
    moved = (
        load_file("new.safetensors")["0.running_mean"]
        - own("stale")().state_dict()["0.running_mean"]
    )
    assert moved.abs().max() > 8
