"""The notebooks in examples/ run from top to bottom, and show what is committed with them."""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.extras import quiet_import

nbformat = quiet_import("nbformat")
quiet_import("nbclient")
quiet_import("ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NEEDS = {"04": ("timm",), "05": ("pytorch_lightning", "transformers", "accelerate")}


@cache
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def test_they_are_found() -> None:
    assert tool().notebooks() == NOTEBOOKS
    assert len(NOTEBOOKS) == 6


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pandas", "altair", "sklearn", *NEEDS.get(path.stem[:2], ())):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    import normscope

    monkeypatch.setenv("PYTHONPATH", str(Path(normscope.__file__).parent.parent))
    done = tool().execute(path)
    assert tool().faults(done) == [], "an error, a warning, or something of this machine"
    committed = read(path)
    assert [cell.source for cell in done.cells] == [cell.source for cell in committed.cells]
    assert tool().shape(done) == tool().shape(committed), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path: Path) -> None:
    notebook = read(path)
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < tool().LIMIT
    assert tool().text_of(tool().canonical(notebook)) == text, "run `make notebooks`"
    assert tool().faults(notebook) == []
    assert 10 <= len(notebook.cells) <= 25
    assert list(outputs(notebook)), "it was not executed"
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook)), "no chart"
    records = [
        o for o in outputs(notebook) if "normscope" in o.get("data", {}).get("text/html", "")
    ]
    assert len(records) >= 2
    assert all(len(record.data["text/html"].encode()) < 300_000 for record in records)
    assert all(len(record.data["text/plain"]) < 1500 for record in records)
    sections = [line for cell in notebook.cells for line in re.findall("^## .*", cell.source, re.M)]
    assert sections[-2:] in (
        ["## An honest limit", "## Where next"], ["## 局限", "## 接下来"]
    )  # fmt: skip
    for name in re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in notebook.cells)):
        assert (path.parent / name).is_file(), f"{name} is not there"


def test_both_languages_run_the_same_code() -> None:
    english, chinese = (
        read(ROOT / "examples" / f"01_how_a_network_still_classifies{which}.ipynb")
        for which in ("", "_zh")
    )
    assert tool().shape(english) == tool().shape(chinese)
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in chinese.cells]

    def numbers(notebook: Any) -> list[str]:
        texts = (o.text for o in outputs(notebook) if o.output_type == "stream")
        return re.findall(r"\d+\.\d+", "".join(texts))

    assert numbers(english) == numbers(chinese)


def test_a_fault_is_seen() -> None:
    code = nbformat.v4.new_code_cell
    warns = nbformat.v4.new_output("stream", name="stderr", text="UserWarning: old")
    local = nbformat.v4.new_output("stream", name="stdout", text="wrote /" + "tmp/x/y.png")
    memory = nbformat.v4.new_output("execute_result", {"text/plain": "<f at 0x7f00deadbeef>"})
    image = nbformat.v4.new_output(
        "execute_result",
        {
            "text/html": '<img src="data:image/png;base64,aa/" + "tmp/bb">',
            "image/png": "/" + "tmp/cc",
        },
    )
    for bad in (warns, local, memory):
        cell = code("f()", outputs=[bad])
        assert len(tool().faults(nbformat.v4.new_notebook(cells=[cell]))) == 1
    cell = code("f()", outputs=[image])
    assert tool().faults(nbformat.v4.new_notebook(cells=[cell])) == []


def test_a_bar_leaves_nothing_behind() -> None:
    bar = nbformat.v4.new_output("display_data", {"text/html": "", "text/plain": "<HTML object>"})
    cell = nbformat.v4.new_code_cell("f()", outputs=[bar], metadata={"execution": {"a": "12:00"}})
    (left,) = tool().canonical(nbformat.v4.new_notebook(cells=[cell])).cells
    assert (left.outputs, left.metadata, left.execution_count) == ([], {}, 1)
