"""The sdist and the wheel: what they hold, and that they work far from the source tree.

The wheel is installed into a fresh environment that has links to what it needs and nothing else:
no extra, none of the packages for development, not the source. With NORMSCOPE_DIST=FOLDER the files
of that folder are tried instead of new ones.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.readme import Block, blocks

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "normscope"
README = ROOT / "README.md"


class Installed(NamedTuple):
    """An environment with the wheel, and an empty folder to work in that has the examples."""

    bin: Path
    work: Path

    def run(self, *command: str, ok: tuple[int, ...] = (0,)) -> str:
        """Run a program of the environment; return what it printed."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV"))}
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.work,
            env=variables | {"COLUMNS": "100", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode in ok, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("NORMSCOPE_DIST"):
        return ROOT / given
    out = tmp_path_factory.mktemp("dist")
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", *here, "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=170)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("normscope-*-py3-none-any.whl")
    return found


def needed(wheel: Path) -> set[Path]:
    """Return the folders and files of all that the wheel needs, directly or through another."""
    told = Parser().parsestr(zipfile.ZipFile(wheel).read(_metadata(wheel)).decode())
    asked, seen, parts = told.get_all("Requires-Dist", []), set[str](), set[Path]()
    while asked:
        requirement = Requirement(asked.pop())
        here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not here or requirement.name in seen:
            continue
        seen.add(requirement.name)
        found = distribution(requirement.name)
        asked += found.requires or []
        tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        parts |= {Path(str(found.locate_file(top))) for top in tops}
    return parts


def _metadata(wheel: Path) -> str:
    names = zipfile.ZipFile(wheel).namelist()
    return next(name for name in names if name.endswith(".dist-info/METADATA"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home, work = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("work")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    for part in needed(wheel):
        (packages / part.name).symlink_to(part)
    shutil.copytree(ROOT / "examples", work / "examples")
    found = Installed(home / "bin", work)
    where = found.run("python", "-c", "import normscope; print(normscope.__file__)")
    assert Path(where.strip()).is_relative_to(home)
    assert not list(packages.glob("pandas*")), "an extra"
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel)
    inside = {name for name in packed.namelist() if ".dist-info/" not in name}
    source = {
        f"normscope/{path.relative_to(SOURCE)}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == source
    for suffix in (".json", ".cpp", ".h", ".js", ".css", ".j2", ".txt", "py.typed"):
        assert any(name.endswith(suffix) for name in inside), suffix
    for name in inside:
        assert packed.read(name) == (SOURCE.parent / name).read_bytes(), name
    licences = [name for name in packed.namelist() if "/licenses/" in name]
    assert any(name.endswith("/LICENSE") for name in licences)
    assert sum("/vendor/" in name for name in licences) == len(
        list(SOURCE.glob("report/assets/vendor/*.txt"))
    )


def test_the_sdist_is_the_tree_as_it_is_shared(dist: Path) -> None:
    (path,) = dist.glob("normscope-*.tar.gz")
    with tarfile.open(path) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        shared = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
        assert inside == shared | {"PKG-INFO"}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "tests/test_wheel.py"} <= inside


def test_what_an_index_shows(dist: Path, wheel: Path) -> None:
    files = sorted(map(str, dist.iterdir()))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    packed = zipfile.ZipFile(wheel)
    told = Parser().parsestr(packed.read(_metadata(wheel)).decode())
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Author"]
    assert "Python :: 3.14" in " ".join(told.get_all("Classifier", []))
    assert str(told.get_payload()).startswith("# normscope")


def test_every_command_answers(installed: Installed, wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert installed.run("normscope", "--version").strip() == f"normscope {version}"
    listing = installed.run("normscope", "--help")
    commands = re.findall(r"^ {2}([a-z]+) {2,}\S", listing.partition("\nOptions:")[0], re.MULTILINE)
    assert {"explain", "train", "inspect", "diagnose", "repair", "report"} <= set(commands)
    for command in commands:
        assert installed.run("normscope", command, "--help").startswith(
            f"Usage: normscope {command}"
        )
    assert "Batch norm does not make the classes equal" in installed.run("normscope", "explain")
    assert re.search(rf"^normscope +{version}$", installed.run("normscope", "env"), re.MULTILINE)


def test_a_run_becomes_pages_in_both_languages(installed: Installed) -> None:
    small = [
        "--norm",
        "batch,none",
        "--epochs",
        "2",
        "--seeds",
        "1",
        "--no-sweep",
        "--out",
        "small",
    ]
    installed.run("normscope", "train", *small)
    for lang, word in (("en", "accuracy"), ("zh", "准确率")):
        page = installed.work / f"{lang}.html"
        installed.run("normscope", "report", "small", "--html", page.name, "--lang", lang)
        text = page.read_text(encoding="utf-8")
        assert f'<html lang="{lang}' in text[:500]
        assert word in text
    data = ["--model", "examples/net.py:trained", "--loader", "examples/net.py:batches"]
    told = installed.run("normscope", "inspect", *data, "--save", "seen.json")
    assert "in all 3 layers η² and J are the same" in " ".join(told.split())
    record = json.loads(installed.run("normscope", "report", "seen.json", "--json"))
    assert len(record["layers"]) == 3


PYTHON = """
import sys, torch
sys.path.insert(0, "examples")
import net
model, loader = net.trained(), net.batches()
x = loader[0][0]
for code in {codes!r}:
    print("=====")
    exec(code)
"""


def test_the_quick_starts_of_the_readme_run_and_print_what_it_says(installed: Installed) -> None:
    found = list(blocks(README))
    python = [block for block in found if block.python]
    assert len(python) >= 2
    told = installed.run("python", "-c", PYTHON.format(codes=[block.code for block in python]))
    for block, output in zip(python, told.split("=====\n")[1:], strict=True):
        _as_printed(block, output)
    for block in (block for block in found if not block.python):
        output = ""
        for command in block.commands:
            # 1: the doctor found something
            output = installed.run(*shlex.split(command), ok=(0, 1))
        _as_printed(block, output)
    for name in ("lesson.html", "live.html", "seen.html"):
        assert "<html" in (installed.work / name).read_text(encoding="utf-8")[:200]


def _as_printed(block: Block, output: str) -> None:
    """Compare word by word; a number of the README may differ a little by machine and version."""
    if not block.output:
        return
    wanted = block.output.split()
    cut = wanted[-1] == "..."
    wanted = wanted[:-1] if cut else wanted
    shown = output.split()
    assert len(shown) >= len(wanted) if cut else len(shown) == len(wanted), output
    for ours, theirs in zip(wanted, shown, strict=False):
        if ours != theirs:
            assert _figure(ours) is not None, (ours, theirs, output)
            assert _figure(theirs) == pytest.approx(_figure(ours), rel=0.1), (ours, theirs, output)


def _figure(word: str) -> float | None:
    """Read a number with its comma, dot or per cent sign; None for a word."""
    try:
        return float(word.strip("().,:;%").replace(",", ""))
    except ValueError:
        return None
