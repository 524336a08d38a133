"""Compiled code on disk: no form may ever be given the code of another."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")
from normscope.kernels.cpu import compiled, planes
from normscope.kernels.cpu.entries import entry

PROGRAM = """
import sys, torch
from normscope.kernels.cpu import compiled, planes
from normscope.kernels.cpu.entries import entry
print(entry(planes.sums, sys.argv[1], None, False, False).function.__qualname__)
"""


def test_every_form_has_files_of_its_own(tmp_path: Path) -> None:
    names = []
    for dtype in ("torch.float32", "torch.float64", "torch.float32"):
        command = [sys.executable, "-c", PROGRAM, dtype]
        ran = subprocess.run(
            command,
            env={"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
        )
        names.append(ran.stdout.strip())
        compiling = "compiling" in ran.stderr
        assert compiling == (len(names) < 3), "the third finds on disk what the first compiled"
    assert names[0] == names[2] != names[1]
    for name in set(names):
        files = sorted(path.suffix for path in tmp_path.rglob(f"*{name}*"))
        assert files == [".nbc", ".nbi"]


def _numbered(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    def function() -> None: ...

    monkeypatch.setattr(compiled, "_texts", lambda file: text)
    return compiled.named(function, 1).__qualname__


def test_a_name_follows_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _numbered("a", monkeypatch) == _numbered("a", monkeypatch)
    assert _numbered("a", monkeypatch) != _numbered("b", monkeypatch)


def test_a_name_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = _numbered("a", monkeypatch)
    monkeypatch.setattr(compiled, "_machine", lambda: ("another",))
    assert _numbered("a", monkeypatch) != here


def test_a_name_follows_every_part_of_the_form() -> None:
    forms: list[tuple[Any, ...]] = [
        (planes.map_, "torch.float32", None, False, False),
        (planes.map_, "torch.float32", "relu", False, False),
        (planes.map_, "torch.float32", None, True, False),
        (planes.map_, "torch.float32", None, False, True),
        (planes.sums, "torch.float32", None, False, False),
    ]
    assert len({entry(*form).function.__qualname__ for form in forms}) == len(forms)
