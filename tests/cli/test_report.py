"""`normscope report` shows every kind of record that any command saved."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from normscope.cli import main
from normscope.records import KINDS
from normscope.report import document_of, html
from tests.report import pages
from tests.report.test_records import records


def report(
    patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["normscope", "report", *map(str, arguments)])
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    said = capture.readouterr()
    return int(code), said.out, said.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_record_is_shown(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = records()[kind]
    path, page = record.save(tmp_path / "saved.json"), tmp_path / "page.html"
    code, out, err = report(monkeypatch, capsys, path, "--html", page, "--lang", "en")
    assert code == 0, err
    assert err.startswith("page: ")
    assert len(out.splitlines()) > 3
    again = document_of(type(record).load(path))
    assert page.read_text(encoding="utf-8") == html.page(again, "en")


def test_a_diagnosis_with_its_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"kind": "checkup"} | {r.kind: json.loads(r.to_json()) for r in pages.faulty()}
    (tmp_path / "both.json").write_text(json.dumps(both))
    _, out, _ = report(monkeypatch, capsys, tmp_path / "both.json", "--lang", "en")
    assert "NS003" in out
    assert "Kept: recalibrate" in out.replace("\n", " ")
    _, out, _ = report(monkeypatch, capsys, tmp_path / "both.json", "--json")
    assert json.loads(out) == both
    path = pages.faulty()[1].save(tmp_path / "repair.json")
    _, out, _ = report(monkeypatch, capsys, path, "--json")
    assert json.loads(out) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"kind": "song"}', "is no record: it has the kind 'song'; there are bench, claims,"),
        ("[]", "is no record: it has no kind; there are bench"),
        ("no", "is no record: Expecting value"),
        ('{"kind": "checkup"}', "this is no diagnosis record; its kind must be 'diagnosis'"),
    ],
)
def test_what_is_none_is_one_sentence(
    text: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x.json").write_text(text)
    code, out, err = report(monkeypatch, capsys, tmp_path / "x.json")
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
