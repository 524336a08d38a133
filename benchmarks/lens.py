"""What the lens costs: time and memory beside the plain forward and beside stored activations.

    python benchmarks/lens.py           # all of it, a few minutes
    python benchmarks/lens.py time      # the two networks at 224 px
    python benchmarks/lens.py memory    # every figure in a process of its own
    python benchmarks/lens.py classes   # resnet50 with 1,000 classes, one thread

Time: medians of interleaved rounds over the same batches, in one process. With --processor it is
that of the processor on one thread, which other programs on the machine disturb least. Memory: the
largest resident size of a process that does one thing, from the kernel. Random weights; ten classes
but for the last.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope import lens

BATCH, CLASSES = 25, 10
NETS = ("resnet18", "efficientnet_b0")
WHAT = ("all", "time", "memory", "classes", "one", "many")


def network(name: str, classes: int = CLASSES) -> nn.Module:
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):  # where torchvision's compiled half does not load
        fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes).eval()
    return model


def batches(images: int, side: int, classes: int = CLASSES) -> Iterator[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    for start in range(0, images, BATCH):
        size = min(BATCH, images - start)
        labels = torch.randint(0, classes, (size,), generator=draw)
        yield torch.randn(size, 3, side, side, generator=draw), labels


def plain(model: nn.Module, loader: Any) -> None:
    with torch.no_grad():
        for x, _ in loader:
            model(x)


def stored(model: nn.Module, loader: Any) -> None:
    """The usual way: a hook on every norm layer keeps its output for later."""
    kept: dict[nn.Module, list[Tensor]] = {}
    hooks = [
        m.register_forward_hook(lambda m, a, y: kept.setdefault(m, []).append(y.clone()))
        for m in model.modules()
        if hasattr(m, "running_mean")
    ]
    plain(model, loader)
    for hook in hooks:
        hook.remove()


def timed(nets: Sequence[str], rounds: int, images: int, clock: Callable[[], float]) -> None:
    print(f"time, {images} images of 224 px in batches of {BATCH}, {rounds} rounds, median")
    for name in nets:
        model, loader = network(name), list(batches(images, 224))
        ways = {
            "plain": lambda m=model, b=loader: plain(m, b),
            "pass": lambda m=model, b=loader: lens.accumulate(m, b),
        }
        for way in ways.values():
            way()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                start = clock()
                run()
                seconds[way].append(clock() - start)
        ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
        seen = lens.accumulate(model, loader)
        start = clock()
        lens.inspection(seen)
        base, passed = (statistics.median(values) for values in seconds.values())
        print(
            f"  {name:16} plain {base:.2f} s   pass {passed:.2f} s   ratio "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})   "
            f"measures {clock() - start:.2f} s, once",
            flush=True,
        )


def memory(nets: Sequence[str]) -> None:
    print("memory, largest resident size of the process, MiB")
    for name in nets:
        for images, side in ((100, 224), (1000, 64), (10_000, 64)):
            ways = ("plain", "lens", "hooks") if images <= 1000 else ("plain", "lens")
            sizes = {way: _peak(name, way, images, side) for way in ways}
            more = {way: size - sizes["plain"] for way, size in sizes.items()}
            text = "   ".join(
                f"{way} {size:,.0f} (+{more[way]:,.0f})" for way, size in sizes.items()
            )
            print(f"  {name:16} {images:6,} x {side} px   {text}", flush=True)


def _peak(name: str, way: str, images: int, side: int) -> float:
    command = [sys.executable, __file__, "one", name, way, str(images), str(side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one(name: str, way: str, images: int, side: int) -> None:
    model, loader = network(name), batches(images, side)
    run = {"plain": plain, "hooks": stored, "lens": lens.inspect}[way]
    run(model, loader)
    print(resident())


def resident() -> float:
    """Return the largest size of this process so far, MiB."""
    # not ru_maxrss, which a process inherits from the one that starts it
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def many(way: str, classes: int, images: int) -> None:
    """Inspect a resnet50 with many classes: processor time, memory, size of the record."""
    torch.set_num_threads(1)
    model, loader = network("resnet50", classes), batches(images, 64, classes)
    start = time.process_time()
    if way == "plain":
        plain(model, loader)
        print(f"  plain {time.process_time() - start:.1f} s   {resident():,.0f} MiB", flush=True)
        return
    state = lens.accumulate(model, loader)
    passed, size = time.process_time() - start, resident()
    record = lens.inspection(state, release=True)
    measured = time.process_time() - start - passed
    with tempfile.TemporaryDirectory() as folder:
        record.save(Path(folder, "record.json"))
        files = {f.suffix: f.stat().st_size / 1e6 for f in Path(folder).iterdir()}
    print(
        f"  lens  {passed:.1f} s, measures {measured:.1f} s   {size:,.0f} MiB, with measures "
        f"{resident():,.0f} MiB   record {files['.json']:.1f} MB, tables "
        f"{files['.safetensors']:.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=WHAT)
    parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--net", choices=NETS, help="one of the two networks; default both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--processor", action="store_true", help="time of the processor, 1 thread")
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    if given.what == "one":
        name, way, images, side = given.one
        one(name, way, int(images), int(side))
        return
    if given.what == "many":
        many(given.one[0], given.classes, 2 * given.classes)
        return
    if given.processor:
        torch.set_num_threads(1)
    nets = NETS if given.net is None else (given.net,)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if given.what in ("all", "time"):
        clock = time.process_time if given.processor else time.perf_counter
        timed(nets, given.rounds, given.images, clock)
    if given.what in ("all", "memory"):
        memory(nets)
    if given.what in ("all", "classes"):
        print(
            f"resnet50, {given.classes:,} classes, {2 * given.classes:,} images of 64 px, 1 thread"
        )
        for way in ("plain", "lens"):
            command = [sys.executable, __file__, "many", way, "--classes", str(given.classes)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
