"""Every command that writes, interrupted at random moments: nothing half-written, resumed alike.

Each command runs once to its end. Then it is begun anew many times and ended at a random moment by
SIGINT, SIGTERM or SIGKILL in turn. After a Ctrl-C or SIGTERM the exit code is 130 and stderr holds
a sentence and no traceback; where the command had ended already, its own exit code. Every file that
is there is whole. What a command can take up again is taken up, and then shares each number with
the run that nobody interrupted; what it cannot is either absent or the whole one, to the byte.

    python benchmarks/interruptions.py --moments 60 --json interruptions.json
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from normscope.lens import InspectionState
from normscope.records import ClaimResult, Inspection, Run

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
TIMES = {"seconds", "created", "date"}  # what differs between two equal runs


@dataclass(frozen=True)
class Command:
    """What is run in a folder, how it is continued, and what it leaves there."""

    arguments: str
    written: tuple[str, ...]  # as globs; equal after resuming, and whole wherever they are
    resume: str | None = None  # what is added to continue; None: it cannot be


COMMANDS = {
    "train": Command(
        "train --data digits --net mlp --norm batch,none --epochs 4 --seeds 1 --out run",
        ("run/run.json", "run/telemetry.jsonl", "run/**/*.safetensors"),
        "--resume",
    ),
    "inspect --save": Command(
        "inspect --model m.py:net --data digits --batch-size 16 --save pass.json",
        ("pass.json", "pass.pt"),
        "--resume",
    ),
    "repair": Command(
        "repair --model m.py:net --data digits --out out.safetensors", ("out.safetensors",)
    ),
    "convert": Command(
        "convert --model m.py:net --to batch --verify --input 8,64 --out out.safetensors",
        ("out.safetensors",),
    ),
    "merge": Command(
        "merge one.pt two.pt --counts 300,100 --out merged.safetensors", ("merged.safetensors",)
    ),
    "inspect --merge": Command(
        "inspect --merge --save merged.json a.pt b.pt", ("merged.json", "merged.pt")
    ),
    "claims": Command(
        "claims residual_depth,sorted_streams --seeds 1 --out kept", ("kept/*.json",), ""
    ),
}


def content(path: Path) -> Any:
    """Read a file as what it holds, without clock times; raises where it is not whole."""
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    if path.suffix == ".pt":
        return InspectionState.load(path).counts.tolist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    text = path.read_text()
    if path.name == "run.json":
        Run.from_json(text)
    elif path.parent.name == "kept":
        ClaimResult.from_json(text)
    else:
        Inspection.load(path)
    return timeless(json.loads(text))


def timeless(value: Any) -> Any:
    """Leave out every clock time of a JSON value."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path, command: Command) -> dict[str, Any]:
    """Read all that a command wrote."""
    paths = {path for glob in command.written for path in folder.glob(glob)}
    return {path.relative_to(folder).as_posix(): content(path) for path in sorted(paths)}


def check(folder: Path, command: Command, whole: dict[str, Any]) -> str:
    """Say which file an interruption left half-written, or nothing."""
    for path in sorted({path for glob in command.written for path in folder.glob(glob)}):
        name = path.relative_to(folder).as_posix()
        try:
            if path.suffix == ".jsonl":  # a crash may cut the last line short
                for line in path.read_text().splitlines()[:-1]:
                    json.loads(line)
                continue
            found = content(path)
        except Exception as problem:
            return f"{name}: {type(problem).__name__}: {problem}"
        if command.resume is None and found != whole.get(name):
            return f"{name} is there and is not what a whole run writes"
    return ""


def started(folder: Path, arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "normscope", *arguments.split()]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, text = process.communicate(timeout=600)
    return process.returncode, text.decode()


def prepared(root: Path, name: str, given: Path) -> Path:
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(given, folder)
    return folder


def inputs(root: Path) -> Path:
    """Write what the commands read: a model, two checkpoints of one network, two passes."""
    given = root / "given"
    given.mkdir()
    (given / "m.py").write_text(MODEL)
    space: dict[str, Any] = {}
    exec(MODEL, space)
    for factor, name in enumerate(("one.pt", "two.pt")):
        state = space["net"]().state_dict()
        torch.save(
            {k: v + factor if v.is_floating_point() else v for k, v in state.items()}, given / name
        )
    for part in "ab":
        arguments = f"inspect --model m.py:net --data digits --save {part}.json"
        code, text = ended(started(given, arguments))
        assert code == 0, text
    return given


