"""Data sources: what is read, how it is split and scaled, and one sentence for each bad input."""

import io
import os
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from normscope.errors import FileError, InputError, MissingExtraError, ModelError, NormscopeError
from normscope.experiment import fit, images, sources
from normscope.experiment.data import Data, batches, load
from normscope.records import RunConfig

X = np.arange(24.0).reshape(12, 2) ** 2
Y = np.arange(12) % 3


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path / "data.npz", **{"x": X, "y": Y} | arrays)
    return str(path / "data.npz")


def csv(path: Path, text: str, *, name: str = "data.csv", encoding: str = "utf-8") -> str:
    (path / name).write_bytes(text.encode(encoding))
    return str(path / name)


def parquet(path: Path, **columns: Any) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path / "data.parquet")
    return str(path / "data.parquet")


def picture(path: Path, size: tuple[int, int] = (6, 5), mode: str = "L", fill: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, fill if mode != "RGB" else (fill, 0, 0)).save(path)


def pictures(path: Path, **options: Any) -> str:
    for i in range(3):
        picture(path / "images" / "cat" / f"{i}.png", fill=10 * i, **options)
        picture(path / "images" / "dog" / f"{i}.png", fill=200 + i, **options)
    return str(path / "images")


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classes", "size"),
    [
        ("digits", (1, 8, 8), 10, 1797),
        ("iris", (4,), 3, 150),
        ("wine", (13,), 3, 178),
        ("breast_cancer", (30,), 2, 569),
    ],
)
def test_bundled_sets_are_split_by_class_and_standardised_by_the_training_part(
    name: str, shape: tuple[int, ...], classes: int, size: int
) -> None:
    data = load(name)
    assert data.shape == shape
    assert len(data.classes) == classes
    assert len(data.train_x) + len(data.test_x) == size
    for k in range(classes):
        train, test = int((data.train_y == k).sum()), int((data.test_y == k).sum())
        assert test == round(0.3 * (train + test))
    flat = data.train_x.double().transpose(0, 1).reshape(shape[0], -1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(shape[0]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(flat.var(1, correction=0), torch.ones(shape[0]).double())
    assert data.test_x.mean().abs() > 1e-5  # not by its own statistics


def test_the_split_follows_the_seed() -> None:
    one, same, other = load("iris", seed=3), load("iris", seed=3), load("iris", seed=4)
    assert torch.equal(one.train_x, same.train_x)
    assert not torch.equal(one.train_x, other.train_x)


def test_a_class_of_one_sample_is_for_training_and_refused_where_all_are_compared(
    tmp_path: Path,
) -> None:
    spec = csv(tmp_path, ROWS + "5,6,c\n")
    data = load(spec)
    assert data.train_y.bincount(minlength=3).tolist() == [1, 1, 1]
    assert data.test_y.bincount(minlength=3).tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="class 'c' has 1 sample; at least 2 are needed"):
        load(spec, every_class=True)
    absent = npz(tmp_path, classes=list("abcd"))
    assert load(absent).classes == ("a", "b", "c", "d")
    with pytest.raises(InputError, match="class 'd' has 0 samples; at least 2"):
        load(absent, every_class=True)
    config = RunConfig(
        data=spec, net="mlp", norms=("batch",), epochs=1, batch_size=2, lr=0.1, seed=0, seeds=1
    )
    with pytest.raises(InputError, match="class 'c' has 1 sample"):
        fit.train(config, tmp_path / "run")


def test_many_classes_are_split_in_time_that_follows_the_samples(tmp_path: Path) -> None:
    lines = "".join(f"{i},{i % 7},c{i // 2}\n" for i in range(80_000))
    start = time.perf_counter()
    data = load(csv(tmp_path, lines))
    assert time.perf_counter() - start < 10  # a scan of the labels for each class took 20 s
    assert len(data.classes) == len(data.train_y) == len(data.test_y) == 40_000


def test_every_source_gives_the_same_samples(tmp_path: Path) -> None:
    lines = ["a;label;b", *(f"{a};k{y};{b}" for (a, b), y in zip(X, Y, strict=True))]
    tables = [
        load(csv(tmp_path, "﻿" + "\n\n".join(lines) + "\n")),
        load(csv(tmp_path, "\n".join(f"{a},{b},k{y}" for (a, b), y in zip(X, Y, strict=True)))),
        load(parquet(tmp_path, target=[f"k{y}" for y in Y], a=X[:, 0], b=X[:, 1])),
        load(npz(tmp_path, y=np.array([f"k{y}" for y in Y]))),
        load(npz(tmp_path, classes=np.array(["k0", "k1", "k2"]))),
        load(npz(tmp_path, x=X.astype(np.int32), y=np.array([b"k0", b"k1", b"k2"] * 4))),
    ]
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def make():\n"
        "    x = torch.arange(24.).reshape(12, 2) ** 2\n"
        "    return x, [k % 3 for k in range(12)], ['k0', 'k1', 'k2']\n"
    )
    tables.append(load(f"{tmp_path / 'own.py'}:make"))
    for data in tables:
        assert data.classes == ("k0", "k1", "k2")
        assert torch.equal(data.train_x, tables[0].train_x)
        assert torch.equal(data.test_x, tables[0].test_x)
        assert torch.equal(data.test_y, tables[0].test_y)


