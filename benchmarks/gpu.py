"""Batch norm on a GPU beside torch and others: the first thing to run where there is a card.

    python benchmarks/gpu.py --out gpu.json     # within nine minutes
    python benchmarks/gpu.py --dry              # the same plan on a CPU, tiny, times mean nothing

Correctness comes first: what is wrong is not timed. Every part is written as soon as it is done.
Peers take turns; before each call the second-level cache is filled with something else. Times are
medians in microseconds. `of_limit` is the time in which a copy moves as many bytes as the call
must move, over its time: forward x is read twice and y written, backward x and dy are read twice
and dx is written. Without a card the Triton programs run in the interpreter (TRITON_INTERPRET=1),
or the reference takes their place.
"""

import argparse
import copy
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope import functional
from normscope.kernels import dispatch

SHAPES = [
    (64, 64, 56, 56),
    (256, 256, 14, 14),
    (16, 64, 112, 112),
    (32, 2048, 7, 7),
    (65_536, 256),
    (8192, 1024),
]
LARGE = (33, 64, 1024, 1024)  # more than 2^31 values
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
REPEATS = 20
Call = Callable[[], Any]


class Session:
    """Where it runs, how long it may, and what was found."""

    def __init__(self, dry: bool, seconds: float, out: Path | None) -> None:
        self.dry, self.out = dry, out
        self.device = torch.device("cpu" if dry else "cuda")
        self.end = time.monotonic() + seconds
        self.impl = "gpu"
        if dry:
            interpreted = "TRITON_INTERPRET" in os.environ
            self.impl = "gpu" if interpreted else "reference"
            if interpreted:
                importlib.import_module("normscope.kernels.gpu").unsupported = lambda x: None  # type: ignore[attr-defined]
        self.cold = None if dry else torch.empty(256 << 20, dtype=torch.int8, device=self.device)
        self.found: dict[str, Any] = {
            "torch": torch.__version__,
            "device": "none, a dry run" if dry else torch.cuda.get_device_name(),
            "date": time.strftime("%Y-%m-%d"),
            "dry": dry,
        }

    def left(self, seconds: float = 0.0) -> bool:
        """Whether there is time for another setting, which may take so long."""
        return time.monotonic() + seconds < self.end

    def write(self) -> None:
        """Write what was found so far."""
        if self.out is not None:
            self.out.write_text(json.dumps(self.found, indent=1))

    def values(self, shape: tuple[int, ...], dtype: torch.dtype, form: str) -> Tensor:
        """Random values, in a memory format where the shape has one."""
        x = torch.randn(shape, device=self.device, dtype=dtype) * 2 + 3
        return x.to(memory_format=FORMATS[form]) if len(shape) == 4 else x

    def timed(self, calls: dict[str, Call]) -> dict[str, Any]:
        """Median microseconds of each; calls take turns. One that fails says how."""
        times: dict[str, list[Any]] = {}
        found: dict[str, Any] = {}
        for name, call in calls.items():
            try:
                for _ in range(1 if self.dry else 3):
                    call()
                times[name] = []
            except Exception as error:  # a peer that cannot do it is not the end
                found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        for _ in range(1 if self.dry else REPEATS):
            for name in times:
                times[name].append(self._once(calls[name]))
        if not self.dry:
            torch.cuda.synchronize()
        for name, pairs in times.items():
            one = [p[1] - p[0] if self.dry else p[0].elapsed_time(p[1]) * 1e3 for p in pairs]
            found[name] = round(statistics.median(one), 2)
        return found

    def _once(self, call: Call) -> tuple[Any, Any]:
        if self.cold is None:
            begin = time.perf_counter() * 1e6
            call()
            return begin, time.perf_counter() * 1e6
        self.cold.zero_()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        call()
        marks[1].record()
        return marks[0], marks[1]