def trial(
    root: Path, given: Path, command: Command, whole: dict[str, Any], usual: int, moment: float,
    how: signal.Signals,
) -> str:  # fmt: skip
    """Interrupt once; return what was wrong, or nothing."""
    folder = prepared(root, "trial", given)
    process = started(folder, command.arguments)
    time.sleep(moment)
    process.send_signal(how)
    code, text = ended(process)
    if "Traceback" in text or "Exception ignored" in text:
        return f"a traceback: {text.strip()[-600:]}"
    if how != signal.SIGKILL and code not in (130, usual):
        return f"exit code {code}: {text[-200:]}"
    if code == 130 and not text.strip():
        return "stopped without a word"
    if fault := check(folder, command, whole):
        return fault
    left = [path.name for path in folder.rglob("*.tmp")]
    if left and how != signal.SIGKILL:
        return f"left {left}"
    if command.resume is None:
        return ""
    again = f"{command.arguments} {command.resume}".strip()
    code, text = ended(started(folder, again))
    if code == 2 and ("there is no" in text or "No such file" in text):  # nothing was written yet
        code, text = ended(started(folder, command.arguments))
    if code != usual:
        return f"not resumed: exit code {code}: {text[-300:]}"
    found = contents(folder, command)
    for name in sorted(set(found) | set(whole)):
        if found.get(name) != whole.get(name):
            return f"{name} differs after resuming"
    left = [path.name for path in folder.rglob("*.tmp")]
    return f"resuming left {left}" if left else ""


def interrupted(
    root: Path, given: Path, name: str, moments: int, draw: random.Random
) -> dict[str, Any]:
    """Interrupt a command at all moments; return what was seen."""
    command = COMMANDS[name]
    whole_folder = prepared(root, "whole", given)
    begin = time.monotonic()
    usual, text = ended(started(whole_folder, command.arguments))
    lasts = time.monotonic() - begin
    assert usual in (0, 1), text
    whole = contents(whole_folder, command)
    assert whole, f"{name} wrote nothing"
    faults: list[str] = []
    counts: Counter[str] = Counter()
    for number in range(moments):
        how = SIGNALS[number % len(SIGNALS)]
        moment = draw.uniform(0.02, lasts)
        fault = trial(root, given, command, whole, usual, moment, how)
        counts[how.name] += 1
        if fault:
            faults.append(f"{moment:.2f} s, {how.name}: {fault}")
        print(
            f"{name} {number + 1}/{moments} after {moment:.2f} s by {how.name}: {fault or 'fine'}",
            file=sys.stderr,
            flush=True,
        )
    return {
        "command": name, "arguments": command.arguments, "seconds": round(lasts, 2),
        "moments": dict(counts), "faults": faults,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Interrupt every command that writes at random moments, and check what is left."
    )
    parser.add_argument("--moments", type=int, default=60, help="of each command (default: 60)")
    parser.add_argument(
        "--command", action="append", choices=COMMANDS, help="only this one; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", type=Path, help="also write what was seen to this file")
    given = parser.parse_args()
    # a shell starts what runs in the background deaf to Ctrl-C, and so would be all commands
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        files = inputs(root)
        for name in given.command or COMMANDS:
            draw = random.Random(f"{given.seed} {name}")
            seen.append(interrupted(root, files, name, given.moments, draw))
            if given.json is not None:
                given.json.write_text(json.dumps(seen, indent=1) + "\n")
    print("| command | takes | SIGINT | SIGTERM | SIGKILL | faults |\n|---|---|---|---|---|---|")
    for row in seen:
        times = " | ".join(str(row["moments"].get(how.name, 0)) for how in SIGNALS)
        print(f"| {row['command']} | {row['seconds']:.1f} s | {times} | {len(row['faults'])} |")
    return int(any(row["faults"] for row in seen))


if __name__ == "__main__":
    sys.exit(main())
