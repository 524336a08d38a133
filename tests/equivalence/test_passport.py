"""The passport of a checkpoint: what it carries, and what is found with it alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from normscope import (
    apply_passport,
    convert,
    doctor,
    parity,
    passport,
    read_passport,
    write_passport,
)
from normscope.cli import app
from normscope.equivalence import compare_to_passport
from normscope.errors import FileError, InputError, ModelError
from normscope.records import Passport
from tests.equivalence.nets import batch, names_of, norms_of, trained

BATCHES = [batch("resnet", 10 + i) for i in range(6)]


def _codes(subject: Any, own: Passport) -> set[tuple[str, str]]:
    return {(found.norm, found.code) for found in compare_to_passport(subject, own)}


def test_what_it_says() -> None:
    net = trained("resnet")
    norms_of(net)[1].requires_grad_(False)
    own = passport(net)
    assert [n.name for n in own.norms] == names_of(net)
    assert {(n.eps, n.momentum, n.convention) for n in own.norms} == {(1e-5, 0.1, "unbiased")}
    assert [n.frozen for n in own.norms] == [False, True, False, False, False]
    assert own.data is None
    assert Passport.from_json(own.to_json()).to_json() == own.to_json()
    with pytest.raises(ModelError, match="no norm with running statistics"):
        passport(nn.Linear(2, 2))


def test_the_data_by_the_numbers() -> None:
    net = trained("resnet")
    state = [t.numpy().tobytes() for t in net.state_dict().values()]
    own = passport(net, [*BATCHES, BATCHES[0][:4]])
    assert [t.numpy().tobytes() for t in net.state_dict().values()] == state
    data = own.data
    assert (data.batches, data.samples, data.sizes, data.norm) == (7, 52, (8, 4), "norm")
    with torch.no_grad():
        stems = [net.stem(x).double() for x in (*BATCHES, BATCHES[0][:4])]
    inputs = torch.cat(stems)
    assert data.count == 52 * 144
    assert data.mean == pytest.approx(inputs.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert data.var == pytest.approx(inputs.var((0, 2, 3)).tolist(), rel=1e-5)
    first = own.norms[0]
    # batch means as independent units, against the formula written out
    stacked = torch.stack([x.mean((0, 2, 3)) for x in stems[:-1]])
    error = stacked.std(0) / len(BATCHES) ** 0.5 / inputs.var((0, 2, 3)).sqrt()
    assert first.mean_error == pytest.approx(float(error.pow(2).mean().sqrt()), rel=0.3)
    assert 0 < first.distance < 0.5
    reset = trained("resnet")
    reset.norm.reset_running_stats()
    assert passport(reset, BATCHES).norms[0].distance > 3 * first.distance


def test_a_rebuild_that_lost_eps_is_found_and_mended() -> None:
    """As yolox-nano: the checkpoint says nothing, the architecture has another default."""
    original = trained("crepe")
    own = passport(original)
    rebuilt = trained("crepe")
    for norm in norms_of(rebuilt):
        norm.eps, norm.momentum = 1e-5, 0.1
    rebuilt.load_state_dict(original.state_dict())
    every = {(name, code) for name in names_of(rebuilt) for code in ("eps", "momentum")}
    assert _codes(rebuilt, own) == every
    x = batch("crepe")
    found = parity(original, rebuilt, x, modes="eval")
    assert (found.first.name, found.why) == ("conv1_BN", "eps")
    assert apply_passport(rebuilt, own) == tuple(names_of(rebuilt))
    assert _codes(rebuilt, own) == set()
    assert parity(original, rebuilt, x).ok
    assert apply_passport(rebuilt, own) == ()
    with pytest.raises(InputError, match="does not have"):
        apply_passport(trained("mlp"), own)


def test_an_exporter_that_resets_statistics_is_found_both_ways() -> None:
    """As yolo11s behind PT2E: from the passport alone, and by running both."""
    net, x = trained("crepe"), batch("crepe")
    own = passport(net)
    program = torch.export.export(trained("crepe"), (x,)).module()
    assert _codes(dict(program.named_buffers()), own) == set()
    for name, buffer in program.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.fill_(name.endswith("var"))
    every = {(name, "reset") for name in names_of(net)}
    assert _codes(dict(program.named_buffers()), own) == _codes(program.state_dict(), own) == every
    found = parity(net, program, x)
    assert (found.first.name, found.why) == ("conv1_BN", "reset")
    assert [norm.status for norm in found.norms] == ["differs"] * len(every)


def test_statistics_that_were_overwritten_since() -> None:
    """As after an init, or a dummy forward."""
    net = trained("resnet")
    own = passport(net)
    state = {key: t.clone() for key, t in net.state_dict().items()}
    assert _codes(state, own) == set()
    state["norm.running_mean"].zero_()
    state["norm.running_var"].fill_(1)
    state["blocks.1.bn2.running_var"] *= 1.01
    assert _codes(state, own) == {("norm", "reset"), ("blocks.1.bn2", "overwritten")}
    net.train()(BATCHES[0])
    assert {code for _, code in _codes(net.eval(), own)} == {"overwritten"}
    far = compare_to_passport(net, own)
    near = trained("resnet")
    for norm in norms_of(near):
        norm.momentum = 0.01
    near.train()(BATCHES[0])
    less = [m for m in compare_to_passport(near, own) if m.code == "overwritten"]
    assert all(0 < a.amount < b.amount for a, b in zip(less, far, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_is_not_another_statistic(dtype: torch.dtype) -> None:
    net = trained("resnet")
    own = passport(net)
    cast = trained("resnet").to(dtype)
    assert _codes(cast, own) == set()
    with torch.no_grad():
        cast.norm.running_mean += 0.2
    assert _codes(cast, own) == {("norm", "overwritten")}


def test_other_names_and_layers() -> None:
    net = trained("resnet")
    own = passport(net)
    assert _codes(torch.compile(net, backend="eager"), own) == set()
    wrapped = {f"module.{key}": t for key, t in net.state_dict().items()}
    assert _codes(wrapped, own) == set()
    ours = trained("resnet")
    convert(ours, "batch")
    assert _codes(ours, own) == set()
    ours.blocks[0].bn1 = nn.Identity()
    ours.norm = nn.BatchNorm2d(9)
    assert _codes(ours, own) == {("blocks.0.bn1", "missing"), ("norm", "channels")}


def test_it_travels_with_the_file(tmp_path: Path) -> None:
    net = trained("resnet")
    own, state = passport(net), net.state_dict()
    file = tmp_path / "net.safetensors"
    save_file(state, file, {"format": "pt"})
    assert read_passport(file) is None
    assert write_passport(file, own) == file
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["format"] == "pt"
    assert all(torch.equal(t, state[key]) for key, t in load_file(file).items())
    assert read_passport(file).to_json() == own.to_json()

    torch.save(state, tmp_path / "net.pt")
    before = (tmp_path / "net.pt").read_bytes()
    assert write_passport(tmp_path / "net.pt", own) == tmp_path / "net.pt.passport.json"
    assert (tmp_path / "net.pt").read_bytes() == before
    assert read_passport(tmp_path / "net.pt").to_json() == own.to_json()
    (tmp_path / "net.pt.passport.json").write_text('{"kind": "passport"}')
    with pytest.raises(FileError, match="damaged passport"):
        read_passport(tmp_path / "net.pt")
    short = json.loads(own.to_json())
    short["norms"][0]["sketch"].pop()
    (tmp_path / "net.pt.passport.json").write_text(json.dumps(short))
    with pytest.raises(FileError, match="damaged passport"):
        read_passport(tmp_path / "net.pt")
    with pytest.raises(FileError, match="there is no checkpoint"):
        read_passport(tmp_path / "missing.pt")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:60])
    with pytest.raises(FileError, match="truncated or damaged"):
        read_passport(tmp_path / "cut.safetensors")


def test_diagnose_no_longer_guesses(tmp_path: Path) -> None:
    net = trained("crepe")
    file = tmp_path / "net.safetensors"
    save_file(net.state_dict(), file)
    skipped = {s.code: s.reason for s in doctor.diagnose(file).skipped}
    assert skipped["NS032"] == "doctor.skip.passport"
    write_passport(file, passport(net))
    found = doctor.diagnose(file)
    assert "NS032" in found.passed
    own = {
        s.name: (s.eps, s.momentum)
        for s in doctor.state.of_checkpoint(net.state_dict(), passport=passport(net))
    }
    assert set(own.values()) == {(0.0010000000474974513, 0.0)}
    state = load_file(file)
    state["conv2_BN.running_mean"] += 0.5
    with safe_open(file, "pt") as opened:
        save_file(state, tmp_path / "changed.safetensors", opened.metadata())
    found = doctor.diagnose(tmp_path / "changed.safetensors", select=["NS032"])
    assert [(f.layer, f.facts["kind"]) for f in found.findings] == [("conv2_BN", "overwritten")]
    rebuilt = trained("crepe")
    norms_of(rebuilt)[0].eps = 1e-5
    found = doctor.diagnose(rebuilt, select=["NS032"], passport=passport(net))
    assert [(f.layer, f.facts["kind"]) for f in found.findings] == [("conv1_BN", "eps")]


MODEL = """
from tests.equivalence.nets import trained, batch
def crepe(): return trained("crepe")
def rebuilt():
    net = trained("crepe")
    net.conv2_BN.eps = 1e-5
    return net
