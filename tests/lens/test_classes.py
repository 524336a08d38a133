"""Many classes: what is kept of them, where it is saved, and what that takes."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscope import lens
from normscope.errors import InputError, ModelError
from normscope.lens import measures, memory
from normscope.lens.statistics import nested_channels
from normscope.records import Inspection, inspection
from normscope.report import html
from normscope.report.inspection import document as inspection_document

CLASSES = 40


def network() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 24, 3), nn.BatchNorm2d(24), nn.ReLU()]
    second = [nn.Conv2d(24, 10, 3), nn.BatchNorm2d(10), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def batches(classes: int = CLASSES, images: int = 240, size: int = 30) -> list[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(1)
    y = torch.randint(0, classes, (images,), generator=draw)
    y[-1] = classes - 1
    shift = torch.randn(classes, 2, 1, 1, generator=draw, dtype=torch.float64)
    x = torch.randn(images, 2, 8, 8, generator=draw, dtype=torch.float64) + shift[y]
    return list(zip(x.split(size), y.split(size), strict=True))


def bytes_of(value: Any) -> int:
    """Of all tensors in a state."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if dataclasses.is_dataclass(value):
        return sum(bytes_of(getattr(value, f.name)) for f in dataclasses.fields(value))
    return sum(map(bytes_of, value.values())) if isinstance(value, dict) else 0


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the histograms of 12 of 34 channels at 40 classes."""
    monkeypatch.setattr(memory, "HISTOGRAM_BYTES", 12 * CLASSES * 64 * 4)


def same(one: Inspection, two: Inspection) -> None:
    for a, b in zip(one.layers, two.layers, strict=True):
        assert a.histogram_channels == b.histogram_channels
        np.testing.assert_array_equal(a.histogram, b.histogram)
        np.testing.assert_array_equal(a.firing, b.firing)
        np.testing.assert_allclose(a.information, b.information, atol=1e-12)
        np.testing.assert_allclose(a.signal, b.signal, atol=1e-10)
        for s, t in zip(a.stages, b.stages, strict=True):
            np.testing.assert_allclose(s.eta2, t.eta2, atol=1e-12)
            assert s.lda_fraction == pytest.approx(t.lda_fraction, abs=1e-10)
            assert s.cdnv == pytest.approx(t.cdnv, rel=1e-9)


@pytest.mark.parametrize("channels", [1, 2, 7, 64, 100])
def test_a_smaller_choice_is_part_of_a_larger_and_spread_evenly(channels: int) -> None:
    choices = [nested_channels(channels, most).tolist() for most in range(1, channels + 1)]
    for few, more in pairwise(choices):
        assert set(few) < set(more)
        assert more == sorted(more)
    assert choices[-1] == list(range(channels))
    for chosen in choices:
        gaps = np.diff([*chosen, channels])
        assert gaps.max() <= 4 * channels / len(chosen)


def test_histograms_of_a_choice_of_channels_all_else_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = lens.inspect(network(), batches())
    monkeypatch.setattr(memory, "HISTOGRAM_BYTES", 12 * CLASSES * 64 * 4)
    few = lens.inspect(network(), batches())
    assert [len(layer.histogram_channels) for layer in few.layers] == [8, 4]
    for a, b in zip(every.layers, few.layers, strict=True):
        at = list(b.histogram_channels)
        assert "lens.note.histograms" in b.notes
        assert "lens.note.histograms" not in a.notes
        np.testing.assert_array_equal(b.histogram, a.histogram[:, at])
        for name in ("information", "best_information", "best_gate"):
            values = np.array(getattr(b, name))
            expected = np.array(getattr(a, name))[at]
            np.testing.assert_allclose(values[at], expected, atol=1e-12)
            assert np.isnan(np.delete(values, at)).all()
        assert b.gate_information == a.gate_information
        np.testing.assert_array_equal(b.firing, a.firing)
        np.testing.assert_array_equal(b.class_var, a.class_var)
        assert [s.eta2 for s in b.stages] == [s.eta2 for s in a.stages]
        assert b.signal == pytest.approx(a.signal, abs=0.1)


@pytest.mark.usefixtures("little")
def test_parts_of_fewer_classes_merge_to_the_whole() -> None:
    order = sorted(batches(size=1), key=lambda batch: int(batch[1]))
    parts = [
        (
            torch.cat([b[0] for b in order[at : at + 60]]),
            torch.cat([b[1] for b in order[at : at + 60]]),
        )
        for at in range(0, 240, 60)
    ]
    whole = lens.inspect(network(), parts)
    merged = lens.InspectionState()
    for part in parts:
        merged.merge(lens.accumulate(network(), [part]))
    assert len(merged.counts) == CLASSES
    same(lens.inspection(merged), whole)
    late = lens.accumulate(network(), parts[2:])
    same(lens.inspection(late.merge(lens.accumulate(network(), parts[:2]))), whole)


def test_the_memory_is_known_before_and_may_be_limited() -> None:
    needed = lens.memory_needed(network(), CLASSES)
    state = lens.accumulate(network(), batches())
    assert 0.4 * needed < bytes_of(state) <= needed + 8 * CLASSES
    assert lens.memory_needed(network(), 100 * CLASSES) < 100 * needed
    names = tuple(map(str, range(CLASSES)))
    sentence = r"40 classes in 34 channels of 2 layers need \d MiB, the limit is 1 MiB"
    loader = iter(batches())
    with pytest.raises(ModelError, match=sentence):
        lens.inspect(network(), loader, classes=names, memory_limit=1 << 20)
    assert len(list(loader)) == 8  # refused before anything was read


def test_measures_free_what_they_have_read() -> None:
    state = lens.accumulate(network(), batches())
    record = lens.inspection(state, release=True)
    assert state.layers == {}
    assert record.to_json() == lens.inspect(network(), batches()).to_json()


def test_large_tables_lie_beside_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = lens.inspect(network(), batches())
    path, beside = tmp_path / "a.json", tmp_path / "a.tables.safetensors"
    record.save(path)
    assert not beside.exists()
    text = record.to_json()
    assert Inspection.load(path).to_json() == Inspection.from_json(text).to_json() == text
    monkeypatch.setattr(inspection, "IN_JSON", 100)
    record.save(path)
    assert json.loads(path.read_text())["layers"][0]["class_mean"] == []
    assert Inspection.load(path).layers == record.layers
    again = Inspection.load(path).layers[1]
    assert again.histogram.dtype == np.int32
    assert again.class_mean.shape == (CLASSES, 10)

    content = beside.read_bytes()
    for broken in (b"", content[:-8]):
        beside.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.tables\.safetensors does not hold the tables"):
            Inspection.load(path)
    other = lens.inspect(network(), batches(classes=CLASSES - 1))
    other.save(tmp_path / "b.json")
    beside.write_bytes((tmp_path / "b.tables.safetensors").read_bytes())
    with pytest.raises(InputError, match="does not hold the tables"):
        Inspection.load(path)
    beside.unlink()
    without = Inspection.load(path)
    assert without.layers[0].firing.shape == (0, 0)
    assert without.layers[0].stages == record.layers[0].stages
    assert "J" in html.page(inspection_document(without), "en")
    with pytest.raises(InputError, match="without its tables by class"):
        lens.compare(record, without)


def test_the_separation_of_each_class() -> None:
    model = network()
    every = batches()
    record = lens.inspect(model, every, classes=[*map(str, range(CLASSES)), "absent"])
    with torch.no_grad():
        f = torch.cat([model.eval()(x) for x, _ in every]).numpy()
    y = torch.cat([b[1] for b in every]).numpy()
    means = np.stack([f[y == k].mean(0) for k in range(CLASSES)])
    spread = np.array([np.square(f[y == k] - means[k]).sum(1).mean() for k in range(CLASSES)])
    for k in range(CLASSES):
        square = np.square(means - means[k]).sum(1) / ((spread + spread[k]) / 2)
        expected = math.sqrt(min(np.delete(square, k)))
        assert record.separation[k] == pytest.approx(expected, rel=1e-9)
    assert math.isnan(record.separation[CLASSES])


def test_the_separation_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lens.inspect(network(), batches())
    monkeypatch.setattr(measures, "BLOCK", 3 * CLASSES)
    parts = lens.inspect(network(), batches())
    np.testing.assert_allclose(parts.separation, whole.separation, rtol=1e-9)
    np.testing.assert_allclose(
        parts.layers[0].gate_information, whole.layers[0].gate_information, atol=1e-12
    )


def test_images_of_several_sizes_count_by_their_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU()).double()
    nn.init.normal_(model[1].running_mean)
    loader = [
        (torch.randn(30, 2, side, side, dtype=torch.float64), torch.arange(30) % 3)
        for side in (5, 8, 12)
    ]
    (layer,) = lens.inspect(model, loader).layers
    assert layer.images == 90
    assert layer.invariance < 1e-10
    with torch.no_grad():
        seen = [(model[0](x).flatten(2).numpy(), y.numpy()) for x, y in loader]
    for k in range(3):
        values = np.concatenate([np.moveaxis(x[y == k], 1, 0).reshape(5, -1) for x, y in seen], 1)
        np.testing.assert_allclose(layer.class_mean[k], values.mean(1), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(layer.class_var[k], values.var(1), rtol=1e-5)
