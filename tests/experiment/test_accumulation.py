"""Passes that are saved, merged, continued, interrupted and spread over ranks."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import normscope
from normscope import lens
from normscope.errors import FileError, InputError, ModelError
from normscope.lens import memory
from normscope.records import Inspection

Batches = list[tuple[Tensor, ...]]


def network() -> nn.Module:
    torch.manual_seed(0)
    conditional = normscope.ConditionalBatchNorm2d(5, 2)
    nn.init.normal_(conditional.running_mean)
    nn.init.normal_(conditional.weight)
    first = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), conditional, nn.SiLU()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(80, 3)).double()


def batches(count: int = 9, size: int = 7) -> Batches:
    draw = torch.Generator().manual_seed(1)
    made: Batches = []
    for _ in range(count):
        y = torch.randint(0, 3, (size,), generator=draw)
        x = torch.randn(size, 2, 6, 6, generator=draw, dtype=torch.float64) + y.view(-1, 1, 1, 1)
        made.append((x, y, torch.randint(0, 2, (size,), generator=draw)))
    return made


def same(one: Inspection, two: Inspection, tolerance: float = 1e-10) -> None:
    assert one.counts == two.counts
    assert one.skipped == two.skipped
    assert one.batches == two.batches
    for a, b in zip(one.layers, two.layers, strict=True):
        assert (a.name, a.norm, a.activation, a.notes) == (b.name, b.norm, b.activation, b.notes)
        np.testing.assert_array_equal(a.histogram, b.histogram)
        np.testing.assert_array_equal(a.firing, b.firing)
        for name in ("class_mean", "class_var"):  # these are float32
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=3e-7, atol=1e-9)
        np.testing.assert_allclose(a.signal, b.signal, atol=tolerance)
        for s, t in zip(a.stages, b.stages, strict=True):
            values, expected = (vars(x) | x.more for x in (s, t))
            assert values.keys() == expected.keys()
            for name in values.keys() - {"name", "more"}:
                close: dict[str, Any] = {
                    "rtol": 100 * tolerance,
                    "atol": tolerance,
                    "err_msg": name,
                }
                np.testing.assert_allclose(values[name], expected[name], **close)
    assert str(one.collapse)[:40] == str(two.collapse)[:40]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    seen = lens.accumulate(network(), batches())
    path = seen.save(tmp_path / "seen.pt")
    again = lens.InspectionState.load(path)
    assert lens.inspection(again).to_json() == lens.inspection(seen).to_json()
    assert again.save(tmp_path / "again" / "seen.pt").read_bytes() == path.read_bytes()


def test_parts_merge_to_the_whole(tmp_path: Path) -> None:
    model, every = network(), batches()
    whole = lens.inspect(model, every)
    parts = [lens.accumulate(model, every[a:b]) for a, b in ((0, 2), (2, 3), (3, 9))]
    for place, part in enumerate(parts):
        part.save(tmp_path / f"{place}.pt")
    first, *rest = (lens.InspectionState.load(tmp_path / f"{p}.pt") for p in range(3))
    for part in rest:
        first.merge(part)
    same(lens.inspection(first), whole)


def test_a_part_may_have_seen_fewer_classes_or_nothing() -> None:
    model, every = network(), batches()
    order = torch.cat([b[1] for b in every]).argsort(stable=True)
    x, y, ids = (torch.cat([b[i] for b in every])[order] for i in range(3))
    parts = [(x[r], y[r], ids[r]) for r in torch.arange(len(x)).split(7)]
    merged = lens.InspectionState()
    for part in parts:
        merged.merge(lens.accumulate(model, [part])).merge(lens.InspectionState())
    same(lens.inspection(merged), lens.inspect(model, parts))


def test_a_pass_is_continued_where_it_was_interrupted() -> None:
    model, every = network(), batches()
    whole = lens.inspect(model, every)
    seen, heard = lens.InspectionState(), list[int]()

    def loader() -> Iterator[tuple[Tensor, ...]]:
        for place, batch in enumerate(every):
            if place == 4:
                os.kill(os.getpid(), signal.SIGINT)  # while the batch is on its way
            yield batch

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            lens.accumulate(model, loader(), into=seen, on_progress=heard.append)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert heard == [7, 14, 21, 28, 35]
    assert seen.batches == 5
    same(lens.inspection(seen), lens.inspect(model, every[:5]))
    lens.accumulate(model, every, into=seen)
    same(lens.inspection(seen), whole)


def test_a_batch_that_failed_half_way_is_not_taken_for_whole(tmp_path: Path) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 3:
                raise ValueError("three")
            return x

    model, seen = (
        nn.Sequential(nn.BatchNorm1d(2), Fails(), nn.BatchNorm1d(2)),
        lens.InspectionState(),
    )
    good, bad = (torch.randn(4, 2), torch.arange(4)), (torch.randn(3, 2), torch.arange(3))
    with pytest.raises(ModelError, match=r"layer 1 \(Fails\) failed on batch 1, .*three"):
        lens.accumulate(model, [good, bad], into=seen)
    for use in (
        lambda: lens.inspection(seen),
        lambda: seen.save(tmp_path / "x.pt"),
        lambda: lens.InspectionState().merge(seen),
        lambda: lens.accumulate(model, [good], into=seen),
    ):
        with pytest.raises(InputError, match="a batch failed half-way"):
            use()


def test_a_loader_that_fails_leaves_what_was_seen() -> None:
    def loader() -> Iterator[tuple[Tensor, ...]]:
        yield from batches()[:3]
        raise OSError("disk")

    seen = lens.InspectionState()
    with pytest.raises(InputError, match="the loader failed after 3 batches: OSError: disk"):
        lens.accumulate(network(), loader(), into=seen)
    same(lens.inspection(seen), lens.inspect(network(), batches()[:3]))


def test_what_does_not_belong_together_is_refused() -> None:
    seen = lens.accumulate(network(), batches()[:2])
    other = network()
    with torch.no_grad():
        other[1].weight.mul_(2)
    with pytest.raises(InputError, match="different weights: layer 1 differs"):
        seen.merge(lens.accumulate(other, batches()[2:3]))
    with pytest.raises(InputError, match="different models"):
        seen.merge(lens.accumulate(nn.BatchNorm2d(2).double(), batches()[:1]))
    with pytest.raises(InputError, match="begun with another model"):
        lens.accumulate(nn.BatchNorm2d(2).double(), batches(), into=seen)
    named = lens.InspectionState(classes=("a", "b", "c"))
    with pytest.raises(InputError, match="different classes, unnamed ones and a, b, c"):
        seen.merge(lens.accumulate(network(), batches()[:1], into=named))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", os.urandom(200)], ids=len)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "seen.pt"
    with pytest.raises(FileError, match="cannot be read"):
        lens.InspectionState.load(path)
    path.write_bytes(content)
    with pytest.raises(FileError, match="holds no whole inspection"):
        lens.InspectionState.load(path)
    lens.accumulate(network(), batches()[:1]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(FileError, match="holds no whole inspection"):
        lens.InspectionState.load(path)
    torch.save({"a": 1}, path)
    with pytest.raises(FileError, match="has schema None"):
        lens.InspectionState.load(path)
    swollen = lens.accumulate(network(), batches()[:1])
    channels = next(iter(swollen.layers.values())).map
    object.__setattr__(channels, "mean", torch.zeros(1).expand(10**12))
    torch.save(swollen, path)
    with pytest.raises(FileError, match="claims more values than it holds"):
        lens.InspectionState.load(path)
    torch.save(lens.InspectionState(schema=9), path)
    with pytest.raises(FileError, match="has schema 9"):
        lens.InspectionState.load(path)


class Unasked:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    torch.save(lens.InspectionState(model=Unasked()), tmp_path / "seen.pt")
    with pytest.raises(FileError, match="holds no whole inspection"):
        lens.InspectionState.load(tmp_path / "seen.pt")


def test_size_does_not_depend_on_the_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SAMPLE", 20)
    few, many = (lens.accumulate(network(), batches(count)) for count in (12, 40))
    sizes = [seen.save(tmp_path / "seen").stat().st_size for seen in (few, many)]
    assert abs(sizes[1] - sizes[0]) < 16  # digits of a count


def _rank(rank: int, world: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    share = batches()[rank::2] if rank < 2 else []  # the last rank has no data
    seen = lens.accumulate(network(), share) if share else lens.InspectionState()
    Path(out, str(rank)).write_text(lens.inspection(seen.all_reduce()).to_json())
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_together_equal_one_process(tmp_path: Path) -> None:
    context: Any = mp.get_context("spawn")
    port = 29500 + os.getpid() % 2000
    ranks = [
        context.Process(target=_rank, args=(rank, 3, port, str(tmp_path))) for rank in range(3)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    texts = [(tmp_path / str(rank)).read_text() for rank in range(3)]
    assert texts[0] == texts[1] == texts[2]
    same(Inspection.from_json(texts[0]), lens.inspect(network(), batches()))