def data(): return [batch("crepe", i) for i in range(3)]
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    (tmp_path / "m.py").write_text(MODEL)
    weights, model = tmp_path / "w.safetensors", f"{tmp_path / 'm.py'}:crepe"
    save_file(trained("crepe").state_dict(), weights)
    run = CliRunner().invoke
    none = run(app, ["passport", "--weights", str(weights)])
    assert "has no passport" in str(none.exception)
    given = ["passport", "--model", model, "--weights", str(weights)]
    loader = ["--loader", f"{tmp_path / 'm.py'}:data"]
    made = run(app, [*given, *loader, "--write", "--lang", "en"])
    assert made.exit_code == 0, made.output
    assert "3 batches with 24 samples" in made.output
    checked = run(app, ["passport", "--weights", str(weights), "--json"])
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["passport"]["data"]["batches"] == 3
    page = tmp_path / "page.html"
    given[2] = f"{tmp_path / 'm.py'}:rebuilt"
    wrong = run(app, [*given, "--lang", "en", "--html", str(page)])
    assert wrong.exit_code == 1
    assert "1 of 3 norms are not what the passport says" in " ".join(wrong.output.split())
    assert "conv2_BN" in page.read_text(encoding="utf-8")
    shutil.copy(weights, tmp_path / "other.safetensors")
    told = run(app, ["inspect", *given[1:], *loader])
    assert "the weights have a passport" in told.stderr or "权重带有护照" in told.stderr
