"""The pages of docs/ say what the program does: their code runs, and the generated parts are whole."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import normscope
from normscope.cli import app
from normscope.doctor.checks import CHECKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read(path: Path) -> ModuleType:
    """A file that lies outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


documented = read(ROOT / "tools" / "documented.py")
PAGES = [page for page in documented.pages() if documented.runs(page)]


@pytest.fixture(scope="module")
def references() -> Iterator[ModuleType]:
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(DOCS / "_extensions"))
    yield read(DOCS / "_extensions" / "references.py")
    sys.path.remove(str(DOCS / "_extensions"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
@pytest.mark.filterwarnings("default")
def test_a_page_prints_what_it_says(page: Path) -> None:
    assert not (problems := documented.check(page)), "\n".join(problems)


def test_one_page_prints_what_it_says() -> None:
    """The first of the pages, also where the long tests are left out."""
    assert len(PAGES) > 20
    assert not documented.check(DOCS / "howto" / "padding.md")


def test_a_page_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    code = "```python\nprint('accuracy', 0.9)\nprint('a')\nprint('b')\n```\n"
    for output, problems in {
        "```text\naccuracy 0.905\na\nb\n```\n": 0,
        "```text\naccuracy 0.9\n...\n```\n": 0,
        "```text\naccuracy 0.7\na\nb\n```\n": 1,
        "```text\nprecision 0.9\na\nb\n```\n": 1,
        "```text\naccuracy 0.9\n...\nc\n```\n": 1,
        "": 1,
    }.items():
        page.write_text(code + "\n" + output)
        assert len(documented.check(page)) == problems, output
    page.write_text("```python\n1 / 0\n```\n")
    assert "ZeroDivisionError" in documented.check(page)[0]
    page.write_text(code + "\n```text\naccuracy 0.7\n```\n")
    documented.check(page, write=True)
    assert "accuracy 0.9\na\nb\n" in page.read_text()
    assert not documented.check(page)


def test_every_check_has_a_page(references: ModuleType) -> None:
    index = references.check_index()
    for code, check in CHECKS.items():
        text = references.check_page(code, check)
        assert text.startswith(f"# {code}: ")
        for part in ("## What to do", "## What a finding says", "| Needs |", "## 中文"):
            assert part in text, code
        assert len(text.partition("## What to do")[0]) > 150, f"{code} explains nothing"
        assert check.source.split()[0].replace("|", "\\|")[:4] in text
        assert f"[{code}]({code}.md)" in index
        assert f"\n{code}\n" in index


def test_every_command_and_option_is_in_the_reference(references: ModuleType) -> None:
    text = references.command_page()
    import typer

    root = typer.main.get_command(app)
    assert len(root.commands) > 10
    for name, command in root.commands.items():
        section = text.partition(f"## normscope {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                assert option.upper() in section.upper(), f"{name} {option}"
    assert "by locale" in text


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(p.read_text("utf-8") for p in [DOCS / "api.md", *DOCS.glob("reference/*.md")])
    everything = re.findall(r"automodule:: (\S+)\n   :members:$", text, re.MULTILINE)
    for name in normscope.__all__:
        if name == "__version__" or name in normscope._ROOMS:
            continue
        module = getattr(getattr(normscope, name), "__module__", "")
        short = re.sub(r"[13]d$", "2d", name)
        assert re.search(rf"\b{short}\b", text) or module in everything, name


def test_links_that_lead_nowhere_are_found(
    references: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = read(DOCS / "_extensions" / "internal_links.py")
    told: list[str] = []
    monkeypatch.setattr(links.log, "warning", lambda text, *a, **_: told.append(text % a))
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#here">b</a>')
    (tmp_path / "b.html").write_text(
        '<p id="here"></p><a href="a.html#top">ok</a><a href="https://x.org/">out</a>'
        '<a href="a.html#no">1</a><a href="c.html">2</a><img src="https://x.org/y.png">'
    )
    builder = SimpleNamespace(name="html")
    links.check(SimpleNamespace(builder=builder, outdir=tmp_path), None)
    assert [t.partition(" ")[0] for t in told] == ["b.html"] * 3
    assert "y.png" in told[0]
    assert "no such anchor" in told[1]
    assert "not there" in told[2]


def test_links_to_documentation_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "README.zh-CN.md"):
        for link in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text("utf-8")):
            assert (ROOT / link).exists(), f"{page.name}: {link}"
