"""The command line as a user meets it: one sentence and exit code 2 for what can be mended."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import normscope


def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "normscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "LANG": "C.UTF-8", **env},
        timeout=120,
        check=False,
    )


def test_importing_the_package_and_asking_for_help_imports_no_torch() -> None:
    code = "import sys, normscope, normscope.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    helped = run("--help")
    assert helped.returncode == 0
    for command in ("explain", "train", "inspect", "report", "env"):
        assert command in helped.stdout


def test_every_public_name_resolves() -> None:
    for name in normscope.__all__:
        assert getattr(normscope, name) is not None
    with pytest.raises(AttributeError, match="normscope has no 'nothing'; it has"):
        _ = normscope.nothing


def test_explain_json_holds_the_numbers_of_the_worked_example() -> None:
    done = run("explain", "--json")
    assert done.returncode == 0, done.stderr
    stages = {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert stages["standardised_per_class"]["classes"][0]["values"] == pytest.approx(
        [-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-3
    )
    assert stages["scaled_shifted"]["classes"][1]["values"] == pytest.approx(
        [0.317, 2.106, 3.894, 5.683], abs=1e-3
    )
    accuracies = {name: stage["threshold_accuracy"] for name, stage in stages.items()}
    assert accuracies["standardised_per_class"] == 4 / 8
    assert accuracies["scaled_shifted"] == 7 / 8
    for name in ("learned_distribution", "learned_classification", "learned_joint"):
        assert accuracies[name] == accuracies["identity"] == accuracies["joint"] == 1


def test_train_inspect_and_report_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (
        "train", "--data", "iris", "--norm", "none,batch", "--seeds", "1",
        "--epochs", "3", "--no-sweep", "--out", out,
    )  # fmt: skip
    trained = run(*arguments, "--json")
    assert trained.returncode == 0, trained.stderr
    record = json.loads(trained.stdout)
    assert record["complete"]
    assert [row["norm"] for row in record["rows"]] == ["none", "batch"]
    assert record["inspection"]["invariance"] < 1e-6
    assert record["inspection"]["model"] == "mlp, batch"  # none has no layers to look into
    for name in ("run.json", "telemetry.jsonl", "model.safetensors", "report.html"):
        assert (out / name).stat().st_size > 0
    again = run(*arguments)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    inspected = run("inspect", "--model", out, "--lang", "zh")
    assert inspected.returncode == 0, inspected.stderr
    shown = run("report", out, "--html", tmp_path / "page.html", "--lang", "zh")
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


BAD = [
    (("explain", "--class", "1,2", "--class", "1,x"), "--class is '1,x'; numbers"),
    (("explain", "--class", "1,2", "--class", "1,2,3"), "class 1 has 2 values and class 2 has 3"),
    (("explain", "--class", "5,5", "--class", "1,2"), "variance"),
    (("explain", "--class", "5,6"), "class"),
    (("explain", "--lang", "fr"), "'--lang': 'fr' is not one of 'en', 'zh'"),
    (("explain", "--html", "/proc/nothing/x.html"), "cannot be written"),
    (("train", "--data", "missing.csv"), "missing.csv"),
    (("train", "--norm", "magic"), "magic"),
    (("train", "--net", "magic"), "magic"),
    (("train", "--out", "/proc/nothing"), "cannot be written"),
    (("inspect", "--model", "nowhere:factory"), "nowhere"),
    (("report", "missing"), "there is no record missing"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    told = [line for line in done.stderr.splitlines() if "for the first time" not in line]
    assert len(told) == 1, done.stderr  # beside what a machine without compiled kernels says
    assert re.search(message, done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing left half-written


def test_a_pickle_bomb_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (marker,))  # type: ignore[return-value]

    bomb = tmp_path / "weights.pt"
    bomb.write_bytes(pickle.dumps({"weight": Bomb()}))
    net = tmp_path / "net.py"
    net.write_text("import torch\ndef make():\n    return torch.nn.BatchNorm1d(64)\n")
    done = run("inspect", "--model", f"{net}:make", "--weights", bomb)
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if "for the first time" not in line]
    assert len(told) == 1, done.stderr  # beside what a machine without compiled kernels says
    assert not marker.exists()


NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4))
"""


