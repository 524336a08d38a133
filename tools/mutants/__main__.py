"""Change the source on purpose, and count how often a test notices: mutation testing.

    make mutants                                    # or, in parts:
    python tools/mutants cover                      # which test runs which line: 20 minutes, once
    python tools/mutants run --count 300 --seed 20  # draw and run; stops and goes on where it was
    python tools/mutants run --again                # the survivors again, after tests were added
    python tools/mutants show                       # the table, and every survivor as a diff

It needs cosmic-ray (`pip install -e '.[mutants]'`). What it measures stays in --folder.
"""

import argparse
import difflib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEAD = ("failed", "time", "crash")
CONFIGURATION = """
[tool.coverage.run]
include = [{rooms}]
parallel = true
patch = ["subprocess"]
context = "${{NORMSCOPE_CONTEXT-}}"
data_file = "{folder}/.coverage"
"""


def cover(folder: Path, files: list[str]) -> int:
    """Run the tests once, in this process's time, and measure which of them runs which line."""
    import covering
    import drawing

    folder.mkdir(parents=True, exist_ok=True)
    covering.follow(folder)
    done = folder / "done.json"
    if files and done.exists():  # measured again
        left = [name for name in json.loads(done.read_text()) if name not in files]
        done.write_text(json.dumps(left))
    rooms = ", ".join(f'"*/src/normscope/{room}"' for room in drawing.ROOMS)
    (folder / "coverage.toml").write_text(CONFIGURATION.format(rooms=rooms, folder=folder))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HERE)]),
        "NORMSCOPE_CONTEXTS": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    coverage = [sys.executable, "-m", "coverage"]
    rc = f"--rcfile={folder / 'coverage.toml'}"
    tests = ["pytest", "-p", "contexts", "-q", "-m", "not slow", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(
        [*coverage, "run", rc, "-m", *tests], cwd=ROOT, env=environment, check=False
    )
    combine = [*coverage, "combine", rc, "--append", "--quiet"]
    subprocess.run(combine, cwd=ROOT, env=environment, check=False)
    return ran.returncode


def read(path: Path) -> dict[str, dict[str, object]]:
    """Return the newest result of every mutant."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def run(
    folder: Path,
    count: int,
    seed: int,
    again: bool,
    budget: float,
    seconds: float,
    rooms: list[str],
) -> int:
    """Run a draw of mutants, each against the tests that run its line."""
    import drawing
    from covering import Covering
    from running import Sandbox, stages

    results = folder / f"seed-{seed}.jsonl"
    drawn = folder / f"seed-{seed}.json"
    state = drawing.digest(drawing.modules())
    if not drawn.exists():
        mutants = drawing.draw(count, seed, rooms)
        drawn.write_text(
            json.dumps({"source": state, "mutants": [m.to_dict() for m in mutants]}, indent=1)
        )
    stored = json.loads(drawn.read_text(encoding="utf-8"))
    if stored["source"] != state:
        sys.stderr.write(f"the source has changed since {drawn} was drawn; remove that file\n")
        return 2
    mutants = [
        drawing.Mutant(
            m["module"], m["operator"], m["occurrence"], tuple(m["start"]), tuple(m["end"])
        )
        for m in stored["mutants"]
    ]
    known = read(results)
    if again:
        left = [m for m in mutants if m.name in known and known[m.name]["outcome"] not in DEAD]
    else:
        left = [m for m in mutants if m.name not in known]
    random.Random(seed).shuffle(left)  # so that a part of a run is a fair part
    covering = Covering(folder)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="normscope-mutants-") as place:
        sandbox = Sandbox(Path(place))
        covering.keep(sandbox.collected(covering.seconds))
        for number, mutant in enumerate(left, 1):
            if time.monotonic() - begun > seconds:
                print("the time of this part is over; the same command goes on from here")
                return 0
            started = time.monotonic()
            tests = covering.of(mutant)
            outcome, why = "uncovered", ""
            with sandbox.holding(mutant):
                for part in stages(mutant.module, tests, covering.seconds, budget):
                    expected = sum(covering.seconds[name] for name in part)
                    outcome, why = sandbox.run(part, 25 + 5 * expected)
                    if outcome != "passed":
                        break
            took = time.monotonic() - started
            found = mutant.to_dict() | {
                "outcome": outcome, "why": why, "tests": len(tests), "seconds": round(took, 2),
            }  # fmt: skip
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            said = f"{number}/{len(left)} {mutant.name} {outcome} {took:.1f} s"
            print(said, why[:110] if outcome in DEAD else "", flush=True)
        return check(sandbox, results)


def check(sandbox: object, results: Path) -> int:
    """Run the tests that killed mutants against the source itself: they must pass there."""
    killers: defaultdict[str, list[str]] = defaultdict(list)
    for name, found in read(results).items():
        verdict, _, test = str(found["why"]).partition(" - ")[0].partition(" ")
        if found["outcome"] == "failed" and verdict in ("FAILED", "ERROR") and "::" in test:
            killers[test].append(name)
    wrong = []
    tests = sorted(killers)
    for start in range(0, len(tests), 40):
        part = tests[start : start + 40]
        if sandbox.run(part, 600)[0] != "passed":  # type: ignore[attr-defined]
            wrong += [t for t in part if sandbox.run([t], 200)[0] != "passed"]  # type: ignore[attr-defined]
    for test in wrong:
        print(f"{test} fails without a mutant; it says nothing of {killers[test]}")
    print(f"{len(tests)} tests killed mutants, and {len(tests) - len(wrong)} of them pass without")
    return int(bool(wrong))


def show(folder: Path, seed: int) -> int:
    """Print the table and the survivors."""
    import drawing

    results = read(folder / f"seed-{seed}.jsonl")
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for found in results.values():
        parts = str(found["module"]).split("/")
        table[parts[2]][str(found["outcome"])] += 1
        table["all"][str(found["outcome"])] += 1
    columns = ("failed", "time", "crash", "passed", "uncovered", "nothing")
    print("| room | mutants | " + " | ".join(columns) + " | killed |")
    print("| --- |" + " ---: |" * (len(columns) + 2))
    for room, counts in table.items():
        total, dead = counts.total(), sum(counts[name] for name in DEAD)
        cells = [str(counts[name]) for name in columns]
        print(f"| {room} | {total} | {' | '.join(cells)} | {100 * dead / total:.1f} % |")
    for found in results.values():
        if found["outcome"] in DEAD:
            continue
        operator, occurrence = str(found["operator"]), int(str(found["occurrence"]))
        mutant = drawing.Mutant(str(found["module"]), operator, occurrence, (0, 0), (0, 0))
        before = (ROOT / mutant.module).read_text(encoding="utf-8").splitlines()
        lines = difflib.unified_diff(before, mutant.source().splitlines(), lineterm="", n=0)
        print(f"\n{found['name']} ({found['outcome']} by {found['tests']} tests)")
        print("\n".join(line for line in lines if not line.startswith(("---", "+++", "@@"))))
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="mutants", description=str(__doc__).partition("\n")[0])
    folder = Path(tempfile.gettempdir()) / "normscope-mutants"
    parser.add_argument("--folder", type=Path, default=folder)
    verbs = parser.add_subparsers(dest="verb", required=True)
    covers = verbs.add_parser("cover")
    covers.add_argument("files", nargs="*")
    for name in ("run", "show"):
        verb = verbs.add_parser(name)
        verb.add_argument("--seed", type=int, default=20)
        if name == "run":
            verb.add_argument("--count", type=int, default=300)
            verb.add_argument("--room", nargs="+", default=[], help="only of these, as doctor")
            verb.add_argument("--again", action="store_true", help="only those that survived")
            verb.add_argument("--budget", type=float, default=20, help="of tests for a mutant")
            verb.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    given = parser.parse_args()
    try:
        import cosmic_ray  # noqa: F401
    except ModuleNotFoundError:
        parser.error("cosmic-ray is not installed: pip install -e '.[mutants]'")
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the first
        signal.signal(name, signal.default_int_handler)
    try:
        if given.verb == "cover":
            return cover(given.folder, given.files)
        if given.verb == "show":
            return show(given.folder, given.seed)
        return run(
            given.folder, given.count, given.seed, given.again, given.budget, given.seconds,
            given.room,
        )  # fmt: skip
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
