"""The files around the code: workflows, templates, citation, hooks, lowest versions, READMEs."""

import importlib
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML
from torch import nn

import normscope
from normscope.doctor.checks import CHECKS, CheckContext
from normscope.doctor.state import of_checkpoint
from tests.readme import blocks
from tests.report.chromium import chromium

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
SCHEMAS: dict[str, list[Path]] = {
    "vendor.github-workflows": WORKFLOWS,
    "custom.github-workflows-require-timeout": WORKFLOWS,
    "vendor.github-issue-forms": FORMS,
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
SYSTEM = ("apt-get", "bash", "grep", "make")  # commands of a workflow; they run here too


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_their_published_schema(schema: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    assert SCHEMAS[schema]
    done = subprocess.run(
        [*check, *map(str, SCHEMAS[schema])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in read(workflow)["jobs"].values():
        yield from job["steps"]


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_step_of_a_workflow_runs_something_that_is_here(workflow: Path) -> None:
    asked = 0
    for step in steps(workflow):
        if "run" not in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", step["uses"])
            continue
        plain = re.sub(r"\$\{\{.*?\}\}", "torch", step["run"])
        assert subprocess.run(["bash", "-n", "-c", plain], check=False).returncode == 0
        for command in re.split(r"&&|\n", plain):
            program, *arguments = shlex.split(command)
            asked += 1
            assert program in SYSTEM
            assert shutil.which(program), program
            if program == "make":
                assert arguments[0] in targets(), command
            elif program == "bash":
                assert (ROOT / arguments[0]).is_file(), command
    assert asked


def test_every_supported_python_is_tested_with_the_lowest_and_the_newest_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    matrix = read(GITHUB / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    named = [c.rpartition(" :: ")[2] for c in project["classifiers"] if ":: Python :: 3." in c]
    assert matrix["python"] == named
    assert project["requires-python"] == f">={named[0]}"
    (lowest,) = (r for r in project["dependencies"] if r.startswith("torch>="))
    assert matrix["torch"] == [lowest.replace(">=", "==") + ".*", "torch"]


def test_a_release_checks_that_the_tag_is_the_version(tmp_path: Path) -> None:
    (step,) = [s for s in steps(GITHUB / "workflows" / "release.yml") if "tag" in s.get("name", "")]
    for tag, code in ((f"v{normscope.__version__}", 0), ("v0.0.0", 1), ("main", 1)):
        done = subprocess.run(
            ["bash", "-c", step["run"]], cwd=ROOT, env={"GITHUB_REF_NAME": tag}, check=False
        )
        assert done.returncode == code, tag


def test_the_citation_has_the_version_and_the_licence_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = read(ROOT / "CITATION.cff")
    assert (cited["version"], cited["license"]) == (normscope.__version__, project["license"])
    assert cited["authors"][0]["name"].lower() == project["authors"][0]["name"]


def test_lowest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        requirement.name: next(iter(requirement.specifier)).version
        for line in (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
        for requirement in (Requirement(line),)
    }
    lowest = {}
    tested = ("tables", "plot", "images", "tensorboard")  # the extras of `make lowest`
    promised = project["dependencies"] + [
        line for extra in tested for line in project["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, promised):
        (bound,) = [s.version for s in requirement.specifier if s.operator == ">="]
        lowest[requirement.name] = bound
    for name, version in lowest.items():
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", pinned[name]), name


def test_hooks_are_local_and_run_what_the_environment_has() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert (ROOT / program).is_file() or shutil.which(Path(program).name), program
        assert hook["entry"] in (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")


def test_a_container_for_development_sets_itself_up_by_make() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make .venv/.dev"
    assert container["image"] in (GITHUB / "workflows" / "tests.yml").read_text()
    chromium = container["onCreateCommand"].partition("&& ")[2]
    assert chromium in (GITHUB / "workflows" / "tests.yml").read_text()


def test_both_readmes_show_the_same_commands_and_the_same_output() -> None:
    ours, theirs = (list(blocks(ROOT / name)) for name in ("README.md", "README.zh-CN.md"))
    assert ours == theirs
    commands = [command for block in ours for command in block.commands]
    assert commands
    for target in re.findall(r"^make (\w+)", "\n".join(b.code for b in ours), re.MULTILINE):
        assert target in targets()


PICTURES = ROOT / "docs" / "pictures"


def test_pictures_are_of_one_size_and_each_is_shown() -> None:
    taken = json.loads((PICTURES / "structure.json").read_text(encoding="utf-8"))
    for readme in ("README.md", "README.zh-CN.md"):
        shown = re.findall(r"\]\(docs/pictures/(\w+)\.png\)", (ROOT / readme).read_text("utf-8"))
        assert set(shown) == taken.keys() == {path.stem for path in PICTURES.glob("*.png")}
    for name in taken:
        width, height = struct.unpack(">II", (PICTURES / f"{name}.png").read_bytes()[16:24])
        assert (width, height) == (1280, 800)
        assert taken[name]["drawings"] >= 1
        assert len(taken[name]["texts"]) >= 10


@pytest.mark.slow
def test_pictures_show_what_this_version_draws() -> None:
    with chromium():  # else it is skipped
        pass
    check = [sys.executable, str(ROOT / "tools" / "pictures.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make pictures takes them again\n{done.stdout}{done.stderr}"


GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_file_command_and_word_of_the_guide_is_there() -> None:
    for target in re.findall(r"(?:^|`)make ([a-z]+)", GUIDE, re.MULTILINE):
        assert target in targets(), target
    inside = (
        ROOT,
        ROOT / "tests",
        ROOT / "src" / "normscope",
        ROOT / "src" / "normscope" / "report",
    )
    named = re.findall(r"(?<![\w/.])([\w./-]+(?:\.(?:py|json|md|cff|j2)|/))(?=[`\s,.;)])", GUIDE)
    assert len(named) > 25
    for name in named:
        if "FILE" not in name:
            found = any((base / name).exists() for base in inside)
            assert found or list((ROOT / "src").rglob(name.rstrip("/"))), name
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    words = GUIDE.partition("## Words of the code")[2].partition("## A release")[0]
    for row in re.findall(r"^\| (.*?) \|", words, re.MULTILINE)[2:]:
        for word in re.findall(r"`(\w+)`", row):
            assert re.search(rf"\b{word}\b", source), word


def test_the_check_of_the_guide_is_a_check() -> None:
    (code,) = re.findall(r"^   ```python\n(.*?)^   ```", GUIDE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = vars(importlib.import_module("normscope.doctor.checks.buffers")).copy()
    (number,) = set(re.findall(r"\bNS\d{3}\b", GUIDE)) - set(CHECKS)
    assert number == f"NS{len(CHECKS) + 1:03}", "the guide adds the next free code"
    try:
        exec(textwrap.dedent(code), names)
        check = CHECKS.pop(number)()  # not among those that others ask
    finally:
        CHECKS.pop(number, None)
    assert (check.code, check.needs) == (number, "checkpoint")
    state = nn.BatchNorm1d(3).state_dict()
    assert not list(check.find(CheckContext(of_checkpoint(state))))
    state["weight"][1] = 200.0
    (finding,) = check.find(CheckContext(of_checkpoint(state)))
    assert (finding.severity, finding.measured) == ("error", 200)