def test_a_factory_may_return_a_whole_data(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\n"
        "from normscope.experiment.data import load\n"
        "def make():\n"
        "    return replace(load('iris'), name='mine')\n"
    )
    assert load(f"{tmp_path / 'own.py'}:make").name == "mine"
    with pytest.raises(InputError, match="brings its own split"):
        load(f"{tmp_path / 'own.py'}:make", domains=("clean", "noise"))


def test_the_header_and_the_label_column_are_found(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 2},{i * i}\n" for i in range(8))
    by_name = load(csv(tmp_path, "0,y,1\n" + rows))  # counted columns beside a label's name
    assert len(by_name.train_y) + len(by_name.test_y) == 8
    assert by_name.classes == ("0", "1")
    yes_no = "".join(f"{i},{i * i},{'ny'[i % 2]}\n" for i in range(1, 9))
    last = load(csv(tmp_path, yes_no.replace("1,1,y", "7,3,y", 1)))  # "y" is a class, no header
    assert last.classes == ("n", "y")
    assert len(last.train_y) + len(last.test_y) == 8


def test_labels_are_ordered_by_value_and_only_the_order_matters(tmp_path: Path) -> None:
    labels = np.array([10.0, -1, 2] * 4)
    assert load(npz(tmp_path, y=labels)).classes == ("-1", "2", "10")
    assert load(npz(tmp_path, y=labels.astype(str))).classes == ("-1", "2", "10")
    assert load(npz(tmp_path, y=labels[:, None])).classes == ("-1", "2", "10")
    assert load(npz(tmp_path, y=Y == 1)).classes == ("False", "True")


def test_a_constant_feature_becomes_zero_and_not_noise(tmp_path: Path) -> None:
    x = np.column_stack([X, np.full(12, 0.1), np.full(12, 1e9), 1e9 + X[:, 0]])
    data = load(npz(tmp_path, x=x))
    assert data.train_x[:, 2:4].abs().max() < 1e-15
    torch.testing.assert_close(data.train_x[:, 4], data.train_x[:, 0])  # a far mean loses nothing


