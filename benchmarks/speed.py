"""Every figure that speed is judged by, beside its goal, in both settings of the allocator.

    python benchmarks/speed.py            # about fifteen minutes on two idle cores
    python benchmarks/speed.py --quick    # about two, with fewer repeats

Prints Markdown. Each setting runs in a process of its own, on two threads.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from normscope.bench import measure, peers
from normscope.bench.allocator import TUNABLES
from normscope.records import Bench, Race, Setting

PARTS = ("models", "shapes", "formats", "dtypes", "groups", "sweep", "inference")
WHO = ("normscope", "normscope_one", "torch")
ALLOCATORS = {"default": "", "pages kept": TUNABLES}
MEGABYTE = 1 << 18  # float32 values

# the first forward and backward of a process, once torch's own was made
FIRST = """
import json, os, resource, time
start = time.perf_counter()
import torch
torch.set_num_threads(2)
SOURCE
def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
x = torch.randn(8, 16, 14, 14, requires_grad=True)
y = torch.nn.functional.relu(x).sum()
y.backward()
before, start = memory(), time.perf_counter()
layer = MAKE
layer(x).sum().backward()
print(json.dumps([time.perf_counter() - start, memory() - before]))
"""
Row = tuple[str, str, dict[str, float], Callable[[float], bool]]


def bench(tunables: str, repeats: int) -> Bench:
    """Run the benchmark in a process with an allocator."""
    environment = {**os.environ, "GLIBC_TUNABLES": tunables, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, __file__, "--child", str(repeats)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return Bench.from_json(done.stdout.decode())


def child(repeats: int) -> None:
    """Measure normscope and torch alone, and print the record."""
    names = peers.names

    def two(setting: Setting, *, quick: bool = False) -> list[str]:
        return [n for n in names(setting, quick=quick) if n in WHO]

    peers.names = two
    sys.stdout.write(measure(PARTS, repeats=repeats).to_json())


def speeds(record: Bench, part: str, keep: Callable[[Race], bool] = lambda race: True) -> list[Any]:
    """Torch's time over ours in each setting of a part, with the setting."""
    found = []
    for race in record.races:
        mine = race.of("normscope")
        if race.setting.part == part and mine is not None and keep(race):
            found.append((mine.speed, race))
    return found


def first_call() -> tuple[float, float]:
    """Seconds and MB of a process's first step with a layer, above torch's own layer."""
    found = {}
    for name, source, make in (
        ("torch", "", "torch.nn.BatchNorm2d(16)"),
        ("normscope", "import normscope; normscope.BatchNorm2d", "normscope.BatchNorm2d(16)"),
    ):
        program = FIRST.replace("SOURCE", source).replace("MAKE", make)
        runs = [
            json.loads(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3)
        ]
        found[name] = [median(run[i] for run in runs) for i in (0, 1)]
    seconds, megabytes = (a - b for a, b in zip(found["normscope"], found["torch"], strict=True))
    return seconds, megabytes


