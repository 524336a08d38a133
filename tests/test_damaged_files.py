"""Damaged files of every kind end in one sentence: a seeded thousand each, more where asked.

NORMSCOPE_FUZZ=20000 tries as many of each kind; NORMSCOPE_FUZZ_SEED begins elsewhere.
"""

import io
import os
import re
import resource
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normscope import lens
from normscope.errors import NormscopeError
from normscope.experiment import checkpoint
from normscope.experiment.images import read_folder
from normscope.experiment.nets import ModelConfig
from normscope.experiment.sources import read_npz
from normscope.experiment.tables import read_csv, read_parquet
from normscope.lens import InspectionState, accumulate
from normscope.probe.load import read_weights, write_weights
from normscope.records import Inspection, Run
from tests.pages import made_up_run

COUNT = int(os.environ.get("NORMSCOPE_FUZZ", "1000"))
SEED = int(os.environ.get("NORMSCOPE_FUZZ_SEED", "0"))
MOST = 1 << 30  # bytes that the worst of all may add to the process
NETWORK = ModelConfig("mlp", "batch", (3,), 3, 0)
ODD = [b"-1", b"0", b"1e999", b"99999999999999999999", b"NaN", b"null", b"[]", b"{}", b'"\\ud800"']

rng = np.random.default_rng(11)
VALUES = rng.normal(size=(24, 3)).astype(np.float32)
LABELS = np.arange(24) % 3


def model() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.from_numpy(VALUES), torch.from_numpy(LABELS))]


def saved_by_torch(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": model().state_dict()}, path)


def saved_by_old_torch(path: Path) -> None:
    torch.save(model().state_dict(), path, _use_new_zipfile_serialization=False)


def image(path: Path) -> None:
    from PIL import Image

    (path.parent / "b").mkdir(exist_ok=True)
    Image.fromarray(np.uint8(VALUES * 9)).save(path.parent / "b" / "whole.png")
    Image.fromarray(np.uint8(VALUES * 9)).save(path)


def parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f"x{i}": VALUES[:, i] for i in range(3)}
    pq.write_table(pa.table(columns | {"label": LABELS}), path)


def table(path: Path) -> None:
    rows = [f"{a},{b},{c},{k}" for (a, b, c), k in zip(VALUES, LABELS, strict=True)]
    path.write_text("a,b,c,label\n" + "\n".join(rows))


def inspection(path: Path) -> None:
    lens.inspect(model(), batches()).save(path)


# what writes a whole file, its name, what reads it
KINDS: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any]]] = {
    "checkpoint": (saved_by_torch, "m.pt", read_weights),
    "old checkpoint": (saved_by_old_torch, "m.pth", read_weights),
    "safetensors": (
        lambda path: write_weights(path, model().state_dict(), {"a": "b"}),
        "m.safetensors",
        read_weights,
    ),
    "network of a run": (
        lambda path: checkpoint.save_model(path, NETWORK.build(0), NETWORK),
        "n.safetensors",
        checkpoint.load_model,
    ),
    "progress of a run": (
        lambda path: torch.save(
            {"norm": "batch", "seed": 0, "trainer": {"step": 3, "curve": [torch.ones(3)]}}, path
        ),
        "state.pt",
        checkpoint.load_checkpoint,
    ),
    "pass of the lens": (
        lambda path: accumulate(model(), batches()).save(path),
        "p.pt",
        InspectionState.load,
    ),
    "inspection": (inspection, "i.json", Inspection.load),
    "run": (
        lambda path: path.write_text(made_up_run(None, ("batch",), 1).to_json()),
        "run.json",
        lambda path: Run.from_json(path.read_text(encoding="utf-8", errors="replace")),
    ),
    "archive": (lambda path: np.savez(path, x=VALUES, y=LABELS), "d.npz", read_npz),
    "table": (table, "d.csv", read_csv),
    "parquet": (parquet, "d.parquet", read_parquet),
    "image": (image, "a/image.png", lambda path: read_folder(path.parent.parent)),
}


def damaged(whole: bytes, seed: int, count: int) -> Iterator[bytes]:
    """One to four injuries each, of an archive's members in every second one, with right sums."""
    draw = np.random.default_rng(seed)
    if not whole.startswith(b"PK"):
        yield from injured(whole, draw, count)
        return
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for data in injured(whole, draw, count // 2):
        yield data
        hurt = list(members)[draw.integers(len(members))]
        (inner,) = injured(members[hurt], draw, 1)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in (members | {hurt: inner}).items():
                archive.writestr(name, content)
        yield packed.getvalue()


def injured(whole: bytes, draw: np.random.Generator, count: int) -> Iterator[bytes]:
    """Bits, bytes, cuts, repeats, other numbers in texts."""
    numbers = [m.span() for m in re.finditer(rb"(?<![\w.])-?\d[\d.e+-]*", whole[: 1 << 16])]
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(draw.integers(1, 5)):
            at, size = draw.integers(len(data) + 1), int(draw.integers(1, 64))
            match draw.integers(7):
                case 0:
                    data[at : at + 1] = bytes([draw.integers(256)])
                case 1:
                    data[at : at + size] = draw.bytes(size)
                case 2:
                    del data[at : at + size]
                case 3:
                    data[at:at] = data[at : at + size]
                case 4 if draw.random() < 0.3:
                    del data[at:]
                case 5 if numbers:
                    start, end = numbers[draw.integers(len(numbers))]
                    data[start:end] = ODD[draw.integers(len(ODD))]
                case _:
                    if at < len(data):
                        data[at] ^= 1 << int(draw.integers(8))
        yield bytes(data)


@pytest.mark.timeout(0 if COUNT > 1000 else 120)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    write, name, read = KINDS[kind]
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    write(path)
    read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    refused = 0
    for number, data in enumerate(damaged(path.read_bytes(), SEED, COUNT)):
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
        except NormscopeError as problem:
            refused += 1
            sentence = str(problem)
            assert sentence.isprintable(), (number, sentence)
            assert len(sentence) < 600, (number, sentence)
        except Exception as problem:
            kept = tmp_path / f"{number}"
            kept.write_bytes(data)
            raise AssertionError(f"{kind} {number}: {problem!r}, kept as {kept}") from problem
    assert refused > COUNT / 20  # the injuries are felt
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    assert after - before < MOST
