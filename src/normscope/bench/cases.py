"""What is measured: shapes, memory formats, dtypes, numbers of groups, threads."""

import os
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from normscope.errors import InputError
from normscope.records.bench import Layout, Part, Setting

PARTS: tuple[Part, ...] = get_args(Part)
LARGE = (
    (64, 64, 56, 56),
    (256, 256, 14, 14),
    (16, 64, 112, 112),
    (32, 2048, 7, 7),
    (65_536, 256),
    (8192, 1024),
)
FORMATS = ((64, 64, 56, 56), (256, 256, 14, 14), (32, 2048, 7, 7))
MIDDLE = (64, 64, 28, 28)
GROUPS = (((64, 64, 28, 28), 8), ((64, 64, 28, 28), 64), ((1024, 32, 7, 7), 1024))
# 40 shapes from a few hundred values to a few millions, as they come in networks
SWEEP = tuple((n, c) for n in (16, 64, 256, 1024) for c in (16, 64, 256, 1024)) + tuple(
    (n, c, s, s)
    for n in (1, 8, 32)
    for c, s in ((16, 64), (32, 32), (64, 16), (128, 8), (64, 7), (256, 14), (512, 7), (1024, 7))
)
MODELS = (  # and the x that they are given
    ("mlp", (64, 64)),
    ("mobilenet", (32, 3, 64, 64)),
    ("resnet18", (8, 3, 96, 96)),
)
NETWORK = (16, 32, 32, 32)
MANY = (512, 2, 64, 64)  # 2.1 million values per channel
RATIOS = (1.0, 1e2, 1e4)
QUICK_SWEEP = ((64, 64), (1024, 256), (8, 64, 7, 7), (32, 64, 16, 16))


def settings(only: Sequence[str] = (), *, quick: bool = False) -> list[Setting]:
    """Return the settings of the parts that are asked for, or of all.

    Raises:
        InputError: a part that there is not.
    """
    for name in only:
        if name not in PARTS:
            raise InputError(f"--only is {name!r}; it can be {', '.join(PARTS)}")
    return [
        setting for part in PARTS if not only or part in only for setting in _of_part(part, quick)
    ]


def _of_part(part: Part, quick: bool) -> list[Setting]:
    threads = torch.get_num_threads()

    def one(shape: tuple[int, ...], **given: object) -> Setting:
        return Setting(**({"part": part, "shape": shape, "threads": threads} | given))  # type: ignore[arg-type]

    formats = ("contiguous", "channels_last")
    if part == "models":
        found = []
        for name, shape in MODELS[:2] if quick else MODELS:
            for layout in formats if name == "mobilenet" and not quick else formats[:1]:
                for training in (True, False):
                    found.append(one(shape, model=name, layout=layout, training=training))
            found.append(one((1, *shape[1:]), model=name, training=False))
        return found
    if part == "shapes":
        return [one(shape) for shape in (LARGE[:2] if quick else LARGE)]
    if part == "formats":
        return [one(s, layout="channels_last") for s in (FORMATS[:1] if quick else FORMATS)]
    if part == "dtypes":
        names = ("bfloat16",) if quick else ("float64", "bfloat16", "float16")
        layouts = formats[:1] if quick else formats
        return [one(MIDDLE, layout=layout, dtype=name) for name in names for layout in layouts]
    if part == "threads":
        return [] if quick else [one(LARGE[0], threads=t) for t in counts()]
    if part == "groups":
        chosen = GROUPS[1:2] if quick else GROUPS
        return [one(shape, groups=k) for shape, k in chosen]
    if part == "sweep":
        return [one(s, layout=layout) for s, layout in _swept(quick)]
    if part == "inference":
        large = (
            ()
            if quick
            else [(s, f) for s in LARGE for f in formats if len(s) > 2 or f == "contiguous"]
        )
        return [one(s, layout=f, training=False) for s, f in (*large, *_swept(quick))]
    if part == "network":
        return [one(NETWORK, layout=layout) for layout in (formats[:1] if quick else formats)]
    dtypes = ("float32",) if quick else ("float32", "float64", "bfloat16", "float16")
    return [
        one(MANY, layout=layout, dtype=name, threads=t)
        for name in dtypes
        for layout in formats
        for t in ((threads,) if quick else counts())
    ]


def _swept(quick: bool) -> list[tuple[tuple[int, ...], Layout]]:
    """Return the shapes of the sweep, in both memory formats where there are two."""
    if quick:
        return [(shape, "contiguous") for shape in QUICK_SWEEP]
    last: list[tuple[tuple[int, ...], Layout]] = [
        (shape, "channels_last") for shape in SWEEP if len(shape) > 2
    ]
    return [*((shape, "contiguous") for shape in SWEEP), *last]


def counts() -> list[int]:
    """Return 1, 2, 4, ... threads, up to as many as torch uses or there are cores."""
    most = max(torch.get_num_threads(), os.cpu_count() or 1)
    return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]


def tensors(setting: Setting, ratio: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return x, standard normal with mean `ratio`, which wants a gradient, and dy."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for mean in (ratio, 0.0):
        t = torch.randn(setting.shape, generator=generator).add_(mean)
        t = t.to(getattr(torch, setting.dtype))
        if setting.layout == "channels_last":
            t = t.contiguous(memory_format=torch.channels_last)
        found.append(t)
    return found[0].requires_grad_(), found[1]
