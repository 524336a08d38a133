"""normscope merge: the law of total variance on the command line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from normscope.cli import app
from normscope.errors import FileError, InputError


def _site(path: Path, x: torch.Tensor) -> None:
    net = nn.BatchNorm1d(3, momentum=None)
    net(x)
    save_file(net.state_dict(), path)


def test_the_statistics_are_those_of_all_data(tmp_path: Path) -> None:
    parts = [torch.randn(800, 3) * 2 + 1, torch.randn(200, 3) - 3]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.pt"]
    _site(paths[0], parts[0])
    net = nn.BatchNorm1d(3, momentum=None)
    net(parts[1])
    torch.save(net.state_dict(), paths[1])
    out = tmp_path / "m.safetensors"
    done = CliRunner().invoke(
        app, ["merge", *map(str, paths), "--counts", "800,200", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    merged, both = load_file(out), torch.cat(parts).double()
    assert torch.allclose(merged["running_mean"].double(), both.mean(0), atol=1e-6)
    assert torch.allclose(merged["running_var"].double(), both.var(0), rtol=1e-6)
    averaged = 0.8 * parts[0].var(0) + 0.2 * parts[1].var(0)  # what an average of tensors takes
    assert bool((averaged < 0.7 * merged["running_var"]).all())


@pytest.mark.parametrize(
    ("files", "counts", "sentence"),
    [
        (("a", "b"), "800", "one each is needed"),
        (("a",), "800", "name two or more"),
        (("a", "b"), "800,x", "numbers with commas"),
        (("a", "b"), "800,1", "at least 2"),
        (("a", "out"), "8,9", "--out is one of the checkpoints"),
    ],
)
def test_wrong_use(tmp_path: Path, files: tuple[str, ...], counts: str, sentence: str) -> None:
    for name in {*files, "a", "b"}:
        _site(tmp_path / name, torch.randn(8, 3))
    given = ["merge", *(str(tmp_path / f) for f in files), "--counts", counts]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, InputError)
    assert sentence in str(done.exception)


def test_a_missing_file(tmp_path: Path) -> None:
    _site(tmp_path / "a", torch.randn(8, 3))
    given = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--counts", "8,8"]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, FileError)
