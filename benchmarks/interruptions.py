"""Every command that writes, interrupted at random moments: nothing half-written, resumed alike.

Each command runs once to its end. Then it is begun anew many times and ended at a random moment by
SIGINT, SIGTERM or SIGKILL in turn; after a Ctrl-C or SIGTERM the exit code is 130, every file that
is there is whole, and what can be resumed is resumed and compared with the uninterrupted run byte
by byte. Prints a Markdown table, and every fault at once on stderr.

    python benchmarks/interruptions.py [moments, 60 unless told] [seed] [commands ...]
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from normscope.lens import InspectionState
from normscope.records import Inspection, Run

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    stem = [nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU()]
    rest = [m for _ in range(6) for m in (nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *stem, *rest, nn.Linear(256, 10))
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.running_mean += 1
                m.num_batches_tracked += 100
    return model
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@dataclass(frozen=True)
class Command:
    """What is run in a folder, how it is continued, and what it leaves there."""

    arguments: str
    resume: str | None
    compared: tuple[str, ...]  # files that a resumed run must share with a whole one
    check: Callable[[Path], None]  # raises where a file in the folder is not whole


def check_run(folder: Path) -> None:
    """Read all that a run may leave."""
    if (folder / "run" / "run.json").exists():
        Run.from_json((folder / "run" / "run.json").read_text())
    for path in folder.rglob("*.safetensors"):
        load_file(path)
    lines = folder / "run" / "telemetry.jsonl"
    if lines.exists():  # a crash may cut the last line short
        for line in lines.read_text().splitlines()[:-1]:
            json.loads(line)


def check_pass(folder: Path) -> None:
    """Read all that an inspection may leave."""
    if (folder / "pass.json").exists():
        Inspection.load(folder / "pass.json")
    if (folder / "pass.pt").exists():
        InspectionState.load(folder / "pass.pt")


def check_weights(folder: Path) -> None:
    """Read all weights."""
    for path in folder.glob("*.safetensors"):
        load_file(path)


COMMANDS = {
    "train": Command(
        "train --data digits --net mlp --norm batch,none --epochs 6 --seeds 2 --out run",
        "--resume",
        ("run/telemetry.jsonl", "run/model.safetensors", "run/members/none-1/model.safetensors"),
        check_run,
    ),
    "inspect --save": Command(
        "inspect --model m.py:net --data digits --batch-size 4 --save pass.json",
        "--resume",
        ("pass.json",),
        check_pass,
    ),
    "repair": Command(
        "repair --model m.py:net --data digits --out out.safetensors", None, (), check_weights
    ),
    "convert": Command(
        "convert --model m.py:net --to batch --verify --input 8,64 --out out.safetensors",
        None,
        (),
        check_weights,
    ),
    "merge": Command("inspect --merge --save merged.json a.pt b.pt", None, (), lambda folder: None),
}


def started(folder: Path, arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from normscope.cli import main; main()", *arguments.split()]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def prepared(root: Path, name: str, kept: Path | None) -> Path:
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "m.py").write_text(MODEL)
    for path in () if kept is None else kept.glob("*.pt"):
        shutil.copy(path, folder)
    return folder


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, text = process.communicate(timeout=300)
    return process.returncode, text.decode()


def trial(
    root: Path, command: Command, whole: Path, kept: Path | None, moment: float, number: int
) -> str:
    """One interruption; what was wrong, or nothing."""
    folder = prepared(root, "trial", kept)
    how = SIGNALS[number % len(SIGNALS)]
    process = started(folder, command.arguments)
    time.sleep(moment)
    process.send_signal(how)
    code, text = ended(process)
    told = f"after {moment:.2f} s by {how.name}: "
    if "Traceback" in text:
        return f"{told}a traceback: {text.strip().splitlines()[-1]}"
    if how != signal.SIGKILL and code not in (130, 0, 1, -how):
        return f"{told}exit code {code}: {text[-200:]}"
    try:
        command.check(folder)
    except Exception as problem:
        return f"{told}{type(problem).__name__}: {problem}"
    if command.resume is not None:
        again = f"{command.arguments} {command.resume}"
        code, text = ended(started(folder, again))
        if code == 2 and (
            "there is no" in text or "cannot be read" in text
        ):  # nothing was written yet
            code, text = ended(started(folder, command.arguments))
        if code != 0:
            return f"{told}not resumed: {text[-200:]}"
        for name in command.compared:
            if (folder / name).read_bytes() != (whole / name).read_bytes():
                return f"{told}{name} differs after resuming"
    left = [path.name for path in folder.rglob("*.tmp")]
    return f"{told}left {left}" if left and how != signal.SIGKILL else ""


def main(moments: str = "60", seed: str = "0", *only: str) -> None:
    draw = random.Random(int(seed))
    print("| command | runs for | interrupted | faults |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        kept = root / "kept"
        kept.mkdir()
        for part in "ab":
            folder = prepared(root, "half", None)
            arguments = f"inspect --model m.py:net --data digits --save {part}.json"
            assert ended(started(folder, arguments))[0] == 0
            shutil.copy(folder / f"{part}.pt", kept)
        for name in only or COMMANDS:
            command = COMMANDS[name]
            given = kept if name == "merge" else None
            whole = prepared(root, "whole", given)
            begin = time.monotonic()
            code, text = ended(started(whole, command.arguments))
            assert code in (0, 1), text
            lasts = time.monotonic() - begin
            seen: Counter[bool] = Counter()
            for number in range(int(moments)):
                fault = trial(root, command, whole, given, draw.uniform(0.05, lasts), number)
                seen[bool(fault)] += 1
                if fault:
                    print(f"{name} {fault}", file=sys.stderr, flush=True)
            print(f"| {name} | {lasts:.1f} s | {moments} | {seen[True]} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