def test_standardising_in_blocks_is_standardising(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load("digits")
    monkeypatch.setattr(sources, "BLOCK_VALUES", 1000)
    torch.testing.assert_close(load("digits").train_x, whole.train_x)


def test_images_of_one_small_size_stay_and_others_are_resized(tmp_path: Path) -> None:
    folder = pictures(tmp_path)
    (tmp_path / "images" / "notes.txt").write_text("no class")
    (tmp_path / "images" / "cat" / ".hidden.png").write_text("no image")
    data = load(folder)
    assert data.classes == ("cat", "dog")
    assert data.shape == (1, 5, 6)
    assert data.train_x[data.train_y == 0].max() < data.train_x[data.train_y == 1].min()
    picture(tmp_path / "images" / "dog" / "wide.jpg", size=(90, 50), mode="RGB")
    assert load(folder).shape == (3, 32, 32)


@pytest.mark.timeout(20)
def test_a_named_pipe_is_no_file(tmp_path: Path) -> None:
    folder = Path(pictures(tmp_path))
    os.mkfifo(folder / "cat" / "pipe.png")  # reading it would wait for ever
    assert len(images.read_folder(folder).x) == 6
    for suffix in ("csv", "npz", "parquet"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        check(str(tmp_path / f"pipe.{suffix}"), FileError, "there is no file .* that can be read")


def test_sixteen_bit_images_keep_their_upper_half(tmp_path: Path) -> None:
    for name, value in (("low", 256 * 7), ("high", 256 * 200)):
        (tmp_path / name).mkdir()
        for i in range(2):
            array = np.full((4, 4), value, dtype=np.uint16)
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    found = images.read_folder(tmp_path)
    assert sorted(np.unique(found.x)) == [7, 200]


def test_batches_are_the_test_part_in_order() -> None:
    data = load("iris", domains=("clean", "noise"))
    for given, column in (("domain", data.test_domain), ("label", data.test_y)):
        parts = list(batches(data, 40, given=given))
        assert [len(part) for part in parts] == [3] * len(parts)
        for i, whole in enumerate((data.test_x, data.test_y, column)):
            assert whole is not None
            assert torch.equal(torch.cat([part[i] for part in parts]), whole)
    assert all(len(part) == 2 for part in batches(load("iris")))
    assert all(len(part) == 2 for part in batches(data, given=None))


# --- domains ----------------------------------------------------------------------------------


def test_each_training_sample_is_in_one_domain_and_each_test_sample_in_all() -> None:
    names = ("clean", "contrast", "invert", "noise", "brightness")
    plain, data = load("digits"), load("digits", domains=names)
    assert data.domains == names
    assert data.train_domain is not None
    assert data.test_domain is not None
    assert len(data.train_x) == len(plain.train_x)
    sizes = data.train_domain.bincount()
    assert sizes.max() - sizes.min() <= 1
    assert len(data.test_x) == len(names) * len(plain.test_x)
    unit = {
        name: data.test_x[data.test_domain == i].double()
        for i, name in enumerate(names)
    }  # fmt: skip
    for i in range(len(names)):
        assert torch.equal(data.test_y[data.test_domain == i], plain.test_y)
    clean, span = unit["clean"], unit["clean"].max() - unit["clean"].min()
    torch.testing.assert_close(unit["brightness"], clean + 0.5 * span, atol=1e-5, rtol=0)
    middle = (clean.max() + clean.min()) / 2
    torch.testing.assert_close(unit["invert"], 2 * middle - clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(unit["contrast"], middle + 0.4 * (clean - middle), atol=1e-5, rtol=0)
    noise = (unit["noise"] - clean) / span
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)


def test_domains_follow_the_seed() -> None:
    names = ("clean", "noise")
    one, same = load("iris", seed=1, domains=names), load("iris", seed=1, domains=names)
    assert torch.equal(one.train_x, same.train_x)
    assert torch.equal(one.test_x, same.test_x)
    assert not torch.equal(one.test_x, load("iris", seed=2, domains=names).test_x)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("clean", "fog"), "there is no domain 'fog'; there are clean, contrast"),
        (("clean",), "name at least two different of"),
        (("clean", "clean"), "name at least two different of"),
    ],
)
def test_bad_domains(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("iris", domains=names)


# --- bad input: one sentence each -------------------------------------------------------------

ROWS = "1,2,a\n2,3,b\n3,4,a\n4,5,b\n"

BAD_TABLES: dict[str, tuple[str, type[NormscopeError], str]] = {
    "empty": ("", FileError, "data.csv is empty"),
    "blank": ("\n \n", FileError, "data.csv is empty"),
    "header only": ("a,b,label\n", InputError, "holds no samples"),
    "one column": ("a\nb\n", InputError, "has one column; features and a label are needed"),
    "no label": (ROWS + "5,6,\n", InputError, "line 5: no label"),
    "gap": ("h,i,y\n" + ROWS + "5,,a\n", InputError, "line 6, column 'i': the value is missing"),
    "nan": (ROWS + "nan,6,a\n", InputError, "line 5, column '1': 'nan' is not a finite number"),
    "text": ("h,i,y\n" + ROWS + "red,6,a\n", InputError, "line 6, column 'h': 'red' is not a fin"),
    "ragged": (ROWS + "5,a\n", InputError, "line 5: 2 columns, but the first line has 3"),
    "one class": ("1,2,a\n2,3,a\n", InputError, "holds 2 samples of one class, 'a'"),
    "one sample": ("1,2,a\n", InputError, "holds 1 sample of one class, 'a'"),
    "lonely": ("1,2,a\n2,3,b\n", InputError, "test_x must hold two or more samples"),
    "fractions": ("1,2,0.5\n2,3,1\n", InputError, "label 0.5 of sample 1 is no class"),
    "index": (",a,label\n0,1,a\n1,2,b\n", InputError, "column 1 has no name"),
    "huge": ("1e300,2,a\n-1e300,3,a\n" * 2 + ROWS, InputError, "column 1 are too large"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_csv(case: str, tmp_path: Path) -> None:
    text, kind, message = BAD_TABLES[case]
    check(csv(tmp_path, text), kind, message)


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"x": X.astype(str)}, "x is <U32; real numbers are needed"),
    "complex": ({"x": X.astype(complex)}, "x is complex128; real numbers are needed"),
    "nan": ({"x": np.where(X == 49, np.nan, X)}, r"x\[3, 1\] is nan \(row 4, column 2\)"),
    "infinite": ({"x": np.where(X == 4, np.inf, X)}, r"x\[1, 0\] is inf \(row 2, column 1\)"),
    "one axis": ({"x": X[:, 0]}, r"x is \(12,\); it must be \(N, C\)"),
    "no features": ({"x": X[:, :0]}, r"x is \(12, 0\); it must be \(N, C\)"),
    "no samples": ({"x": X[:0], "y": Y[:0]}, "holds no samples"),
    "channels last": ({"x": np.zeros((12, 8, 8, 3))}, "channels last"),
    "lengths": ({"y": Y[:5]}, r"labels are \(5,\) for 12 samples"),
    "one-hot": ({"y": np.eye(3)[Y]}, r"labels are \(12, 3\) for 12 samples"),
    "nan label": ({"y": np.where(Y == 1, np.nan, Y)}, "label nan of sample 2 is no class"),
    "no label": ({"y": np.array(["a", "", "b"] * 4)}, "label nothing of sample 2 is no class"),
    "range": ({"y": Y + 1, "classes": list("abc")}, "label 3 of sample 3 is out of range"),
    "below": ({"y": Y - 1, "classes": list("abc")}, "label -1 of sample 1 is out of range"),
    "part": ({"y": Y + 0.5, "classes": list("abc")}, "label 0.5 of sample 1 is no class"),
    "pickle": ({"x": np.array([{}] * 12)}, "x holds Python objects, which are not read"),
    "pickled y": ({"y": np.array([{}] * 12)}, "y holds Python objects, which are not read"),
    "bomb": ({"x": np.zeros((12, 10**6))}, "looks like a zip bomb"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_npz(case: str, tmp_path: Path) -> None:
    arrays, message = BAD_ARRAYS[case]
    np.savez_compressed(tmp_path / "data.npz", **{"x": X, "y": Y} | arrays)
    check(str(tmp_path / "data.npz"), InputError, message)


def test_a_npz_without_x_and_y_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=X)
    check(
        str(tmp_path / "data.npz"), InputError, "holds 'x_train'; arrays x .* and y .* are needed"
    )


def test_a_header_that_claims_more_than_memory_is_refused_unread(tmp_path: Path) -> None:
    header = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    check(str(tmp_path / "data.npz"), InputError, "1,000,000,000,000 numbers are more than")


@pytest.mark.parametrize("name", ["data.npz", "data.parquet"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    whole = npz(tmp_path) if name.endswith("npz") else parquet(tmp_path, a=X[:, 0], y=Y)
    content = Path(whole).read_bytes()
    for broken in (content[: len(content) // 2], b"<html>login</html>", content[200:]):
        Path(whole).write_bytes(broken)
        check(whole, FileError, f"{name} is not a whole")
    Path(whole).write_bytes(b"")
    check(whole, FileError, f"{name} is empty")
    Path(whole).unlink()
    check(whole, FileError, f"there is no file .*{name}")


def test_bad_parquet(tmp_path: Path) -> None:
    check(parquet(tmp_path, a=["x"] * 12, y=Y), InputError, "column 'a' holds string")
    gap = [None, *X[1:, 0]]
    check(parquet(tmp_path, a=gap, y=Y), InputError, "column 'a', row 1: the value is missing")
    check(parquet(tmp_path, a=X[:, 0], y=[*Y[1:], None]), InputError, "column 'y', row 12: the v")
    nan = np.where(X[:, 0] == 16, np.nan, X[:, 0])
    check(parquet(tmp_path, a=nan, y=Y), InputError, r"\(row 3, column 1\)")
    check(parquet(tmp_path, y=Y), InputError, "has one column")


def test_an_index_that_pandas_saved_is_no_feature(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=X[:, 0], y=Y, __index_level_0__=np.arange(12))
    data = load(path)
    assert data.shape == (1,)
    assert data.classes == ("0", "1", "2")


def test_bad_images(tmp_path: Path) -> None:
    folder = Path(pictures(tmp_path))
    (folder / "bird").mkdir()
    check(str(folder), InputError, "class folder .*bird holds no images")
    (folder / "bird" / "0.png").write_bytes(b"no image")
    check(str(folder), FileError, "0.png is no image that can be read")
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "bird" / "0.png").write_bytes(whole[:45])
    check(str(folder), FileError, "0.png is no image that can be read")
    (folder / "bird" / "0.png").write_bytes(whole)
    assert load(str(folder)).classes == ("bird", "cat", "dog")
    check(str(folder / "cat"), InputError, "holds no class folders")


def test_an_image_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path, size=(50, 50))
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    check(folder, InputError, "has 50 x 50 pixels; at most 2,000")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit errs at twice that
    check(folder, FileError, "is no image that can be read")


FACTORIES: dict[str, tuple[str, type[NormscopeError], str]] = {
    "absent": ("other = 1", ModelError, "has no 'make'"),
    "fails": ("def make(): return 1 / 0", ModelError, "failed: ZeroDivisionError"),
    "syntax": ("def make(:", ModelError, "cannot be imported: SyntaxError"),
    "exits": ("raise SystemExit(3)", ModelError, "cannot be imported: SystemExit"),
    "wrong": ("def make(): return 5", InputError, r"int was given; \(x, y\)"),
    "ragged": ("def make(): return [[1, 2], [3]], [0, 1]", InputError, "no array"),
}


@pytest.mark.parametrize("case", FACTORIES)
def test_bad_factories(case: str, tmp_path: Path) -> None:
    code, kind, message = FACTORIES[case]
    (tmp_path / "own.py").write_text(code)
    check(f"{tmp_path / 'own.py'}:make", kind, message)


def test_what_is_no_source_at_all(tmp_path: Path) -> None:
    check("digts", InputError, "there are no data 'digts'; data can be digits, iris")
    check(str(tmp_path / "none"), FileError, "there is no file or folder")
    check(str(tmp_path / "own.py:make"), FileError, "there is no file .*own.py")
    (tmp_path / "data.xlsx").write_text("x")
    check(str(tmp_path / "data.xlsx"), InputError, "is of no kind that is read")
    (tmp_path / "data.csv").mkdir()
    check(str(tmp_path / "data.csv"), InputError, "holds no class folders")
    check(csv(tmp_path, "ä,b\n", name="latin.csv", encoding="latin-1"), FileError, "is not text")


@pytest.mark.parametrize(
    ("package", "extra", "make"),
    [
        ("pyarrow", "tables", lambda path: parquet(path, a=X[:, 0], y=Y)),
        ("PIL", "images", pictures),
    ],
)
def test_a_missing_extra_names_the_command(
    package: str,
    extra: str,
    make: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = make(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    check(spec, MissingExtraError, rf"pip install 'normscope\[{extra}\]'")


def test_data_that_do_not_fit_together() -> None:
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])

    def made(**changes: Any) -> Data:
        parts: dict[str, Any] = {"train_x": x, "train_y": y, "test_x": x, "test_y": y}
        return Data(**{"name": "own", "classes": ("a", "b")} | parts | changes)

    assert made().shape == (2,)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"test_y": y + 1}, "test_y holds 2, which is out of range; 0 to 1 exist"),
        ({"train_y": y - 1}, "train_y holds -1, which is out of range"),
        ({"train_y": y.float()}, "train_y must be int64"),
        ({"train_y": y[:3]}, "train_y must be int64, one for each of 4"),
        ({"test_x": torch.randn(4, 3)}, r"test_x \(4, 3\)"),
        ({"train_x": x.double()}, "train_x must hold two or more samples, finite, in float32"),
        ({"train_x": x / 0}, "train_x must hold two or more samples, finite"),
        ({"classes": ("a",), "train_y": y * 0, "test_y": y * 0}, "has 1 class"),
        ({"domains": ("c", "d")}, "train_domain must be int64"),
        (
            {"domains": ("c", "d"), "train_domain": torch.tensor([0, 0, 0, 1]), "test_domain": y},
            "domain 'd' has 1 training samples; 2 are needed",
        ),
    ]
    for changes, message in bad:
        with pytest.raises(InputError, match=message):
            made(**changes)


def check(spec: str, kind: type[NormscopeError], message: str) -> None:
    """`spec` fails with one sentence of that kind."""
    with pytest.raises(kind, match=message) as caught:
        load(spec)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