class Layer:
    """A batch norm with its activation by every peer, on the same values."""

    def __init__(self, session: Session, shape: tuple[int, ...], dtype: torch.dtype, form: str,
                 act: str | None = "relu", groups: int = 1) -> None:  # fmt: skip
        self.session, self.act, self.groups = session, act, groups
        self.x = session.values(shape, dtype, form).requires_grad_()
        self.dy = session.values(shape, dtype, form)
        c, device = shape[1], session.device
        self.weight = torch.rand(c, device=device).requires_grad_()
        self.bias = torch.rand(c, device=device).requires_grad_()
        self.running = torch.zeros(c, device=device), torch.ones(c, device=device)
        self.ids = torch.arange(shape[0], device=device) % groups if groups > 1 else None

    def ours(self, impl: str | None = None) -> Tensor:
        return functional.batch_norm(
            self.x, *self.running, self.weight, self.bias, training=True, act=self.act,
            groups=self.ids, num_groups=self.groups, impl=impl or self.session.impl,
        )  # fmt: skip

    def torchs(self) -> Tensor:
        y = F.batch_norm(self.x, *self.running, self.weight, self.bias, training=True)
        return y if self.act is None else getattr(F, self.act)(y)

    def peers(self, compiled: bool) -> dict[str, Callable[[], Tensor]]:
        peers: dict[str, Callable[[], Tensor]] = {"normscope": self.ours, "torch": self.torchs}
        if compiled:  # which takes seconds
            call = self.torchs if self.session.dry else torch.compile(self.torchs)
            peers["torch.compile"] = call
        if importlib.util.find_spec("attorch"):
            layer = importlib.import_module("attorch").BatchNorm2d(
                self.x.shape[1], act_func=self.act
            )
            peers["attorch"] = lambda: layer.to(self.session.device)(self.x)
        if importlib.util.find_spec("flag_gems"):
            gems = importlib.import_module("flag_gems")

            def by_gems() -> Tensor:
                with gems.use_gems():
                    return self.torchs()

            peers["flag_gems"] = by_gems
        return peers

    def gradients(self, y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, [self.x, self.weight, self.bias], self.dy, retain_graph=True)

    def timed(self, peers: dict[str, Callable[[], Tensor]]) -> dict[str, Any]:
        """Forward and backward of each peer, and how near to the limit."""
        forward = self.session.timed(peers)
        graphs = {
            name: call() for name, call in peers.items() if not isinstance(forward[name], dict)
        }
        backward = self.session.timed(
            {name: lambda y=y: self.gradients(y) for name, y in graphs.items()}  # type: ignore[misc]
        )
        size = self.x.numel() * self.x.element_size()
        per_us = self.session.found["copy bytes per us"]
        found = {}
        for name, took in forward.items():
            back = backward.get(name)
            if isinstance(took, dict) or isinstance(back, dict) or back is None:
                found[name] = {"forward": took, "backward": back}
                continue
            limits = 3 * size / per_us / took, 5 * size / per_us / back
            found[name] = {
                "forward": took,
                "backward": back,
                "of_limit": [round(part, 3) for part in limits],
            }
        return found


def shapes(session: Session) -> list[tuple[int, ...]]:
    return [(2, 8, 4, 4), (8, 16)] if session.dry else SHAPES


def formats(shape: tuple[int, ...]) -> list[str]:
    return list(FORMATS) if len(shape) == 4 else ["NCHW"]


def limit(session: Session) -> None:
    """How fast a copy goes."""
    x = torch.empty(
        (1 << 14) if session.dry else (1 << 30), dtype=torch.int8, device=session.device
    )
    y = torch.empty_like(x)
    took = session.timed({"copy": lambda: y.copy_(x)})["copy"]
    session.found["copy bytes per us"] = 2 * x.numel() / took


def correctness(session: Session) -> list[dict[str, Any]]:
    """Outputs, gradients and running statistics against the float64 definition."""
    found = []
    dtypes = [torch.float32] if session.dry else list(TOLERANCE)
    acts = ["relu"] if session.dry else ["relu", "silu"]  # each combination is compiled
    all_shapes = shapes(session)[:1] if session.dry else [(7, 24, 13, 9), (300, 96)]
    for shape, dtype, act, groups in product(all_shapes, dtypes, acts, (1, 3)):
        for form in formats(shape):
            layer = Layer(session, shape, dtype, form, act, groups)
            results = []
            for impl in (session.impl, "reference"):
                for table, value in zip(layer.running, (0.0, 1.0), strict=True):
                    table.fill_(value)
                y = layer.ours(impl)
                results.append(
                    [y.detach(), *layer.gradients(y), *(t.clone() for t in layer.running)]
                )
            worst = max(
                float(
                    (mine.double() - exact.double()).abs().max()
                    / exact.double().abs().max().clamp(min=1)
                )
                for mine, exact in zip(*results, strict=True)
            )
            right = worst < TOLERANCE[dtype]
            found.append({"shape": shape, "dtype": str(dtype), "act": act, "groups": groups,
                          "format": form, "error": worst, "right": right})  # fmt: skip
    return found


