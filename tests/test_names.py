"""Names out of somebody's files reach terminals, pages and reports as text that does nothing."""

import io
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from rich import console

from normscope import doctor
from normscope.cli.app import Console
from normscope.errors import FileError, InputError, ModelError, shown
from normscope.files import json_text, read_bytes, read_text
from normscope.records import Diagnosis, Run
from normscope.report import html, machine, terminal
from normscope.report.diagnosis import document

EVIL = "a\x1b]0;title\x1b[31m\x00\u202eb\x9b2J\U000e0041\udcff\u2028c"


def harmless(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def record() -> Diagnosis:
    state = torch.nn.BatchNorm1d(3).state_dict()
    state["running_var"][0] = -1
    found = doctor.diagnose(
        {f"{EVIL}.{key}": value for key, value in state.items()}, model_name=EVIL
    )
    assert found.findings[0].layer == EVIL  # in Python it stays what it is
    return found


@pytest.mark.parametrize("width", [40, 80])
def test_terminal(record: Diagnosis, width: int) -> None:
    file = io.StringIO()
    terminal.show(document(record), "en", console.Console(file=file, width=width))
    assert harmless(file.getvalue())
    assert "a\\x1b]0;title" in file.getvalue()
    styled = io.StringIO()
    Console(file=styled, force_terminal=True, color_system="standard").print("[red]x\x1b[2J")
    assert styled.getvalue().startswith("\x1b[31mx\\x1b")  # styles of rich's own stay


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_files_for_people_and_programs(record: Diagnosis, lang: str) -> None:
    for text in (
        html.page(document(record), lang),
        html.fragment(document(record), lang),
        machine.sarif(record, lang),
        machine.junit(record, lang),
        record.to_json(),
    ):
        assert harmless(text)
        text.encode("utf-8")
    ET.fromstring(machine.junit(record, lang))
    json.loads(machine.sarif(record, lang))
    again = Diagnosis.from_json(record.to_json())
    assert (again.model, again.findings[0].layer) == (EVIL, EVIL)


def test_json_reads_back_and_stays_readable() -> None:
    assert json_text({"名": "值\u3000"}) == '{"名": "值\\u3000"}'
    assert json.loads(json_text({EVIL: [EVIL, "\\" + EVIL]}, indent=1)) == {
        EVIL: [EVIL, "\\" + EVIL]
    }
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(float("nan"))


@pytest.mark.parametrize("kind", [InputError, ModelError, FileError])
def test_errors(kind: type[Exception]) -> None:
    assert harmless(str(kind(f"no layer {EVIL}")))
    assert str(kind("two\nlines")) == "two\nlines"
    assert shown("plain 层.norm") == "plain 层.norm"


def test_records_that_are_nested_too_deeply() -> None:
    deep = "[" * 100_000
    with pytest.raises(InputError, match="this is no run record"):
        Run.from_json(deep)


def test_what_is_no_file_with_content(tmp_path: Path) -> None:
    for name, content in {"blank": b" \n", "binary": b"\xff\xfe"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match="is empty|is not text"):
            read_text(tmp_path / name)
    assert read_bytes(tmp_path / "binary") == b"\xff\xfe"
    with pytest.raises(FileError, match="is a folder, not a record"):
        read_bytes(tmp_path, "record")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_output_without_room_is_one_sentence() -> None:
    for arguments in (("explain",), ("explain", "--json")):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "normscope", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=120,
            )
        assert done.returncode == 2
        assert done.stderr == ("normscope: the output cannot be written: No space left on device\n")
