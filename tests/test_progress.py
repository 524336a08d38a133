"""The bar of long calls: where it is shown, where not, and only one at a time."""

import io
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

import normscope
from normscope import progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Make stderr a terminal; not in a fixture, behind which pytest takes it back."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook's cell showed, one after the other."""
    shown: list[str] = []

    class Handle:
        def update(self, text: str) -> None:
            shown.append(text)

    def display(text: str, display_id: bool) -> Handle:
        assert display_id
        shown.append(text)
        return Handle()

    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.HTML, ipython.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return shown


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(16, 4), torch.arange(16) % 2) for _ in range(5)]


def every_call(**how: Any) -> None:
    model = net()
    normscope.inspect(model, batches(), model_name="seen", **how)
    normscope.recalibrate(model, batches(), **how)
    with torch.no_grad():
        model[1].running_mean += 3
    found = normscope.diagnose(model, batches(), **how)
    normscope.repair(model, found, batches(), **how)


def test_a_terminal_shows_every_long_call_and_a_log_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = terminal(monkeypatch)
    every_call()
    for text in ("seen", "recalibrate", "5/5"):
        assert text in screen.getvalue()
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setenv("FORCE_COLOR", "1")
    every_call()
    assert log.getvalue() == ""


def test_whoever_is_told_shows_it_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    told: list[Any] = []
    normscope.inspect(net(), batches(), on_progress=told.append)
    normscope.diagnose(net(), batches(), on_progress=lambda *step: told.append(step))
    assert screen.getvalue() == ""
    assert told[:5] == [16, 32, 48, 64, 80]
    every_call(progress=False)
    assert screen.getvalue() == ""
    normscope.inspect(net(), batches(), on_progress=told.append, progress=True)
    assert told[-1] == 80
    assert screen.getvalue()


def test_short_calls_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with progress.bar(patience=60) as show:
        show(1, 2, "short")
    assert "short" not in screen.getvalue()


def test_what_is_called_inside_has_no_bar_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with progress.bar(patience=0) as show:
        show(1, 3, "outer")
        normscope.inspect(net(), batches(), model_name="inner", progress=True)
        show(2, 3, "outer")
    assert "inner" not in screen.getvalue()
    normscope.inspect(net(), batches(), model_name="later")
    assert "later" in screen.getvalue()


def test_a_call_that_fails_takes_its_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    def fails() -> Any:
        yield from batches()[:2]
        raise OSError("the disk is gone")

    with pytest.raises(normscope.InputError, match="the disk is gone"):
        normscope.recalibrate(net(), fails())
    assert not progress._active
    assert screen.getvalue().rstrip().endswith("\x1b[2K"), "its line is cleared"


def test_a_notebook_shows_the_browsers_own_bar(notebook: list[str]) -> None:
    normscope.inspect(net(), batches(), model_name="<b>\x1b[2J")
    assert notebook[0].startswith('<progress value="1" max="5"></progress> &lt;b&gt;\\x1b[2J 1/5')
    assert '<progress value="5" max="5">' in notebook[-2]
    assert notebook[-1] == "", "it is gone at the end"


def test_how_many_batches_are_expected() -> None:
    assert progress.expected(batches()) == 5
    assert progress.expected(batches(), 3) == 3
    assert progress.expected(iter(batches())) == 0
    assert progress.expected(None, 7) == 7