def layers(session: Session) -> list[dict[str, Any]]:
    """Forward and backward of every shape."""
    found: list[dict[str, Any]] = []
    dtypes = (torch.bfloat16, torch.float32)[: 1 if session.dry else None]
    for dtype, shape in product(dtypes, shapes(session)):
        for form in formats(shape):
            if session.left():
                layer = Layer(session, shape, dtype, form)
                setting = {"shape": shape, "dtype": str(dtype), "format": form}
                found.append(setting | layer.timed(layer.peers(shape in shapes(session)[:2])))
    return found


def groups(session: Session) -> list[dict[str, Any]]:
    """One group, and several."""
    found: list[dict[str, Any]] = []
    shape = (8, 8, 2, 2) if session.dry else (64, 64, 56, 56)
    for dtype, form, k in product((torch.bfloat16, torch.float32), FORMATS, (1, 8, 64)):
        if session.left() and not (session.dry and k > 8):
            layer = Layer(session, shape, dtype, form, None, k)
            setting = {"shape": shape, "dtype": str(dtype), "format": form, "groups": k}
            found.append(setting | layer.timed({"normscope": layer.ours}))
    return found


def sweep(session: Session) -> list[dict[str, Any]]:
    """Tiles and warps of every program; the table is as before afterwards."""
    if session.impl != "gpu":
        return []
    cutting = importlib.import_module("normscope.kernels.gpu.cutting")
    tuning = importlib.import_module("normscope.kernels.gpu.tuning")
    before, found = dict(cutting.SIZES), []
    candidates = tuning.CANDIDATES[:1] if session.dry else tuning.CANDIDATES
    settings = product(shapes(session)[:1], (torch.bfloat16, torch.float32), FORMATS)
    for shape, dtype, form in list(settings)[: 1 if session.dry else None]:
        if session.left():
            layer = Layer(session, shape, dtype, form)

            def step(layer: Layer = layer) -> None:
                layer.gradients(layer.ours())

            times = tuning.tune(step, lambda call: session.timed({"": call})[""], candidates)
            text = {name: {str(k): v for k, v in one.items()} for name, one in times.items()}
            found.append({"shape": shape, "dtype": str(dtype), "format": form, "times": text,
                          "best": dict(cutting.SIZES)})  # fmt: skip
            cutting.SIZES.update(before)
    return found


