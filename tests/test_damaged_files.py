"""Damaged files of every kind end in one sentence: 25 of each, a thousand as slow tests.

NORMSCOPE_FUZZ=20000 tries as many of each kind; NORMSCOPE_FUZZ_SEED begins elsewhere.
benchmarks/fuzz.py does the same with limits of time and memory, and counts.
"""

import os
import resource
import warnings
from functools import cache
from pathlib import Path

import pytest

from normscope.errors import NormscopeError
from tests.damage import Kind, inputs, kinds

COUNT = int(os.environ.get("NORMSCOPE_FUZZ", "25"))
THOUSAND = 1000
SEED = int(os.environ.get("NORMSCOPE_FUZZ_SEED", "0"))
MOST = 1 << 30  # bytes that the worst of all may add to the process
NAMES = (
    "checkpoint", "old checkpoint", "safetensors", "network of a run", "progress of a run",
    "pass of the lens", "run folder", "record: conversion", "record: diagnosis", "record: repair",
    "record: inspection", "record: difference", "record: bench", "record: lesson", "record: parity",
    "record: passport", "record: passport_check", "record: claims", "passport", "archive", "table",
    "parquet", "image", "onnx", "loader in a .py file",
)  # fmt: skip

every = cache(kinds)


@pytest.mark.timeout(0 if COUNT > THOUSAND else 120)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    read_damaged(name, tmp_path, SEED, COUNT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_so_are_a_thousand(name: str, tmp_path: Path) -> None:
    read_damaged(name, tmp_path, SEED + 1, THOUSAND)


def read_damaged(name: str, folder: Path, seed: int, count: int) -> None:
    """Read so many damaged files of a kind; the first that is neither read nor refused is kept."""
    if name == "onnx":
        pytest.importorskip("onnx")
    kind: Kind = every()[name]
    path = folder / "data" / kind.name
    path.parent.mkdir(parents=True)
    kind.write(path)
    kind.read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in inputs(kind, path, seed, count):
            try:
                kind.read(path)
            except NormscopeError as problem:
                refused += 1
                sentence = str(problem)
                assert sentence.isprintable(), (number, sentence)
                assert len(sentence) < 600, (number, sentence)
            except BaseException as problem:
                if isinstance(problem, KeyboardInterrupt):
                    raise
                kept = folder / f"{number}"
                kept.write_bytes(path.read_bytes())
                place = f"{name} {number}: {type(problem).__name__}, kept as {kept}"
                raise AssertionError(place) from problem
    assert refused > count / 20  # the injuries are felt
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    assert after - before < MOST


def test_every_kind_is_tried() -> None:
    assert set(NAMES) == set(every())
