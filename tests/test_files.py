"""What is written: whole, with the permissions it had, by one process, without left-overs."""

import json
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normscope.errors import FileError, InputError
from normscope.files import locked, write_whole
from normscope.records import Diagnosis, Finding


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("old")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    write_whole(path, "new")
    write_whole(tmp_path / "link", "newer")
    assert path.read_text() == "newer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (tmp_path / "link").is_symlink()


WRITER = """
import sys, time
from pathlib import Path
from normscope.files import write_whole

def slowly(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)

write_whole(Path(sys.argv[1]), slowly)
"""


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.stdout.close()
    (tmp_path / ".other.json.abcdef-1-0.tmp").write_text("somebody else's")
    killed, living = writers
    killed.kill()
    killed.wait()
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob(".record*.tmp"))) == 2
    write_whole(path, "new")
    assert path.read_text() == "new"
    (left,) = tmp_path.glob(".record*.tmp")
    assert f"-{living.pid}-" in left.name
    living.send_signal(signal.SIGKILL)
    living.wait()
    assert (tmp_path / ".other.json.abcdef-1-0.tmp").exists()


HOLDER = """
import sys, time
from pathlib import Path
from normscope.files import locked

with locked(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_and_none_after_its_death(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.stdout.close()
    with (
        pytest.raises(FileError, match="another process is writing the run in"),
        locked(tmp_path, "run"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path, "run"):
        pass
    with locked(tmp_path, "run"):  # and after the first has left it
        assert list(tmp_path.iterdir()) == []


TRAIN = "train --data iris --net mlp --norm batch --seeds 1 --out"


@pytest.mark.slow
def test_a_second_training_in_one_folder_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from normscope.cli import main; main()", *TRAIN.split()]
    out = tmp_path / "run"
    first = subprocess.Popen([*command, str(out), "--epochs", "100000"], stdout=subprocess.DEVNULL)
    while not (out / "telemetry.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(
        [*command, str(out), "--epochs", "2", "--overwrite"],
        capture_output=True,
        text=True,
        check=False,
    )
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 130
    assert second.returncode == 2
    assert second.stderr.startswith("normscope: another process is writing the run in ")
    assert second.stderr.count("\n") == 1
    assert json.loads((out / "run.json").read_text())["config"]["epochs"] == 100000


FOUND = Finding(code="NS001", severity="error", layer="a", measured=1.0, threshold=2.0, source="")
WHOLE = Diagnosis(model="m", data="", layers=1, findings=(FOUND,), skipped=(), passed=())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"severity": "error"', '"severity": "banana"'),
        ('"model": "m"', '"model": 7'),
        ('"layers": 1', '"layers": 1.5'),
        ('"layers": 1', '"layers": true'),
        ('"layer": "a"', '"layer": null'),
    ],
)
def test_a_record_holds_what_its_fields_say(old: str, new: str) -> None:
    text = WHOLE.to_json()
    assert Diagnosis.from_json(text) == WHOLE
    assert old in text
    with pytest.raises(InputError, match="this diagnosis record is not whole"):
        Diagnosis.from_json(text.replace(old, new))
