"""A checkpoint without its model: its batch norms as modules, and back under the same names."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from normscope.cli import main
from normscope.doctor.checkpoint import merged, skeleton
from normscope.errors import ModelError


def checkpoint() -> dict[str, Tensor]:
    """Of a network with norms at two depths, one without scale and shift, one by condition."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    model.append(nn.BatchNorm1d(2, affine=False))
    model(torch.randn(8, 3))
    nn.init.normal_(model[1][0].weight)
    state = model.state_dict()
    state["by.running_mean"], state["by.running_var"] = torch.zeros(3, 2), torch.ones(3, 2)
    state["odd.running_mean"], state["odd.running_var"] = torch.zeros(2), torch.ones(2)
    state["odd.weight"] = torch.ones(2, dtype=torch.int64)
    state["odd.bias"] = torch.ones(2, 1)
    return state


def test_the_norms_of_a_checkpoint_stand_under_their_names_with_its_numbers() -> None:
    state = checkpoint()
    before = {key: value.clone() for key, value in state.items()}
    model = skeleton(state, momentum=0.3, eps=1e-3)
    norms: dict[str, Any] = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)
    }
    assert list(norms) == ["1.0", "2", "odd"], "not those by condition"
    for name, norm in norms.items():
        assert (norm.momentum, norm.eps, norm.training) == (0.3, 1e-3, False)
        assert torch.equal(norm.running_mean, state[f"{name}.running_mean"])
        assert torch.equal(norm.running_var, state[f"{name}.running_var"])
        assert norm.num_features == len(norm.running_mean)
    assert torch.equal(norms["1.0"].weight, state["1.0.weight"])
    assert torch.equal(norms["1.0"].bias, state["1.0.bias"])
    assert int(norms["1.0"].num_batches_tracked) == 1
    assert (norms["2"].weight, norms["2"].bias) == (None, None)
    assert norms["odd"].num_batches_tracked is None
    assert (norms["odd"].weight, norms["odd"].bias) == (None, None), "they do not fit"
    for norm in norms.values():
        norm.running_mean.fill_(7)
    with torch.no_grad():
        norms["1.0"].weight.fill_(7)
    assert all(torch.equal(state[key], value) for key, value in before.items()), "it has its own"


def test_what_was_mended_goes_back_to_its_place_and_the_rest_stays() -> None:
    state = checkpoint()
    model = skeleton(state)
    assert {k: id(v) for k, v in merged(state, nn.Module()).items()} == {
        k: id(v) for k, v in state.items()
    }
    with torch.no_grad():
        model.get_submodule("1.0").running_var.fill_(4)
        model.get_submodule("1.0").weight.fill_(3)
    back = merged(state, model)
    changed = {key for key in state if not torch.equal(back[key], state[key])}
    assert changed == {"1.0.running_var", "1.0.weight"}
    assert back.keys() == state.keys()
    assert (back["1.0.running_var"] == 4).all()


def test_the_state_of_one_norm_has_no_prefix() -> None:
    state = nn.BatchNorm1d(3).state_dict()
    model = skeleton(state)
    assert [name for name, _ in model.named_children()] == ["BatchNorm"]
    model.get_submodule("BatchNorm").running_mean.fill_(5)
    assert (merged(state, model)["running_mean"] == 5).all()
    with pytest.raises(ModelError, match="holds no running_mean"):
        skeleton({"weight": torch.ones(3)})


def test_a_checkpoint_alone_is_repaired_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = 3 + torch.randn(64, 4)
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    model(x)  # one batch of momentum 0.1: nine tenths of the statistics are the start
    torch.save(model.state_dict(), tmp_path / "cold.pt")
    given = ["repair", "--weights", str(tmp_path / "cold.pt"), "--out", str(tmp_path / "new.st")]
    monkeypatch.setattr(sys, "argv", ["normscope", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "nothing can judge a repair without data" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["normscope", *given, "--force", "--json"])
    with contextlib.suppress(SystemExit):
        main()
    trials = json.loads(capsys.readouterr().out)["repair"]["trials"]
    assert [trial["layers"] for trial in trials if trial["kept"]] == [["0.0"]]
    new = load_file(tmp_path / "new.st")
    torch.testing.assert_close(new["0.0.running_mean"], x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new["0.0.running_var"], x.var(0), rtol=1e-4, atol=1e-4)
    assert new.keys() == model.state_dict().keys()
    assert torch.equal(new["0.1.weight"], model[0][1].weight)
