"""Models by name, and checkpoints that are broken, wrapped, huge or hostile."""

import io
import os
import pickle
import sys
import textwrap
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from normscope.errors import FileError, InputError, MissingExtraError, ModelError, NormscopeError
from normscope.probe import load
from normscope.probe.load import load_model, read_weights


def net() -> nn.Module:
    """A factory that the specs below can name."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state, "loss": torch.zeros(())},
        lambda state: {"model": {"state_dict": state}},
    ],
    ids=["plain", "state_dict", "model", "nested"],
)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_torch_checkpoints(tmp_path: Path, wrap: Callable[[Any], Any], old: bool) -> None:
    state = net().state_dict()
    path = saved(tmp_path / "w.pt", wrap(state), _use_new_zipfile_serialization=not old)
    assert equal(read_weights(path), state)


def test_safetensors(tmp_path: Path) -> None:
    state = net().state_dict()
    path = tmp_path / "w.bin"  # what a file is does not depend on its name
    safetensors.torch.save_file(state, path)
    assert equal(read_weights(path), state)


@pytest.mark.parametrize(
    "rename",
    ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.{}"],
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, rename: str) -> None:
    state = net().state_dict()
    path = saved(tmp_path / "w.pt", {rename.format(name): t for name, t in state.items()})
    model = load_model(f"{__file__}:net", path)
    assert equal(model.state_dict(), state)


def test_a_prefix_that_the_model_has_stays(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from torch import nn\ndef net():\n    return nn.ModuleDict({'module': nn.Linear(2, 3)})\n"
    )
    state = nn.ModuleDict({"module": nn.Linear(2, 3)}).state_dict()
    model = load_model(f"{tmp_path / 'made.py'}:net", saved(tmp_path / "w.pt", state))
    assert equal(model.state_dict(), state)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_bomb_is_not_run(tmp_path: Path, old: bool, inside: bool) -> None:
    marker = tmp_path / "it ran"
    content = {"state_dict": {"w": torch.ones(2), "x": Bomb(marker)}} if inside else Bomb(marker)
    path = saved(tmp_path / "w.pt", content, _use_new_zipfile_serialization=not old)
    with pytest.raises(FileError, match=r"asks for (posix|nt)\.mkdir .* nothing was run"):
        read_weights(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # the bomb is a bomb
    assert marker.exists()


def test_a_bare_pickle_is_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(FileError, match="a bare pickle"):
        read_weights(path)
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"asks for torch\.nn\.modules"):
        read_weights(saved(tmp_path / "w.pt", net()))


def test_more_values_than_the_file_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"big": torch.zeros(1).expand(10**12)})
    assert path.stat().st_size < 10_000
    with pytest.raises(FileError, match=r"claims 1,000,000,000,000 values for big and holds 1;"):
        read_weights(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.sparse_coo_tensor(size=(10**9,), check_invariants=True),
        torch.empty(10**9, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_values_that_are_not_there(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(FileError, match="claims 1,000,000,000 values for w and holds 0"):
        read_weights(saved(tmp_path / "w.pt", {"w": tensor}))


def test_a_compressed_checkpoint(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"w": torch.zeros(10**6)})
    squeezed = tmp_path / "z.pt"
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert squeezed.stat().st_size < path.stat().st_size / 100
    with pytest.raises(FileError, match="is a compressed archive"):
        read_weights(squeezed)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def torch_bytes(keep: float) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(1000.0)}, buffer)
    return buffer.getvalue()[: int(keep * buffer.tell())]


def safe_bytes(keep: float) -> bytes:
    data = safetensors.torch.save({"w": torch.arange(1000.0)})
    return data[: int(keep * len(data))]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (torch_bytes(0.5), "is truncated or damaged"),
        (torch_bytes(0.99), "is truncated or damaged"),
        (safe_bytes(0.5), "is truncated or damaged"),
        (b"\xff" * 7 + b"\x7f{" + bytes(100), "is truncated or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE HTML><html><body>Sign in</body></html>", "is a web page"),
        (b"epoch,loss\n1,0.3\n", "is text"),
        (b"\x7fELF\0\0\0\0\0\0\0\0\0", "is no checkpoint"),
        (zipped(readme=b"hello"), "is a zip archive without a checkpoint"),
        (zipped(**{"constants.pkl": b"", "data.pkl": b""}), "is a TorchScript program"),
        (zipped(**{"data.pkl": b"garbage", "version": b"3\n"}), "is truncated or damaged|asks for"),
        (pickle.dumps([1, 2]), "is a bare pickle"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad\n<b>.pt"
    path.write_bytes(content)
    with pytest.raises(FileError, match=sentence) as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)
    assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2)], ids=str)
def test_a_checkpoint_without_weights(tmp_path: Path, content: Any) -> None:
    with pytest.raises(FileError, match="holds no weights"):
        read_weights(saved(tmp_path / "w.pt", content))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(FileError, match="there is no checkpoint"):
        read_weights(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FileError, match="is no plain file"):
        read_weights(tmp_path / "pipe.pt")


def test_a_file_and_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_it.py").write_text("WIDTH = 5\n")
    path = tmp_path / "nets.py"
    path.write_text(
        textwrap.dedent("""
        from __future__ import annotations
        from dataclasses import dataclass
        from torch import nn
        from beside_it import WIDTH

        @dataclass
        class Config:
            width: int = WIDTH

        def make():
            return nn.Linear(2, Config().width)

        ready = nn.Linear(2, 7)
        wrong = lambda: 3
        number = 4
        def broken():
            raise RuntimeError("first line\\nsecond")
        """)
    )
    before = list(sys.path)
    assert load_model(f"{path}:make").out_features == 5
    assert load_model(f"{path}:ready").out_features == 7
    monkeypatch.chdir(tmp_path)
    assert load_model("nets:make").out_features == 5
    assert sys.path == before
    for name, sentence in {
        "wrong": "gives int; it must give a torch.nn.Module",
        "number": "gives int",
        "none": "has no 'none'",
        "broken": r"broken\(\) failed: RuntimeError: first line$",
    }.items():
        with pytest.raises(ModelError, match=sentence):
            load_model(f"nets.py:{name}")
    for name in ("nets", "beside_it", "normscope_file_nets"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("spec", "error", "sentence"),
    [
        ("resnet18", InputError, "write pkg.module:factory, path/file.py:factory or timm:NAME"),
        (":net", InputError, "names no model"),
        ("net:", InputError, "names no model"),
        ("no_such_package.nets:make", ModelError, "cannot be imported: ModuleNotFoundError"),
        ("no_such_file.py:make", FileError, "there is no file no_such_file.py"),
    ],
)
def test_specs_that_name_nothing(spec: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        load_model(spec)


@pytest.mark.parametrize("line", ["raise ValueError('no')", "import sys; sys.exit(3)", "1 +"])
def test_a_file_that_fails(tmp_path: Path, line: str) -> None:
    path = tmp_path / "fails.py"
    path.write_text(line)
    with pytest.raises(ModelError, match="cannot be imported"):
        load_model(f"{path}:net")


def test_weights_of_another_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", nn.Linear(2, 3).state_dict())
    with pytest.raises(ModelError, match="does not fit Sequential: Missing key") as raised:
        load_model(f"{__file__}:net", path)
    assert "\n" not in str(raised.value)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load.importlib.util.find_spec
    there = lambda name: object() if name == "timm" else found(name)
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install \'normscope\[timm\]\'"):
        load_model("timm:resnet18")

    def broken(name: str) -> types.ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(load.importlib.util, "find_spec", there)
    monkeypatch.setattr(load.importlib, "import_module", broken)
    with pytest.raises(ModelError, match="torchvision::nms does not exist.*made for your torch"):
        load_model("timm:resnet18")

    timm = types.ModuleType("timm")

    def create_model(name: str, pretrained: bool) -> nn.Module:
        assert not pretrained
        if name != "known":
            raise RuntimeError(f"Unknown model ({name})")
        return nn.Linear(1, 1)

    timm.create_model = create_model
    monkeypatch.setattr(load.importlib, "import_module", lambda name: timm)
    assert isinstance(load_model("timm:known"), nn.Linear)
    with pytest.raises(NormscopeError, match=r"no model 'other': .*Unknown model"):
        load_model("timm:other")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"g_ema": state, "step": 5},
        lambda state: {"generator": state, "g_optim": {"state": {0: state}, "param_groups": []}},
        lambda state: {"params_ema": state, "rng": {"torch": torch.zeros(8, dtype=torch.uint8)}},
        lambda state: {"network": {"best": state}, "loss": torch.zeros(())},
        lambda state: {"teacher": state, "normalizer": {"mean": torch.ones(3)}},
        lambda state: {"state_dict": state, "callbacks": {"best": {"score": torch.ones(())}}},
        lambda state: state | {"1._extra_state": {"weight": torch.ones(3)}},
        lambda state: {"model": state, "same": state},
    ],
    ids=["step", "optimizer", "rng", "nested", "normalizer", "callbacks", "extra", "same"],
)
def test_one_state_dict_under_any_name(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    state = net().state_dict()
    assert equal(read_weights(saved(tmp_path / "w.pt", wrap(dict(state)))), state)


def test_several_state_dicts_ask_for_a_key(tmp_path: Path) -> None:
    one, two, three = (net().state_dict() for _ in range(3))
    content = {"g": one, "nets": {"d": two, "g_ema": {"state_dict": three}}, "step": 5}
    path = saved(tmp_path / "w.pt", content)
    with pytest.raises(
        FileError,
        match=r"several state dicts: 'g', 'nets.d', 'nets.g_ema.state_dict'; name one .* key= \(--key",
    ):
        read_weights(path)
    for key, state in {"g": one, "nets.d": two, "nets.g_ema": three}.items():
        assert equal(read_weights(path, key), state)
        assert equal(load_model(f"{__file__}:net", path, key).state_dict(), state)
    with pytest.raises(FileError, match=r"several state dicts: 'nets.d', 'nets.g_ema.state_dict'"):
        read_weights(path, "nets")
    with pytest.raises(InputError, match=r"no state dict 'ema'; it has 'g', 'nets.d', 'nets.g_ema"):
        read_weights(path, "ema")
    with pytest.raises(InputError, match=r"no state dict 'g'; it has none; leave the key out"):
        read_weights(saved(tmp_path / "plain.pt", one), "g")
    with pytest.raises(InputError, match="key 'g' belongs to a checkpoint"):
        load_model(f"{__file__}:net", None, "g")


def test_content_that_holds_itself_or_is_deep(tmp_path: Path) -> None:
    itself: dict[str, Any] = {"w": torch.ones(2)}
    itself["model"] = {"inner": itself}
    with pytest.raises(FileError, match=r"holds itself under 'model.inner'"):
        read_weights(saved(tmp_path / "w.pt", itself))
    deep: dict[str, Any] = net().state_dict()
    for _ in range(100):
        deep = {"model": deep}
    with pytest.raises(FileError, match="holds no weights"):
        read_weights(saved(tmp_path / "w.pt", deep))
    wide: dict[str, Any] = {}
    for _ in range(30):  # 2^30 ways through it
        wide = {"a": wide, "b": wide}
    with pytest.raises(FileError, match="holds no weights"):
        read_weights(saved(tmp_path / "w.pt", wide))


@pytest.mark.filterwarnings("ignore:.*(quantized|nested tensors|TypedStorage)")
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "as qint8"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "as nested"),
        (lambda: torch.ones(3, dtype=torch.complex64), "as complex64"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "as float8_e4m3fn"),
        (lambda: torch.ones(3).to(torch.uint16), "as uint16"),
    ],
    ids=["quantised", "nested", "complex", "fp8", "uint16"],
)
@pytest.mark.parametrize("name", ["num_batches_tracked", "running_var"])
def test_statistics_of_odd_kinds(
    tmp_path: Path, make: Callable[[], Tensor], sentence: str, name: str
) -> None:
    path = saved(tmp_path / "w.pt", {f"1.{name}": make()})
    with pytest.raises(FileError, match=rf"holds 1.{name} {sentence}; it must hold"):
        read_weights(path)


def test_complex_weights_are_read_and_not_cut_to_their_real_part(tmp_path: Path) -> None:
    state = net().state_dict() | {"0.bias": torch.ones(3, dtype=torch.complex64)}
    path = saved(tmp_path / "w.pt", state)
    assert equal(read_weights(path), state)
    with pytest.raises(ModelError, match="does not fit Sequential: .*complex"):
        load_model(f"{__file__}:net", path)


def test_archives_with_damaged_tables(tmp_path: Path) -> None:
    data = saved(tmp_path / "w.pt", {"w": torch.ones(3)}).read_bytes()
    start = data.rindex(b"PK\x01\x02")
    newer = data[: start + 6] + b"\xff" + data[start + 7 :]  # the version of zip that is needed
    names = data.replace(b"data.pkl", b"\xff\xfeta.pkl")
    for content in (newer, names):
        path = tmp_path / "bad.pt"
        path.write_bytes(content)
        with pytest.raises(FileError, match="is truncated or damaged|without a checkpoint"):
            read_weights(path)


def test_a_file_is_run_once_until_it_changes(tmp_path: Path) -> None:
    """Two functions of one file agree on what its classes are."""
    file = tmp_path / "own.py"
    file.write_text("class A: pass\ndef thing(): return A()\ndef kind(): return A\n")
    first = load.made(str(file), "thing")
    assert isinstance(first, load.made(str(file), "kind"))
    file.write_text("class A: pass\ndef thing(): return 5\n")
    os.utime(file, ns=(1, 1))
    assert load.made(str(file), "thing") == 5


def test_what_lies_beside_a_file_comes_before_what_is_installed(tmp_path: Path) -> None:
    assert "this" not in sys.modules
    (tmp_path / "this.py").write_text("width = 5\n")  # as a module of Python's own
    (tmp_path / "nets.py").write_text(
        "import this\nfrom torch import nn\nready = nn.Linear(2, this.width)\n"
    )
    try:
        assert load_model(f"{tmp_path / 'nets.py'}:ready").out_features == 5
    finally:
        sys.modules.pop("this", None)


def test_tensors_are_written_whole_each_in_memory_of_its_own(tmp_path: Path) -> None:
    x = torch.arange(6.0, requires_grad=True)
    path = tmp_path / "w.safetensors"
    load.write_weights(path, {"a": x, "same": x, "turned": x.view(2, 3).t()}, {"made": "here"})
    assert equal(read_weights(path), {"a": x, "same": x, "turned": x.view(2, 3).t()})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"made": "here"}


def test_a_claim_of_more_values_than_are_stored_is_found_anywhere() -> None:
    content: Any
    big = torch.zeros(1).expand(9)
    held = torch.zeros(9)[:4]
    itself: list[Any] = [held]
    itself.append(itself)
    thing = types.SimpleNamespace(inner={"a": (1, [big])})
    for content in (big, [held, big], (held, (big,)), {"a": {"b": big}}, {1: [big]}, thing,
                    {"a": big}.values(), [itself, big], [[held], {"x": {big}}]):  # fmt: skip
        assert load.is_overstated(content)
    for content in (
        held,
        [held, held],
        {"a": held},
        itself,
        "text",
        None,
        3,
        {big: 1},
        iter([big]),
    ):
        assert load.is_overstated(content) is False


def test_an_exception_is_said_in_one_line() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert load.reason(ValueError("first\nsecond")) == "ValueError: first"
    assert load.reason(Mute()) == "Mute: no message"
    assert load.reason(KeyError()) == "KeyError: no message"
    whole = "ValueError: " + (load.LONGEST - 12) * "a"
    assert load.reason(ValueError((load.LONGEST - 12) * "a")) == whole
    assert load.reason(ValueError(load.LONGEST * "a")) == f"{whole} ..."


def test_what_is_likely_the_weights() -> None:
    ones = torch.ones(2)
    for name, tensors in (
        ("a.model", {"x": ones}), ("state_dict", {"x": ones}), ("a", {"0.weight": ones, "x": ones}),
    ):  # fmt: skip
        assert load._likelihood(name, tensors) == 2
    assert load._likelihood("a", {"x": ones.long(), "y": ones}) == 1
    assert load._likelihood("a", {"x": ones.long(), "y": torch.tensor(1.0)}) == 0


@pytest.mark.parametrize("depth", [1, 5, 6])
def test_how_deep_weights_may_lie(tmp_path: Path, depth: int) -> None:
    state: Any = net().state_dict()
    content = state
    for _ in range(depth):
        content = {"part": content}
    path = saved(tmp_path / "w.pt", content)
    if depth <= 5:
        assert equal(read_weights(path), state)
    else:
        with pytest.raises(FileError, match="holds no weights"):
            read_weights(path)


def test_a_mapping_inside_comes_before_the_tensors_beside_it(tmp_path: Path) -> None:
    one, two = net().state_dict(), net().state_dict()
    path = saved(tmp_path / "w.pt", {**one, "ema": two})
    assert equal(read_weights(path), two)
    path = saved(tmp_path / "w.pt", {"g": {**one, "ema": two}})
    assert equal(read_weights(path, "g"), two)
    for name, wanted in (("num_batches_tracked", "int64"), ("running_var", "plain floating point")):
        odd = saved(tmp_path / "o.pt", {f"1.{name}": torch.ones(3, dtype=torch.complex64)})
        with pytest.raises(FileError, match=f"it must hold {wanted}"):
            read_weights(odd)


@pytest.mark.filterwarnings("default")
def test_an_imaginary_part_is_not_dropped_where_warnings_are_none(tmp_path: Path) -> None:
    state = net().state_dict() | {"0.bias": torch.ones(3, dtype=torch.complex64)}
    with pytest.raises(ModelError, match="does not fit Sequential: .*complex"):
        load_model(f"{__file__}:net", saved(tmp_path / "w.pt", state))