class Bottleneck(nn.Module):
    """A block of resnet50; `fused`: its norms have their activations, the last its residual."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (width, width, 4 * width))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))
        self.fused = False

    def fuse(self) -> None:
        self.fused = True
        for norm in (self.bn1, self.bn2, self.bn3):
            norm.act = "relu"

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
            return self.bn3(self.conv3(y), residual=self.shortcut(x))  # type: ignore[no-any-return]
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


def resnet(depths: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Sequential:
    """resnet50 by its default depths."""
    parts: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = 64
    for stage, depth in enumerate(depths):
        for i in range(depth):
            parts.append(Bottleneck(inputs, 64 << stage, 2 if stage and not i else 1))
            inputs = 256 << stage
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def network(session: Session) -> dict[str, Any]:
    """Training steps of resnet50 in mixed precision, channels last."""
    device = session.device
    torch.manual_seed(0)
    plain = resnet((1, 1)) if session.dry else resnet()
    plain = plain.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = (2, 3, 16, 16) if session.dry else (64, 3, 224, 224)
    x = session.values(size, torch.float32, "NHWC")
    target = torch.randint(0, 1000, size[:1], device=device)

    def steps(model: nn.Module) -> Call:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def fused(model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model)
        for block in model.modules():
            if isinstance(block, Bottleneck):
                block.fuse()
        return model

    def by_gpu(step: Call) -> Call:
        def call() -> None:
            kept, dispatch.MEASURED = dispatch.MEASURED, ("cpu", "gpu")
            try:
                step()
            finally:
                dispatch.MEASURED = kept

        return call

    converted = copy.deepcopy(plain)
    normscope.convert(converted, "batch")
    calls = {
        "torch": steps(plain),
        "normscope auto": steps(converted),
        "normscope auto, with act": steps(fused(converted)),
        "normscope gpu, with act": by_gpu(steps(fused(converted))),
    }
    if not session.dry and session.left(200):
        calls["torch.compile"] = steps(torch.compile(copy.deepcopy(plain)))  # type: ignore[arg-type]
    return session.timed(calls)


def graphs(session: Session) -> dict[str, Any]:
    """A step captured once and replayed: the same bits, and its time."""
    shape = (8, 8, 2, 2) if session.dry else (64, 64, 56, 56)
    layer = Layer(session, shape, torch.float32, "NHWC", "relu", 2 if session.dry else 8)
    kept: dict[str, Any] = {}

    def step() -> None:
        y = layer.ours()
        kept["found"] = [y.detach(), *layer.gradients(y)]

    step()
    eager = [t.clone() for t in kept["found"]]
    if session.dry:
        step()
        return {"equal": all(map(torch.equal, eager, kept["found"]))}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    times = session.timed({"eager": step, "replayed": graph.replay})
    return {"equal": all(map(torch.equal, eager, kept["found"]))} | times


def large(session: Session) -> list[dict[str, Any]]:
    """More than 2^31 values, judged channel by channel."""
    shape, found = (3, 8, 4, 4) if session.dry else LARGE, []
    needed = 2 * 6 * torch.Size(shape).numel()
    if not session.dry and torch.cuda.mem_get_info()[0] < needed:
        return [{"skipped": f"{needed:,} bytes of memory are needed"}]
    for form in FORMATS:
        if not session.left():
            break
        layer = Layer(session, shape, torch.bfloat16, form)
        y = layer.ours()
        dx, *_ = torch.autograd.grad(y, [layer.x, layer.weight], layer.dy)
        wrong = 0.0
        for c in (0, shape[1] // 2, shape[1] - 1):
            tensors = (layer.x.detach(), y.detach(), layer.dy, dx)
            rows = [torch.cat([sample[c].flatten() for sample in t]).double() for t in tensors]
            x, ours, dy, dx_ours = rows
            rstd = (x.var(correction=0) + 1e-5).rsqrt()
            hat, w, b = (x - x.mean()) * rstd, layer.weight[c].detach(), layer.bias[c].detach()
            g = torch.where(hat * w + b <= 0, 0, dy)
            exact = rstd * w * (g - g.mean() - hat * (g * hat).mean())
            for mine, other in ((ours, (hat * w + b).relu()), (dx_ours, exact)):
                off = (mine - other).abs() > 0.02 * (1 + other.abs())  # relu may cut elsewhere
                wrong = max(wrong, float(off.double().mean()))
        found.append({"shape": shape, "format": form, "wrong": wrong, "right": wrong < 1e-4})
        del layer, y, dx
    return found


PARTS: dict[str, Callable[[Session], Any]] = {
    "limit": limit,
    "correctness": correctness,
    "layers": layers,
    "groups": groups,
    "network": network,
    "graphs": graphs,
    "large": large,
    "sweep": sweep,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--only", default="", help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    only = [name for name in given.only.split(",") if name]
    if unknown := [name for name in only if name not in PARTS]:
        parser.error(f"--only is {unknown[0]!r}; it can be {', '.join(PARTS)}")
    if not given.dry and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry goes through the same plan without one")
    session = Session(given.dry, given.seconds, given.out)
    failed = False
    for name, part in PARTS.items():
        if only and name not in (*only, "limit"):
            continue
        begin = time.monotonic()
        try:
            found = part(session) if session.left() else {"skipped": "no time was left"}
        except Exception:
            failed, found = True, {"error": traceback.format_exc()}
        if found is not None:
            session.found[name] = found
        if isinstance(found, list) and not all(one.get("right", True) for one in found):
            failed = True
        session.write()
        print(
            f"{name}: {time.monotonic() - begin:.1f} s",
            json.dumps(found, default=str)[:2000],
            flush=True,
        )
        if name == "correctness" and failed:
            print("what is wrong is not timed", file=sys.stderr)
            break
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
