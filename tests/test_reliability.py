"""Failure modes of batch norm that no other test covers, and the table that names a test for each."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope import (
    BatchNorm1d,
    BatchNorm2d,
    ConditionalBatchNorm1d,
    FrozenBatchNorm1d,
    InputError,
    diagnose,
    guard,
)
from normscope.functional import batch_norm

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


@pytest.mark.parametrize("kind", [BatchNorm1d, FrozenBatchNorm1d, ConditionalBatchNorm1d])
def test_an_eps_that_is_none_is_refused(kind: Any) -> None:  # F10
    more = (2,) if kind is ConditionalBatchNorm1d else ()
    for eps in (math.nan, math.inf):
        with pytest.raises(InputError, match="^eps is .*; it must be a finite number above 0"):
            kind(3, *more, eps=eps)
    for eps in (math.nan, -1e-5):
        layer = BatchNorm1d(3)
        layer.eps = eps  # later; torch takes one below 0 until the first call
        with pytest.raises(ValueError, match="eps must be positive"):
            layer(random(8, 3).float())
        assert (layer.running_mean == 0).all(), "refused before anything changes"


def test_an_eps_of_zero_is_refused_where_the_batch_normalises() -> None:  # F10
    layer, torchs = BatchNorm1d(3, eps=0), nn.BatchNorm1d(3, eps=0)
    x = random(8, 3).float()
    for one in (layer, torchs):
        with pytest.raises(ValueError, match="batch_norm eps must be positive during training"):
            one(x)
    torch.testing.assert_close(layer.eval()(x), torchs.eval()(x))


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


@pytest.mark.parametrize("counter", [2**63 - 1, -(2**63), -1, -7])
@pytest.mark.parametrize("rows", [8, 4096])  # by the loops, and by torch's functions
def test_an_average_over_all_batches_survives_any_counter(counter: int, rows: int) -> None:  # F21
    layer = BatchNorm1d(2, momentum=None)
    layer.num_batches_tracked.fill_(counter)
    x = random(rows, 2).float()
    layer(x)
    if counter > 0:  # it has overflowed: what is stored stays as good as it was
        assert layer.running_mean.abs().max() < 1
    else:  # none of its batches is known
        torch.testing.assert_close(layer.running_mean, x.mean(0))
    assert (layer.running_var > 0).all()
    layer.momentum, layer.running_mean[0] = 0.1, 1.0
    assert "NS002" not in diagnose(layer).codes, "nothing is known of a counter below 0"


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


def test_two_values_per_channel_leave_the_sign_and_are_named() -> None:  # F16
    model = nn.Sequential(BatchNorm1d(3, eps=1e-12))
    batches = list(random(40, 3).float().split(2))
    for x in batches:
        assert torch.allclose(model.train()(x).detach().abs(), torch.ones(()), atol=1e-2)
    (found,) = diagnose(model.eval(), batches, select=["NS007"]).findings
    assert (found.measured, found.layer) == (2, "0")


def test_the_operator_that_autograd_asks_for_keeps_the_rules_of_operators() -> None:  # F59
    x = random(6, 3)
    table = torch.stack([x.mean(0), (x.var(0, correction=0) + 1e-5).rsqrt()]).unsqueeze(1)
    inverse = torch.full((1, 1), 1 / 6, dtype=torch.float64)
    found = torch.library.opcheck(
        torch.ops.normscope.backward_by_reference.default,
        (random(6, 3, seed=1), x, None, 1, None, None, None, None, 0, table, inverse, True),
        test_utils=("test_schema", "test_faketensor"),
    )
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("rows", [6, 600])
def test_an_update_of_the_statistics_takes_no_part_in_the_gradient(rows: int) -> None:  # F61
    """Two derivatives of a call that changes buffers; they change once, and torch is told so."""
    mean, var = torch.zeros(2).double(), torch.ones(2).double()
    x, weight = random(rows, 2).requires_grad_(), random(2, seed=1).requires_grad_()
    versions = mean._version, var._version
    y = batch_norm(x, mean, var, weight, training=True, momentum=1.0)
    assert not mean.requires_grad
    assert (mean._version > versions[0], var._version > versions[1]) == (True, True)
    torch.testing.assert_close(mean, x.detach().mean(0))
    held = mean.clone(), var.clone()
    plain = batch_norm(x, weight=weight, training=True)
    found = []
    for output in (y, plain):
        first = torch.autograd.grad((output**3).sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), (x, weight))
        found.append([*first, *second])
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(mean, held[0]), "no derivative updates once more"
    assert torch.equal(var, held[1])