@pytest.mark.slow
def test_convert_proves_what_it_writes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    common = (
        "convert",
        "--model",
        f"{tmp_path}/net.py:make",
        "--out",
        tmp_path / "new.safetensors",
    )
    proof = ("--verify", "--input", "6,3,8,8")
    done = run(*common, "--to", "ghost", "--option", "ghost_size=2", *proof, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [c["after"] for c in record["changed"]] == ["GhostBatchNorm2d"]
    assert [left["name"] for left in record["kept"]] == ["3"]
    differences = {(c["mode"], c["what"]): c["difference"] for c in record["comparisons"]}
    assert differences["eval", "outputs"] < 1e-12
    assert differences["train", "outputs"] > 1e-3, "chunks are normalised apart"
    tensors = load_file(tmp_path / "new.safetensors")
    assert tensors["1.running_mean"].shape == (4,)
    # what was written is what the same model loads
    again = run(*common, "--weights", tmp_path / "new.safetensors", "--to", "batch", *proof)
    assert again.returncode == 0, again.stderr
    assert "computes and trains as it did" in " ".join(again.stdout.split())
    fused = run(*common, "--to", "batch", "--fuse", *proof, "--json")
    assert fused.returncode == 0, fused.stderr
    record = json.loads(fused.stdout)
    assert record["fused"] == [{"name": "1", "act": "relu", "place": "2", "residual": False}]
    assert all(c["difference"] <= c["allowed"] for c in record["comparisons"])
    (tmp_path / "new.safetensors").unlink()
    for arguments, sentence in (
        (("--to", "batch", "--verify"), "the shape of a batch is needed"),
        (("--to", "batch", *proof[:2], "6,3"), "cannot be verified: in eval() it fails"),
        (("--to", "ghost", "--option", "ghost_size"), "write name=value"),
        (("--to", "bach"), "is not one of 'torch'"),
        (("--to", "batch", "--only", "9"), "no normalisation layer is called '9'"),
    ):
        bad = run(*common, *arguments)
        assert (bad.returncode, bad.stdout) == (2, ""), bad.stdout
        assert sentence in bad.stderr
        assert len(bad.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "new.safetensors").exists()


def test_diagnose_and_repair_from_a_checkpoint_and_with_data(tmp_path: Path) -> None:
    import torch

    from normscope.experiment.data import load
    from normscope.experiment.nets import build
    from tests.doctor.patients import trained

    (tmp_path / "net.py").write_text(
        "from normscope.experiment.data import load\n"
        "from normscope.experiment.nets import build\n"
        "def make():\n"
        "    return build('mlp', 'batch', load('digits'), 0)\n"
    )
    model = trained(build("mlp", "batch", load("digits"), 0), epochs=2)
    model.get_submodule("norm2").running_var[3] = -1
    weights, out = tmp_path / "sick.pt", tmp_path / "new.safetensors"
    torch.save(model.state_dict(), weights)
    before = weights.read_bytes()
    alone = run("diagnose", "--weights", weights, "--json")
    assert alone.returncode == 1, alone.stderr
    record = json.loads(alone.stdout)
    assert {f["code"] for f in record["findings"]} == {
        "NS002",
        "NS009",
    }  # 40 batches leave 1.5 % of the start
    assert run("explain", "ns009", "--lang", "zh").returncode == 0
    wrong = run("explain", "NS900")
    assert (wrong.returncode, "there is no check 'NS900'" in wrong.stderr) == (2, True)
    both = ("--model", f"{tmp_path / 'net.py'}:make", "--weights", weights, "--data", "digits")
    page = tmp_path / "page.html"
    mended = run("repair", *both, "--live", "digits", "--out", out, "--json", "--html", page)
    assert mended.returncode == 0, mended.stderr
    assert any(trial["kept"] for trial in json.loads(mended.stdout)["repair"]["trials"])
    assert (load_file(out)["norm2.running_var"] > 0).all()
    assert weights.read_bytes() == before
    assert "NS009" in page.read_text()
    refused = run("repair", "--weights", weights, "--out", weights, "--force")
    assert refused.returncode == 2
    assert weights.read_bytes() == before
    for missing in (
        run("diagnose", "--data", "iris"),
        run("repair", "--weights", weights, "--live", "iris", "--out", out, "--force"),
    ):
        assert (missing.returncode, "--model" in missing.stderr) == (2, True)


def test_key_chooses_one_of_several_state_dicts(tmp_path: Path) -> None:
    import torch

    good, bad = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    bad.running_var.fill_(-1)
    path, model = tmp_path / "gan.pt", "torch.nn:Identity"
    torch.save({"g": good.state_dict(), "g_ema": bad.state_dict(), "step": 5}, path)
    done = run("diagnose", "--weights", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "several state dicts: 'g', 'g_ema'" in done.stderr
    done = run("inspect", "--model", model, "--weights", path, "--key", "step")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no state dict 'step'; it has 'g', 'g_ema'" in done.stderr
    assert run("diagnose", "--weights", path, "--key", "g_ema").returncode == 1


def test_version_and_what_to_try_first() -> None:
    assert run("--version").stdout == f"normscope {normscope.__version__}\n"
    alone = run()
    assert alone.returncode == 0
    tried = [
        line.split()[1] for line in alone.stdout.splitlines() if line.startswith("  normscope")
    ]
    assert tried == ["explain", "train", "inspect", "diagnose"]
    listed = run("-h").stdout
    assert "..." not in listed.replace("[ARGS]...", ""), "a summary is cut"
    assert all(f"  {name} " in listed for name in tried)
    unknown = run("explain", "NS999")
    assert unknown.returncode == 2
    assert "normscope explain --checks lists them" in unknown.stderr
    checks = run("explain", "--checks")
    assert "NS003  Statistics that are not those of the data" in checks.stdout.splitlines()
    titles = json.loads(run("explain", "--checks", "--json", "--lang", "zh").stdout)
    assert titles.keys() == {line.split()[0] for line in checks.stdout.splitlines()}
