"""Failure modes of batch norm that no other test covers, and the table that names a test for each."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normscope import BatchNorm1d, BatchNorm2d, ConditionalBatchNorm1d, InputError, guard

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (F\d\d) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_every_failure_mode_names_a_test_that_is_there_or_a_reason() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = {row[0]: row[2] for row in ROW.findall(text)}
    assert list(rows) == [f"F{n:02}" for n in range(1, 99)]
    sources: dict[str, str] = {}
    for row, covered in rows.items():
        named = re.findall(r"`(test\w+/|\w+/)?(\w+\.py)::(\w+)`", covered)
        assert named or covered.endswith("."), f"{row} has neither a test nor a sentence"
        for folder, file, name in named:
            path = ROOT / "tests" / folder / file
            source = sources.setdefault(str(path), path.read_text(encoding="utf-8"))
            assert f"def {name}(" in source, f"{row}: {folder}{file} has no {name}"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 5, 5)])
def test_a_mean_of_1e8_gives_what_the_rounded_data_say(shape: tuple[int, ...]) -> None:  # F02
    x = (random(*shape) + 1e8).float()  # in steps of 8
    layer = (BatchNorm1d if len(shape) == 2 else BatchNorm2d)(3, momentum=1.0)
    y = layer(x)
    rows = x.double().movedim(1, -1).reshape(-1, 3)
    var = rows.var(0, correction=0)
    torch.testing.assert_close(layer.running_mean.double(), rows.mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(layer.running_var.double(), rows.var(0), rtol=1e-4, atol=1e-6)
    expected = (rows - rows.mean(0)) / (var + 1e-5).sqrt()
    torch.testing.assert_close(
        y.double().movedim(1, -1).reshape(-1, 3), expected, rtol=1e-3, atol=1e-3
    )


def test_half_precision_sums_and_statistics_do_not_overflow() -> None:  # F07, F08
    x = (random(4096, 2) * 300 + 50).half()  # the sum is above 65504, and so is the variance
    layer = BatchNorm1d(2, momentum=1.0)
    y = layer(x)
    assert y.dtype is torch.float16
    assert layer.running_var.dtype is torch.float32
    torch.testing.assert_close(layer.running_var.double(), x.double().var(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(layer.running_mean.double(), x.double().mean(0), rtol=1e-3, atol=0.1)
    assert bool(layer.eval()(x).isfinite().all())


def test_statistics_beside_bfloat16_inputs_do_not_stall() -> None:  # F09
    layer = BatchNorm1d(2)
    for step in range(400):
        layer(random(64, 2, seed=step).add(10).bfloat16())
    torch.testing.assert_close(layer.running_mean, torch.full((2,), 10.0), rtol=5e-3, atol=0)


@pytest.mark.parametrize("eps", [math.nan, math.inf])
def test_an_eps_that_is_none_is_refused(eps: float) -> None:  # F10
    with pytest.raises(InputError, match="eps is"):
        BatchNorm1d(3, eps=eps)


def test_a_million_values_per_channel_lose_no_digits() -> None:  # F12
    x = (random(1_000_000, 2) + 3).float()
    layer = BatchNorm1d(2, momentum=1.0)
    layer(x)
    torch.testing.assert_close(layer.running_mean.double(), x.double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_var.double(), x.double().var(0), rtol=1e-5, atol=0)


def test_no_positions_and_no_channels_are_empty_outputs() -> None:  # F18
    layer = BatchNorm2d(3)
    y = layer(torch.zeros(2, 3, 0, 4))
    assert y.shape == (2, 3, 0, 4)
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    assert BatchNorm2d(0).eval()(torch.zeros(2, 0, 4, 4)).shape == (2, 0, 4, 4)


def test_an_average_over_all_batches_survives_any_counter() -> None:  # F21
    layer = BatchNorm1d(2, momentum=None)
    layer.num_batches_tracked.fill_(2**63 - 1)
    layer(random(8, 2).float())
    assert bool(layer.running_mean.isfinite().all())
    assert bool(layer.running_var.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_conditions_of_any_whole_number_type_are_alike(dtype: torch.dtype) -> None:  # F31
    x, ids = random(12, 3).float(), torch.arange(24)[::2] % 3  # with gaps in memory
    ways = [ConditionalBatchNorm1d(3, 3) for _ in range(2)]
    assert torch.equal(ways[0](x, ids.to(dtype)), ways[1](x, ids.contiguous()))


def test_a_rare_condition_has_an_average_of_its_own_batches() -> None:  # F35
    layer = ConditionalBatchNorm1d(3, 2, momentum=None)
    means = []
    for step in range(20):
        x = random(8, 3, seed=step).float() + step
        rare = step % 10 == 0
        layer(x, torch.full((8,), int(rare)))
        if rare:
            means.append(x.mean(0))
    torch.testing.assert_close(layer.running_mean[1], torch.stack(means).mean(0))
    assert layer.num_batches_tracked.tolist() == [18, 2]


def test_nan_under_guard_counts_nothing_and_stays_in_its_batch() -> None:  # F19, on torch's layer
    layer = nn.BatchNorm1d(3)
    layer(random(8, 3).float())
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with guard(layer, skip_nonfinite=True):
        layer(torch.full((8, 3), math.nan))
    for key in ("running_mean", "running_var"):
        assert torch.equal(layer.state_dict()[key], before[key])
