"""The compiled library on disk: whole or not there, whatever happens while it is built."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normscope.kernels.cpu import build

# y of a small layer, which kernel served it, and what the lens saw
PROGRAM = """
import sys, torch
import normscope
from normscope import functional
x = torch.arange(24.0).reshape(4, 2, 3)
y = normscope.BatchNorm1d(2)(x)
expected = torch.nn.BatchNorm1d(2)(x)
torch.testing.assert_close(y, expected)
print(functional.why(x))
"""
# compiles nothing: what it links is the library that these tests run with
COMPILER = """#!/bin/sh
[ -n "$FAKE_SLEEP" ] && sleep "$FAKE_SLEEP"
while [ $# -gt 0 ]; do
  case "$1" in -o) out="$2"; shift;; -shared) links=1;; esac
  shift
done
if [ -n "$links" ]; then head -c -32 "$FAKE_LIBRARY" > "$out"; else : > "$out"; fi
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A process with a folder of its own and a compiler that takes no time."""
    assert build.loaded(), build.obstacle()
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    return os.environ | {
        "NORMSCOPE_CACHE_DIR": str(tmp_path / "cache"),
        "CXX": str(compiler),
        "FAKE_LIBRARY": str(build.library()),
        "OMP_NUM_THREADS": "1",
    }


def start(environment: dict[str, str], program: str = PROGRAM) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out, err


def kept(environment: dict[str, str]) -> list[str]:
    return sorted(p.name for p in Path(environment["NORMSCOPE_CACHE_DIR"]).iterdir())


def test_built_once_and_found_again(environment: dict[str, str]) -> None:
    out, err = outcome(start(environment))
    assert out.startswith("cpu: ")
    assert err.count("compiling") == 1
    assert kept(environment) == [build.library().name]
    out, err = outcome(start(environment))
    assert out.startswith("cpu: ")
    assert not err


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_a_damaged_library_is_built_anew(damage: str, environment: dict[str, str]) -> None:
    outcome(start(environment))
    path = Path(environment["NORMSCOPE_CACHE_DIR"]) / build.library().name
    data = path.read_bytes()
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"empty": b"", "cut": data[:middle], "changed": changed}[damage])
    out, err = outcome(start(environment))
    assert out.startswith("cpu: ")
    assert "compiling" in err
    assert path.read_bytes() == data


@pytest.mark.slow
def test_processes_that_build_at_once(environment: dict[str, str]) -> None:
    processes = [start(environment | {"FAKE_SLEEP": "0.5"}) for _ in range(3)]
    for process in processes:
        out, _ = outcome(process)
        assert out.startswith("cpu: ")
    assert kept(environment) == [build.library().name]


@pytest.mark.slow
def test_a_build_that_was_killed_leaves_nothing_in_the_way(environment: dict[str, str]) -> None:
    process = start(environment | {"FAKE_SLEEP": "60"})
    folder = Path(environment["NORMSCOPE_CACHE_DIR"])
    deadline = time.monotonic() + 60
    while not list(folder.glob("building-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (left,) = folder.glob("building-*")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    os.utime(left, (0, 0))  # as if it was long ago
    out, _ = outcome(start(environment))
    assert out.startswith("cpu: ")
    assert kept(environment) == [build.library().name]


WITHOUT = """
import json, logging
from types import SimpleNamespace
from normscope import functional, lens
from normscope.kernels.cpu import build
assert "reference: " in functional.why(x), functional.why(x)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                            torch.nn.Flatten(), torch.nn.Linear(4 * 36 * 36, 2))
data = [(torch.randn(16, 1, 38, 38), torch.arange(16) % 2)]
print("moments", functional.moments(data[0][0]).mean.item())
print("lens", lens.inspect(model, data).layers[0].name)
"""


def test_without_a_compiler_the_reference_serves(
    environment: dict[str, str], tmp_path: Path
) -> None:
    bare = environment | {"PATH": str(tmp_path), "CXX": ""}
    out, err = outcome(start(bare, PROGRAM + WITHOUT))
    assert out.startswith("reference: no C++ compiler was found; install g++")
    assert "lens 1" in out
    assert err.count("the slower reference serves") == 1
    command = [sys.executable, "-m", "normscope", "env"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=True)
    assert "no C++ compiler to build them: install g++" in done.stdout


def test_a_compiler_that_fails_is_quoted(environment: dict[str, str]) -> None:
    compiler = Path(environment["CXX"])
    compiler.write_text("#!/bin/sh\necho 'x.h:1: fatal error: no such file' >&2\nexit 1\n")
    out, err = outcome(start(environment))
    assert out.startswith("reference: the compiler failed: x.h:1: fatal error: no such file")
    assert "slower reference" in err
    assert kept(environment) == []


def test_where_nothing_can_be_kept(environment: dict[str, str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    out, err = outcome(start(environment | {"NORMSCOPE_CACHE_DIR": str(blocked / "folder")}))
    assert out.startswith("reference: no folder can keep the compiled library")
    assert "NORMSCOPE_CACHE_DIR" in err


def test_a_home_that_cannot_be_written(environment: dict[str, str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    rest = {k: v for k, v in environment.items() if k != "NORMSCOPE_CACHE_DIR"}
    rest |= {"XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)}
    out, _ = outcome(start(rest))
    assert out.startswith("cpu: ")
    (folder,) = tmp_path.glob("normscope-*")
    assert [p.name for p in folder.iterdir()] == [build.library().name]
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_write_is_not_trusted(
    environment: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(environment["NORMSCOPE_CACHE_DIR"])
    folder.mkdir()
    folder.chmod(0o777)
    out, _ = outcome(start(environment))
    assert out.startswith("reference: ")
    assert "others may write to it" in out


def test_the_name_follows_source_flags_and_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {build._key.__wrapped__()}
    source = tmp_path / "layer.cpp"
    source.write_text("int changed;")
    for name, value in {
        "SOURCES": (source,),
        "FLAGS": (*build.FLAGS, "-g"),
        "torch.__version__": "0.1",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"normscope.kernels.cpu.build.{name}", value)
            found.add(build._key.__wrapped__())
    assert len(found) == 4