def build_time() -> float:
    """Seconds to compile the kernels into an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NORMSCOPE_CACHE_DIR": folder}
        command = [sys.executable, "-m", "normscope", "env", "--warm", "--json"]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        )
        return float(json.loads(done.stdout)["warm"].removesuffix(" s"))


def at_least(goal: float) -> Callable[[float], bool]:
    """Whether a figure reaches a goal, within what is printed of it."""
    return lambda value: round(value, 2) >= goal


def rows(records: dict[str, Bench]) -> Iterable[Row]:
    """Each goal with its figures."""

    def by(
        f: Callable[[list[float]], float], part: str, keep: Callable[[Race], bool] = lambda r: True
    ) -> dict[str, float]:
        return {n: f([s for s, _ in speeds(r, part, keep)]) for n, r in records.items()}

    goals = {
        ("mlp", True): 1.1,
        ("mlp", False): 1.0,
        ("mobilenet", True): 1.05,
        ("mobilenet", False): 1.05,
        ("resnet18", True): 1.02,
        ("resnet18", False): 1.0,
    }
    for race in next(iter(records.values())).races:
        s = race.setting
        if s.part != "models":
            continue
        goal = goals[s.model, s.training]
        if s.layout == "channels_last" or s.shape[0] == 1:
            goal = 1.0
        mode = "training" if s.training else "inference"
        name = f"{s.model} {','.join(map(str, s.shape))} {s.layout.replace('contiguous', '')}"
        found = by(min, "models", lambda r, s=s: r.setting == s)  # type: ignore[misc]
        yield f"{name.strip()}, {mode}", f">= {goal}", found, at_least(goal)
    for layout in ("contiguous", "channels_last"):

        def here(race: Race, layout: str = layout) -> bool:
            return race.setting.layout == layout

        def large(race: Race, layout: str = layout) -> bool:
            return race.setting.layout == layout and race.setting.values > MEGABYTE

        yield (
            f"sweep {layout}, slowest shape",
            ">= 1.0",
            by(min, "sweep", here),
            at_least(1.0),
        )
        yield f"sweep {layout}, median", ">= 1.5", by(median, "sweep", here), at_least(1.5)
        yield (
            f"eval() {layout}, slowest shape",
            ">= 1.0",
            by(min, "inference", here),
            at_least(1.0),
        )
        yield (
            f"eval() {layout} above 1 MB, slowest shape",
            ">= 1.5",
            by(min, "inference", large),
            at_least(1.5),
        )
    for part in ("shapes", "formats"):
        for race in next(iter(records.values())).races:
            s = race.setting
            if s.part == part:
                name = f"{','.join(map(str, s.shape))} {s.layout.replace('contiguous', '')}"
                found = by(min, part, lambda r, s=s: r.setting == s)  # type: ignore[misc]
                yield name.strip(), ">= 1.9 with pages kept", found, at_least(1.9)
                ways = {
                    n: min(
                        min(t.share_forward, t.share_backward)
                        for r in record.races
                        if r.setting == s and (t := r.of("normscope"))
                    )
                    for n, record in records.items()
                }
                yield f"{name.strip()}, copy limit", ">= 0.6 with pages kept", ways, at_least(0.6)
    for race in next(iter(records.values())).races:
        s = race.setting
        if s.part == "groups":
            price = {}
            for name, record in records.items():
                one = next(r for r in record.races if r.setting == s)
                mine, single = one.of("normscope"), one.of("normscope_one")
                assert mine is not None, "always measured"
                assert single is not None, "always measured"
                price[name] = mine.total.median / single.total.median
            shape = ",".join(map(str, s.shape))
            yield f"{shape}, K = {s.groups} over one group", "<= 1.15", price, lambda v: v <= 1.155
    for race in next(iter(records.values())).races:
        s = race.setting
        if s.part == "dtypes":
            found = by(min, "dtypes", lambda r, s=s: r.setting == s)  # type: ignore[misc]
            layout = s.layout.replace("contiguous", "")
            yield f"{s.dtype} {','.join(map(str, s.shape))} {layout}".strip(), "-", found, bool


def slowest(record: Bench) -> list[str]:
    """The settings below 1.0, as lines."""
    lines = []
    for part in ("sweep", "inference"):
        for speed, race in sorted(speeds(record, part), key=lambda pair: pair[0])[:6]:
            s = race.setting
            lines.append(f"{part} {','.join(map(str, s.shape))} {s.layout}: {speed:.2f}")
    return lines


def main(arguments: list[str]) -> None:
    """Measure and print."""
    write: Callable[[str], object] = lambda line: sys.stdout.write(line + "\n")
    if "--child" in arguments:
        child(int(arguments[-1]))
        return
    repeats = 5 if "--quick" in arguments else 20
    records = {name: bench(tunables, repeats) for name, tunables in ALLOCATORS.items()}
    write("| torch's time over ours | goal | default allocator | pages kept | reached |")
    write("| --- | --- | --- | --- | --- |")
    for name, goal, found, reached in rows(records):
        judged = [found["pages kept"]] if "pages kept" in goal else list(found.values())
        verdict = "-" if goal == "-" else "yes" if all(map(reached, judged)) else "**no**"
        cells = " | ".join(f"{found[a]:.2f}" for a in ALLOCATORS)
        write(f"| {name} | {goal} | {cells} | {verdict} |")
    seconds, megabytes = first_call()
    write("\n| of a process | goal | found | reached |\n| --- | --- | --- | --- |")
    for label, bound, value in (
        ("first step above torch's, s", 0.3, seconds),
        ("memory above torch's, MB", 15, megabytes),
        ("build of the kernels, s", 90, build_time()),
    ):
        write(f"| {label} | < {bound} | {value:.3g} | {'yes' if value < bound else '**no**'} |")
    for name, record in records.items():
        write(f"\nSlowest, {name}:")
        for line in slowest(record):
            write(f"* {line}")
    folder = Path(tempfile.mkdtemp(prefix="normscope-speed-"))
    for name, record in records.items():
        (folder / f"{name.replace(' ', '-')}.json").write_text(record.to_json())
    write(f"\nAll figures: {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
