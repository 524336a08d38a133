"""The same situations by the command line: factories, keys, limits, what is good."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from normscope.cli import main
from tests.situations.situation import digits_model, epoch_ago, fingerprint, reset

FACTORIES = '''
import torch
from torch import nn
from tests.situations.situation import digit_batches, digits, digits_model, epoch_ago

def net():
    return digits_model()

def stale():
    return epoch_ago(digits_model(), dose=1.5)

def named():
    return [(x, y, ["a.png"] * len(x)) for x, y in digit_batches()]

def pairs():
    return digit_batches()

def endless():
    while True:
        yield from digit_batches()

class Scan:
    def __init__(self, x, y):
        self.x, self.y = x, y

def scans():
    return [Scan(x, y) for x, y in digit_batches()]

def run(model, scan):
    return model(scan.x)

def share_right(output, scan):
    return float((output.argmax(1) == scan.y).double().mean())

class Wide(nn.Module):
    """A thousand classes, of which the digits are 100, 190, 280 ..."""
    def __init__(self):
        super().__init__()
        self.net = digits_model()
    def forward(self, x):
        out = self.net(x).new_full((len(x), 1000), -30.0)
        out[:, 100:1000:90] = self.net(x)
        return out

def wide():
    return Wide()

def wide_pairs():
    return [(x, 100 + 90 * y) for x, y in digit_batches()]

def wide_data():
    x, y = digits()
    return x, 100 + 90 * y
'''


class Shell:
    """Runs commands in this process."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.file, self._patch, self._capture = folder / "own.py", patch, capture
        self.file.write_text(FACTORIES)

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["normscope", *map(str, arguments)])
        self._patch.setenv("COLUMNS", "200")
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        said = self._capture.readouterr()
        return int(code), said.out, said.err

    def own(self, name: str) -> str:
        return f"{self.file}:{name}"


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return Shell(tmp_path, monkeypatch, capsys)


def test_file_names_beside_the_images(shell: Shell) -> None:
    code, out, err = shell(
        "diagnose", "--model", shell.own("stale"), "--loader", shell.own("named")
    )
    assert code == 1, err
    assert "NS003" in out


@pytest.mark.timeout(60)
def test_an_endless_loader_and_how_much_of_it(shell: Shell) -> None:
    code, out, err = shell(
        "diagnose", "--model", shell.own("stale"), "--loader", shell.own("endless"), "--batches", 12
    )
    assert code == 1, err
    assert "NS003" in out


def test_objects_with_forward_and_metric(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "mended.safetensors"
    code, said, err = shell(
        "repair", "--model", shell.own("stale"), "--loader", shell.own("scans"), "--forward", shell.own("run"),
        "--metric", shell.own("share_right"), "--out", out,
    )  # fmt: skip
    assert code == 0, (said, err)
    assert out.is_file()


def test_the_labels_of_a_thousand_classes_stay_as_they_are(shell: Shell) -> None:
    """Ten of a thousand classes are in the data, 100 to 910: they are not renumbered to 0 to 9."""
    for loader in ("wide_pairs", "wide_data"):
        given = "--loader" if loader == "wide_pairs" else "--data"
        code, out, err = shell(
            "diagnose", "--model", shell.own("wide"), given, shell.own(loader), "--json"
        )
        assert code == 0, (loader, err)
        accuracy = float(out.split('"eval_accuracy":')[1].split(",")[0].split("}")[0])
        assert accuracy > 0.9, loader


def test_inspect_takes_the_list_that_diagnose_takes(shell: Shell) -> None:
    code, _, err = shell("inspect", "--model", shell.own("net"), "--data", shell.own("pairs"))
    assert code == 0, err


@pytest.mark.parametrize("key", ["g_ema", "teacher"])
def test_which_network_of_a_checkpoint(key: str, shell: Shell, tmp_path: Path) -> None:
    state, other = reset(digits_model()).state_dict(), digits_model().state_dict()
    torch.save({key: other, "student": state, "step": 7}, tmp_path / "both.pt")
    code, _, err = shell("diagnose", "--weights", tmp_path / "both.pt")
    assert code == 2
    assert key in err
    assert "student" in err
    code, out, err = shell("diagnose", "--weights", tmp_path / "both.pt", "--key", key)
    assert code == 0, (out, err)
    code, out, err = shell("diagnose", "--weights", tmp_path / "both.pt", "--key", "student")
    assert "NS002" in out, (out, err)


def test_a_checkpoint_alone_is_not_called_healthy(shell: Shell, tmp_path: Path) -> None:
    """Six checks passed and 21 need a model or data: both are in the first lines."""
    torch.save(digits_model().state_dict(), tmp_path / "a.pt")
    code, out, err = shell("diagnose", "--weights", tmp_path / "a.pt")
    assert code == 0, err
    first = out.strip().splitlines()[0].lower()
    assert "healthy" not in first, first
    assert "need" in " ".join(out.lower().splitlines()[:3]), out[:300]


def test_warnings_are_failures_of_a_junit_report_where_they_are_asked_for(
    shell: Shell, tmp_path: Path
) -> None:
    report = tmp_path / "report.xml"
    code, _, err = shell(
        "diagnose",
        "--model",
        shell.own("stale"),
        "--loader",
        shell.own("pairs"),
        "--junit",
        report,
        "--fail-on",
        "warning",
    )
    assert code == 1, err
    text = report.read_text()
    assert "<failure" in text
    assert 'failures="0"' not in text


@pytest.mark.parametrize("what", ["a file that is not there", "a factory that is not there"])
def test_data_are_used_or_refused_beside_a_run(what: str, shell: Shell, tmp_path: Path) -> None:
    """inspect --model RUN --data OTHER: the other data, or one sentence."""
    run = tmp_path / "run"
    code, _, err = shell(
        "train", "--data", "digits", "--norm", "batch", "--epochs", 1, "--seeds", 1, "--out", run
    )
    assert code == 0, err
    missing = tmp_path / "nowhere.csv" if what.startswith("a file") else shell.own("nowhere")
    code, _, err = shell("inspect", "--model", run, "--data", missing)
    assert code == 2
    assert "nowhere" in err


def test_a_repair_leaves_the_given_weights_alone(shell: Shell, tmp_path: Path) -> None:
    model = epoch_ago(digits_model(), dose=1.5)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    arguments: list[Any] = [
        "--model",
        shell.own("net"),
        "--weights",
        tmp_path / "a.pt",
        "--loader",
        shell.own("named"),
    ]
    code, out, err = shell("repair", *arguments, "--out", tmp_path / "b.safetensors")
    assert code == 0, (out, err)
    assert (tmp_path / "a.pt").read_bytes() == before
    assert fingerprint(model) == fingerprint(epoch_ago(digits_model(), dose=1.5))
