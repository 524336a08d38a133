"""What is read of a layer or of a checkpoint, and what can be said of its start."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.doctor.state import (
    LayerState,
    of_checkpoint,
    of_model,
    without_statistics,
)
from normscope.errors import ModelError


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


STATE = LayerState(
    "a", wide(0.19, 0), wide(0.81, 1), None, None, tracked=2, momentum=0.1, eps=1e-5,
    dtype=torch.float32,
)  # fmt: skip


def test_the_share_of_the_start_and_what_is_left_without_it() -> None:
    assert STATE.init_share == pytest.approx(0.81)
    mean, var = STATE.corrected() or (wide(), wide())
    torch.testing.assert_close(mean, wide(1, 0))
    torch.testing.assert_close(var, wide(0, 1))
    unknown: dict[str, Any]
    for unknown in ({"momentum": None}, {"tracked": None}, {"momentum": -0.1}, {"momentum": 1.1}):
        assert math.isnan(replace(STATE, **unknown).init_share)
        assert replace(STATE, **unknown).corrected() is None
    assert replace(STATE, momentum=1.0).init_share == 0
    assert replace(STATE, momentum=1.0).corrected() is None, "nothing is left of it"
    assert replace(STATE, momentum=0.0).init_share == 1
    assert replace(STATE, momentum=0.0).corrected() is None, "nothing else is there"
    assert replace(STATE, var=wide(0.8, 1)).corrected() is None, "refuted"
    assert replace(STATE, var=wide(0.81 * (1 - 5e-7), 1)).corrected() is not None, "rounding"
    fresh = replace(STATE, mean=wide(0, 0), var=wide(1, 1))
    assert fresh.fresh
    assert fresh.corrected() is None
    assert not replace(fresh, mean=wide(0, 0.1)).fresh
    assert not replace(fresh, var=wide(1, 0.9)).fresh


def test_what_a_model_holds() -> None:
    model: Any = nn.Sequential(
        nn.BatchNorm1d(2, eps=1e-3, momentum=None), nn.GroupNorm(1, 2),
        nn.BatchNorm1d(2, affine=False).half(), normscope.FrozenBatchNorm1d(2),
        nn.BatchNorm1d(2, track_running_stats=False),
    )  # fmt: skip
    model[0].num_batches_tracked.fill_(7)
    model[0].running_mean.fill_(3)
    first, second, third = of_model(model)
    assert (first.name, first.eps, first.momentum, first.tracked) == ("0", 1e-3, None, 7)
    assert (first.mean.tolist(), first.mean.dtype, first.dtype) == (
        [3, 3],
        torch.float64,
        torch.float32,
    )
    assert first.weight is not None
    assert not first.weight.requires_grad
    assert (first.module is model[0], first.unseen) == (True, ())
    assert (second.name, second.weight, second.bias, second.dtype) == (
        "2",
        None,
        None,
        torch.float16,
    )
    assert (second.momentum, second.tracked) == (0.1, 0)
    assert (third.name, third.momentum, third.tracked) == ("3", 0.1, 0)


def checkpoint(**more: Any) -> dict[str, Any]:
    return {"a.running_mean": torch.ones(2), "a.running_var": torch.ones(2), **more}


def test_what_a_checkpoint_holds() -> None:
    (state,) = of_checkpoint(checkpoint())
    assert (state.name, state.tracked, state.momentum, state.eps) == ("a", None, 0.1, 1e-5)
    assert (state.weight, state.bias, state.module) == (None, None, None)
    given = checkpoint(**{
        "a.weight": torch.full((2,), 2.0), "a.bias": torch.zeros(3),
        "a.num_batches_tracked": torch.tensor(5), "b.running_mean": torch.ones(2),
        "c.weight": torch.ones(2),
    })  # fmt: skip
    (state,) = of_checkpoint(given, momentum=0.3, eps=0.5)
    assert (state.tracked, state.momentum, state.eps, state.bias) == (5, 0.3, 0.5, None)
    assert state.weight is not None
    assert state.weight.tolist() == [2, 2]
    for count, tracked in ((-4, None), (0, 0)):
        (state,) = of_checkpoint(checkpoint(**{"a.num_batches_tracked": torch.tensor(count)}))
        assert state.tracked == tracked, "one below 0 has overflowed"
    (empty,) = of_checkpoint(checkpoint(**{"a.num_batches_tracked": torch.zeros(0).long()}))
    assert empty.tracked is None
    (alone,) = of_checkpoint({"running_mean": torch.ones(2), "running_var": torch.ones(2)})
    assert alone.name == "BatchNorm"
    own = normscope.passport(nn.Sequential(nn.BatchNorm1d(2, eps=0.25, momentum=0.7)))
    (known,) = of_checkpoint(nn.Sequential(nn.BatchNorm1d(2)).state_dict(), passport=own)
    assert (known.eps, known.momentum) == (0.25, 0.7)
    with pytest.raises(ModelError, match=r"a.running_mean is \(2,\) and running_var \(3,\); both"):
        of_checkpoint(checkpoint(**{"a.running_var": torch.ones(3)}))
    with pytest.raises(ModelError, match=r"is \(2, 1, 1\) and running_var \(2, 1, 1\); both must"):
        of_checkpoint({"a.running_mean": torch.ones(2, 1, 1), "a.running_var": torch.ones(2, 1, 1)})
    with pytest.raises(ModelError, match="holds no running_mean with a running_var"):
        of_checkpoint({"a.running_mean": torch.ones(2)})


def test_rows_that_were_never_updated() -> None:
    mean, var = torch.zeros(4, 2), torch.ones(4, 2)
    mean[1, 0], var[2, 1] = 1, 2
    tracked = torch.tensor([0, 0, 0, 0])
    held = {"a.running_mean": mean, "a.running_var": var, "a.num_batches_tracked": tracked}
    assert of_checkpoint(held)[0].unseen == (0, 3)
    held["a.num_batches_tracked"] = torch.tensor([3, 0, 0, 0])
    (state,) = of_checkpoint(held)
    assert (state.unseen, state.tracked) == ((3,), 3)
    held["a.num_batches_tracked"] = torch.tensor(0)
    assert of_checkpoint(held)[0].unseen == ()
    del held["a.num_batches_tracked"]
    assert of_checkpoint(held)[0].unseen == ()


def test_why_a_model_has_nothing_for_the_doctor() -> None:
    text = without_statistics(nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)))
    assert text.startswith("the model (Sequential) has no layer with running statistics (it normal")
    assert "normalises with GroupNorm, LayerNorm, which do the same in both modes)" in text
    assert "(it normalises" not in without_statistics(nn.Linear(2, 2))
    soft = normscope.ModeNorm1d(2, 2)
    assert "keeps running statistics in ModeNorm1d alone" in without_statistics(soft)
    start = {name: value.clone() for name, value in soft.named_buffers()}
    soft(torch.randn(8, 2))
    soft.reset_running_stats()
    assert all(torch.equal(start[name], value) for name, value in soft.named_buffers())
