"""Every reader against damaged files: no traceback, no hang, no memory without bound.

Half of the inputs are a whole file with some bytes changed, half one that is written anew with
some fields changed: other shapes, dtypes and kinds of values, names that hold orders for a
terminal, names that stand twice, nesting without end. A reader may take such a file or refuse it
with one of normscope's own errors, which is one printable sentence. The process has a limit of
address space.

    python -m benchmarks.fuzz --inputs 20000 --json fuzz.json
"""

import argparse
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tests.damage import Kind, inputs, kinds

from normscope.errors import NormscopeError

LONGEST_SENTENCE = 600  # characters
PATIENCE = 10  # seconds that one file may take
SPACE = 6 << 30  # bytes of addresses, torch's own libraries included


class HangError(BaseException):
    """A reader takes too long."""


def hung(number: int, frame: FrameType | None) -> None:
    raise HangError


def said(problem: BaseException) -> str:
    try:
        return str(problem)[:100]
    except Exception:
        return "(no message)"


def fuzzed(name: str, kind: Kind, folder: Path, seed: int, count: int) -> dict[str, Any]:
    """Read damaged files of one kind; return what was seen."""
    path = folder / kind.name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind.write(path)
    kind.read(path)
    found: Counter[str] = Counter()
    first: dict[str, int] = {}
    refused, begin = 0, time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in inputs(kind, path, seed, count):
        fault = ""
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            kind.read(path)
        except NormscopeError as problem:
            refused += 1
            sentence = str(problem)
            if not sentence.isprintable() or len(sentence) > LONGEST_SENTENCE:
                fault = f"no sentence: {sentence[:80]!r} ({len(sentence)} characters)"
        except HangError:
            fault = f"no end after {PATIENCE} s"
        except BaseException as problem:  # code in a file may also ask for the end of the process
            if isinstance(problem, KeyboardInterrupt):
                raise
            place = [
                f for f in traceback.extract_tb(problem.__traceback__) if "normscope" in f.filename
            ]
            where = f"{Path(place[-1].filename).name}:{place[-1].lineno}" if place else "?"
            fault = f"{type(problem).__name__} in {where}: {said(problem)}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if fault:
            found[fault] += 1
            first.setdefault(fault, number)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "reader": name,
        "inputs": count,
        "refused": refused,
        "seconds": round(time.monotonic() - begin, 1),
        "mebibytes": (after - before) >> 10,
        "faults": [
            {"fault": fault, "times": times, "first": first[fault]}
            for fault, times in found.most_common()
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--inputs", type=int, default=20_000, help="for each reader (default: 20000)"
    )
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="where to begin (default: 0)")
    parser.add_argument("--json", type=Path, help="also write what was seen to this file")
    given = parser.parse_args()
    every = kinds()
    for name in given.reader or ():
        if name not in every:
            parser.error(f"there is no reader {name!r}; there are {', '.join(every)}")
    signal.signal(signal.SIGALRM, hung)
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    warnings.simplefilter("ignore")
    seen = []
    print("| reader | inputs | refused | seconds | MiB more | faults |\n|---|---|---|---|---|---|")
    for name in given.reader or every:
        with tempfile.TemporaryDirectory() as place:
            row = fuzzed(name, every[name], Path(place) / "data", given.seed, given.inputs)
        seen.append(row)
        faults = sum(f["times"] for f in row["faults"])
        cells = (name, *(row[k] for k in ("inputs", "refused", "seconds", "mebibytes")), faults)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for fault in row["faults"]:
            print(f"{name}: {fault}", file=sys.stderr, flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(seen, indent=1) + "\n")
    return int(any(row["faults"] for row in seen))


if __name__ == "__main__":
    sys.exit(main())
