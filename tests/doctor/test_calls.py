"""A layer that runs several times, split into one set of statistics per call."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscope import InputError, ModelError
from normscope.doctor import diagnose, repair, split
from normscope.doctor.calls import PerCall
from normscope.probe.load import read_weights


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        calls = [self.norm(self.trunk(part)).relu() for part in (x, 5 * x + 4)]
        scores: Tensor = self.head(torch.cat(calls, 1))
        return scores


def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(200, 4).split(40))


def test_a_reused_layer_is_split_measured_and_undone() -> None:
    model = Twice().eval()
    for x in batches() * 12:
        model.train()(x)
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = diagnose(model, batches())
    assert found.codes[0] == "NS017"
    done = repair(model, found, batches())
    assert done.record.kept == ("split",)
    assert done.record.after.gap < 0.6 * done.record.before.gap
    copied = copy.deepcopy(model)
    assert torch.equal(copied(batches()[0]), model(batches()[0]))
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in Twice().parameters()
    )
    done.undo()
    assert isinstance(model.norm, nn.BatchNorm1d)
    assert not model._forward_pre_hooks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_each_copy_holds_the_moments_of_its_call_and_loads_again(tmp_path: Path) -> None:
    model = Twice().eval()
    x = torch.cat(batches())
    found = diagnose(model, batches())
    done = repair(model, found, batches(), held_out=batches(), remedies=["split"], force=True)
    with torch.no_grad():
        for norm, part in zip(model.norm.calls, (x, 5 * x + 4), strict=True):
            entry = model.trunk(part).double().numpy()
            np.testing.assert_allclose(norm.running_mean, entry.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norm.running_var, entry.var(0, ddof=1), rtol=1e-4)
    done.save(tmp_path / "split.safetensors")
    other = split(Twice(), {"norm": 2}).eval()
    other.load_state_dict(read_weights(tmp_path / "split.safetensors"))
    assert torch.equal(other(x), model(x))


def test_a_split_layer_counts_anew_and_refuses_a_call_too_many() -> None:
    model = split(Twice(), {"norm": 2}).eval()
    plain = Twice().eval()
    for x in batches():
        assert torch.equal(model(x), plain(x))
    with pytest.raises(ModelError, match="split for 2 calls runs once more"):
        model.norm(torch.randn(3, 8))
    with pytest.raises(InputError, match="no layer inside the model is called 'x'"):
        split(Twice(), {"x": 2})
    with pytest.raises(InputError, match="2 or more are needed"):
        split(Twice(), {"norm": 1})


def test_copies_take_turns_and_share_what_is_learned() -> None:
    layer: Any = nn.BatchNorm1d(2)
    made: Any = PerCall(layer, 3)
    assert made.calls[0] is layer
    assert len(made.calls) == 3
    assert len(list(made.parameters())) == 2
    for other in made.calls[1:]:
        assert other.weight is layer.weight
        assert other.running_mean is not layer.running_mean
    for number in range(3):
        assert made.made == number
        made(torch.randn(4, 2) + number)
    assert [int(norm.num_batches_tracked) for norm in made.calls] == [1, 1, 1]
    with pytest.raises(ModelError, match="split for 3 calls runs once more in this forward"):
        made(torch.randn(4, 2))
