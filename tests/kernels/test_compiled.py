"""Compiled code on disk: no form may ever be given the code of another."""

import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")
from numba import types
from numba.core import caching

from normscope.kernels.cpu import compiled, planes
from normscope.kernels.cpu.entries import entry
from normscope.kernels.cpu.memory import FLOAT64, store

PROGRAM = """
import sys, torch
from normscope.kernels.cpu import compiled, planes
from normscope.kernels.cpu.entries import entry
from normscope.kernels.cpu.memory import FLOAT64, store
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


@pytest.mark.parametrize("problem", ["nowhere", "full"])
def test_without_a_place_on_disk(
    problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    if problem == "nowhere":  # a container that is read-only, say
        monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    else:
        monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    compiled._tell_once.cache_clear()
    found = []
    for number in (1, 2):

        def loop(p: int) -> None:
            store(p, 0, 7.0, FLOAT64)

        found.append(compiled.compiled(types.void(types.int64), loop, problem, number))
    for function in found:
        value = array("d", [0.0])
        function.call(value.buffer_info()[0])
        assert value[0] == 7
    said = [record.message for record in caplog.records]
    assert sum("NUMBA_CACHE_DIR" in message for message in said) == 1


def test_what_older_texts_left_is_removed(tmp_path: Path) -> None:
    digest, name = "0" * 2 * compiled.DIGEST, compiled.named(lambda: None).__qualname__
    now = name.rsplit("_", 2)[1]
    file, rest = __file__, f"_{digest}-12.py311.1.nbc"
    gone = tmp_path / f"test_compiled.loop_{digest}{rest}"
    kept = [
        tmp_path / f"test_compiled.loop_{now}{rest}",
        tmp_path / f"other.loop_{digest}{rest}",
        tmp_path / f"test_compiled.loop-12{rest}",
        tmp_path / f"test_compiled.loop_{digest}_{digest}-12.py",
    ]
    for path in (gone, *kept):
        path.write_bytes(b"")
    compiled._forget(str(tmp_path), file)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


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
