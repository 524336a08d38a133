"""Parity as people see it: command line, text, page, JSON, exit code; every reason has its words."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import normscope
from normscope.cli import app
from normscope.equivalence import parity, passport
from normscope.errors import InputError
from normscope.records import ModeParity, NormPair, Parity, PassportCheck, Reason
from normscope.report import document_of, html, terminal
from normscope.report.messages import catalogue
from normscope.report.parity import document
from tests.equivalence.nets import batch, norms_of, trained

NETS = """
from tests.equivalence.nets import batch, norms_of, trained
def right(): return trained("mlp")
def wrong():
    net = trained("mlp")
    norms_of(net)[1].eps = 1e-2
    return net
def x(): return batch("mlp")
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "nets.py"
    path.write_text(NETS)
    return path


def test_the_command(nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    run = CliRunner().invoke
    given = [f"{nets}:right", f"{nets}:wrong", "--batch", f"{nets}:x", "--lang", "en"]
    page = tmp_path / "page.html"
    done = run(app, ["parity", *given, "--html", str(page)])
    assert done.exit_code == 1
    assert "Norm norm2 is the first that differs." in done.output
    assert "eps is 1e-05 in the first and 0.01 in the second" in " ".join(done.output.split())
    assert "norm2" in page.read_text(encoding="utf-8")
    record = json.loads(run(app, ["parity", *given, "--json"]).stdout)
    assert record["norms"][1]["reasons"][0]["code"] == "eps"
    same = run(app, ["parity", given[0], given[0], "--input", "24,12", "--lang", "en"])
    assert same.exit_code == 0, same.output
    assert "same network" in same.output
    accepted = run(app, ["parity", *given, "--modes", "eval", "--ignore", "eps", "--json"])
    assert json.loads(accepted.stdout)["norms"][1]["reasons"] == []


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "name the inputs"),
        (["--input", "24,x"], "the shape of a batch is needed"),
        (["--input", "24,12", "--modes", "test"], "can be 'eval', 'train'"),
    ],
)
def test_wrong_use(
    nets: Path, more: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    done = CliRunner().invoke(app, ["parity", f"{nets}:right", f"{nets}:right", *more])
    assert isinstance(done.exception, InputError)
    assert sentence in str(done.exception)


def test_weights_beside_a_program(tmp_path: Path) -> None:
    given = ["a.onnx", "b.onnx", "--weights", str(tmp_path / "w.pt"), "--input", "1,2"]
    done = CliRunner().invoke(app, ["parity", *given])
    assert "has its own weights" in str(done.exception)


def _codes() -> set[str]:
    """Every code that the room can give."""
    found = set()
    for path in (Path(normscope.__file__).parent / "equivalence").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'code="(\w+)"', text)) | set(re.findall(r'code = "(\w+)"', text))
        found |= set(re.findall(r'Cause\("(\w+)"', text))
        ways = re.findall(r'yield "(\w+)", ', text) + re.findall(r'{greek}_(\w+)"', text)
        found |= {f"{g}_{way}" for g in ("gamma", "beta") for way in ways}
        found |= set(re.findall(r'"(variance_\w+)"', text))
    return found


def test_every_reason_is_explained_in_both_languages() -> None:
    messages = catalogue()
    known = {key.removeprefix("parity.reason.") for key in messages if "parity.reason." in key}
    assert {"eps", "training", "gamma_rounded"} <= _codes() <= known | {"unknown"}
    for code in known:
        pair = NormPair(
            name="a", other="b", layers=("x", "y"), channels=2, status="differs",
            inputs=0.0, outputs=1.0, allowed=0.1,
            reasons=(Reason(code=code, first="1", second="2", detail="first"),),
        )  # fmt: skip
        record = Parity(
            names=("a", "b"), forms=("module", "onnx"), norms=(pair,),
            modes=(ModeParity(mode="eval", outputs=1.0, allowed=0.1),),
        )  # fmt: skip
        for lang in ("en", "zh"):
            file = io.StringIO()
            terminal.show(document(record), lang, Console(file=file, width=200))
            assert "{" not in file.getvalue()


def test_pages_of_all_verdicts() -> None:
    net, x = trained("mlp"), batch("mlp")
    same = document(parity(net, net, x))
    assert same.sections[0].blocks[0].style == "good"
    other = trained("mlp")
    norms_of(other)[0].momentum = 0.2
    harmless = parity(net, other, x)
    assert "agree to rounding all the same" in html.page(document(harmless), "en")
    outputs = parity(lambda x: x, lambda x: x + 1, x)
    assert not outputs.ok
    assert outputs.norms == ()
    assert "difference lies" in html.page(document(outputs), "en")


def test_passports_say_which_side_changed() -> None:
    net, x = trained("mlp"), batch("mlp")
    other = trained("mlp")
    norms_of(other)[1].eps = 1e-2
    own = passport(net)
    found = parity(net, other, x, passports=(own, own))
    assert [len(side) for side in found.passports] == [0, 1]
    assert Parity.from_json(found.to_json()).to_json() == found.to_json()
    text = html.page(document(found), "en")
    assert "The second is the one that changed: 1 norm is not what its passport says" in text
    assert parity(net, other, x).passports == (None, None)


def test_documents_are_found_by_the_kind_of_a_record() -> None:
    net = trained("mlp")
    own = passport(net)
    check = PassportCheck(subject="net", passport=own, mismatches=())
    for record in (parity(net, net, batch("mlp")), own, check):
        assert document_of(record).sections
        assert repr(record).startswith((document_of(record).title.en, document_of(record).title.zh))
        assert len(record.to_rows()) == (0 if record is check else 2)
