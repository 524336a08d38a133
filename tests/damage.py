"""Files of every kind that is read, and ways to damage them: bytes, and single fields."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import console
from torch import nn

from normscope import lens
from normscope.equivalence import compare_to_passport, parity, passport, read_passport
from normscope.experiment import checkpoint
from normscope.experiment.folder import RunFolder
from normscope.experiment.images import read_folder
from normscope.experiment.model_data import data_for_model
from normscope.experiment.nets import ModelConfig
from normscope.experiment.sources import read_npz
from normscope.experiment.tables import read_csv, read_parquet
from normscope.lens import InspectionState, accumulate, inspection
from normscope.probe.load import read_weights, write_weights
from normscope.records import Inspection, Record, load
from normscope.records.kinds import fitting
from normscope.report import document_of, terminal
from tests.report import pages

Draw = Random
EVIL = "a\x1b]0;t\x07\x1b[31m\x00\u202eb\x9b2J\u2028\u200fc"
TEXTS = ["", " ", "x", "0", "-1", "../../x", "a" * 3000, EVIL, "\ud800", "<script>", "null", "\n"]
NUMBERS = [-1, 0, 1, 2, 7, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, 5e-324]
NUMBERS += [float("nan"), float("inf"), float("-inf"), 1e-30, True, False]
DEEP = "@deep@"


class Kind(NamedTuple):
    """What writes a whole file, its name, what reads it, what writes one with a field changed."""

    write: Callable[[Path], Any]
    name: str
    read: Callable[[Path], Any]
    change: Callable[[Path, Draw], Any] | None = None


rng = np.random.default_rng(11)
VALUES = rng.normal(size=(24, 3)).astype(np.float32)
LABELS = np.arange(24) % 3
RUN = pages.made_up_run(None, ("batch",), 1)
NETWORK = ModelConfig("mlp", "batch", (3,), 3, 0)


def model() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.from_numpy(VALUES), torch.from_numpy(LABELS))]


# --- bytes


def damaged(whole: bytes, draw: np.random.Generator) -> bytes:
    """One to four injuries, in every second archive of one member, with right sums."""
    if not whole.startswith(b"PK") or draw.random() < 0.5:
        return injured(whole, draw)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    hurt = list(members)[draw.integers(len(members))]
    return packed(members | {hurt: injured(members[hurt], draw)})


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


ODD = [b"-1", b"0", b"1e999", b"99999999999999999999", b"NaN", b"null", b"[]", b"{}", b'"\\ud800"']


def injured(whole: bytes, draw: np.random.Generator) -> bytes:
    """Bits, bytes, cuts, repeats, other numbers in texts."""
    numbers = [m.span() for m in re.finditer(rb"(?<![\w.])-?\d[\d.e+-]*", whole[: 1 << 14])]
    data = bytearray(whole)
    for _ in range(draw.integers(1, 5)):
        at, size = draw.integers(len(data) + 1), int(draw.integers(1, 64))
        match draw.integers(7):
            case 0:
                data[at : at + 1] = bytes([draw.integers(256)])
            case 1:
                data[at : at + size] = draw.bytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4 if draw.random() < 0.3:
                del data[at:]
            case 5 if numbers:
                start, end = numbers[draw.integers(len(numbers))]
                data[start:end] = ODD[draw.integers(len(ODD))]
            case _:
                if at < len(data):
                    data[at] ^= 1 << int(draw.integers(8))
    return bytes(data)


# --- fields


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every holder and key in nested dicts, lists and objects of plain fields."""
    held = value if isinstance(value, (dict, list)) else getattr(value, "__dict__", {})
    for key in list(range(len(held)) if isinstance(held, list) else held):
        yield held, key
        if not isinstance(held[key], torch.Tensor):
            yield from places(held[key])


def odd(value: Any, draw: Draw) -> Any:
    """Return something else in the place of a value: mostly of its kind, else of any."""
    if (
        type(value) in (torch.Tensor, nn.Parameter)
        and value.layout is torch.strided
        and (draw.random() < 0.8 and value.device.type == "cpu" and value.numel() < 10**6)
    ):
        return odd_tensor(value, draw)
    match draw.randrange(8):
        case 0 | 1 | 2:
            return draw.choice(TEXTS if isinstance(value, str) else NUMBERS)
        case 3:
            return draw.choice(TEXTS)
        case 4:
            return draw.choice(
                [None, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [[1.0], [2.0, 3.0]]]
            )
        case 5 if isinstance(value, list):
            return draw.choice([value[:-1], value + value, value[::-1], [value], value[:1] * 40])
        case 6:
            return DEEP
        case _:
            return draw.choice(NUMBERS)


def odd_tensor(value: torch.Tensor, draw: Draw) -> Any:
    """Return a tensor of another shape, dtype, layout or content."""
    kinds: tuple[torch.dtype, ...] = (
        torch.complex64,
        torch.int8,
        torch.bool,
        torch.float8_e5m2,
        torch.uint16,
    )
    kinds += (torch.float16, torch.bfloat16, torch.float64, torch.int64)
    if value.is_quantized or value.dtype in (torch.float8_e5m2, torch.uint16):
        return None
    match draw.randrange(12):
        case 0 | 1:
            return value.to(draw.choice(kinds))
        case 2:
            return torch.full_like(value, draw.choice([-1, 0, 1]))
        case 3:
            return value.double() * draw.choice([float("nan"), float("inf"), -1.0, 1e300])
        case 4:
            return torch.zeros(draw.choice([(), (0,), (1,), (2, 3), (0, 5), (1,) * 12]))
        case 5:
            return torch.zeros(1).expand(draw.choice([10**6, 10**12]))
        case 6:
            return torch.zeros(2, 3).to_sparse()
        case 7:
            return torch.empty(draw.choice([3, 10**12]), device="meta")
        case 8:
            return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        case 9:
            return nn.Parameter(value.float())
        case 10:
            return torch.cat([value.reshape(-1)] * 2)
        case _:
            return value.unsqueeze(0)


def changed(tree: Any, draw: Draw) -> Any:
    """Copy a tree and change one to three of its places: another value, gone, or another name."""
    tree = deepcopy(tree)
    for _ in range(draw.randrange(1, 4)):
        every = list(places(tree))
        if not every:
            break
        held, key = draw.choice(every)
        kind = draw.randrange(10)
        if kind == 0:
            del held[key]
        elif kind == 1 and isinstance(held, dict) and isinstance(tree, dict):
            held[draw.choice(TEXTS)] = held.pop(key)
        elif kind == 2:
            other, name = draw.choice(every)
            if name < len(other) if isinstance(other, list) else name in other:
                held[key] = deepcopy(other[name])
        else:
            held[key] = odd(held[key], draw)
    return tree


def cut(value: Any, most: int = 12) -> Any:
    """Cut long lists, of which every entry is alike."""
    if isinstance(value, dict):
        return {key: cut(item) for key, item in value.items()}
    return [cut(item) for item in value[:most]] if isinstance(value, list) else value


def json_changed(tree: Any, draw: Draw) -> str:
    """Write JSON with places changed, now and then nested too deeply or with a name twice."""
    text = json.dumps(changed(tree, draw), ensure_ascii=draw.random() < 0.9)
    text = text.replace(f'"{DEEP}"', "[" * (n := draw.choice([40, 900, 5000])) + "]" * n)
    if draw.random() < 0.1 and (found := list(re.finditer(r'"\w+": ', text))):
        place = draw.choice(found)
        text = (
            f"{text[: place.start()]}{place[0]}{draw.choice(ODD).decode()}, {text[place.start() :]}"
        )
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def torch_changed(tree: Any) -> Callable[[Path, Draw], None]:
    def change(path: Path, draw: Draw) -> None:
        value = changed(tree, draw)
        if draw.random() < 0.02 and isinstance(value, dict):
            value["itself"] = value
        torch.save(value, path, _use_new_zipfile_serialization=draw.random() < 0.8)

    return change


def safetensors_changed(write: Callable[[Path], None]) -> Callable[[Path, Draw], None]:
    """Change the header of a safetensors file, which says what lies where."""

    def change(path: Path, draw: Draw) -> None:
        write(path)
        header_changed(path, draw)

    return change


def header_changed(path: Path, draw: Draw) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json_changed(json.loads(whole[8 : 8 + length]), draw).encode()
    length = len(header) if draw.random() < 0.95 else draw.choice([0, 2**31, 2**63, 2**64 - 1])
    path.write_bytes(length.to_bytes(8, "little") + header + whole[8 + length :])


# --- records


def shown(record: Record) -> None:
    """Show a record."""
    terminal.show(document_of(record), "en", console.Console(file=io.StringIO(), width=80))


def reported(path: Path) -> None:
    """Read and show a record, as `normscope report` does; showing one takes long, so not each."""
    record = load(path)
    if path.stat().st_size % 5 == 0:
        with fitting(path, "record"):
            shown(record)


def merged(path: Path) -> None:
    """Read and show a pass, as `normscope inspect --merge` does."""
    state = InspectionState.load(path)
    with fitting(path, "pass"):
        inspection(state)


def record_kind(record: Record) -> Kind:
    tree = cut(json.loads(record.to_json()))
    return Kind(
        lambda path: path.write_text(record.to_json()),
        f"{record.kind}.json",
        reported,
        lambda path, draw: path.write_text(json_changed(tree, draw)),
    )


def inspected() -> Inspection:
    return lens.inspect(model(), batches(), progress=False)


# --- data


def table(path: Path) -> None:
    rows = [f"{a},{b},{c},{k}" for (a, b, c), k in zip(VALUES, LABELS, strict=True)]
    path.write_text("a,b,c,label\n" + "\n".join(rows))


def table_changed(path: Path, draw: Draw) -> None:
    rows = [
        ["a", "b", "c", "label"],
        *(map(str, [*x, k]) for x, k in zip(VALUES, LABELS, strict=True)),
    ]
    cells = [list(row) for row in rows]
    for _ in range(draw.randrange(1, 5)):
        row = draw.choice(cells)
        words = [*TEXTS, *map(str, NUMBERS), '"', '"a,b"', "=1+1", "1_0", "\u0663", "1e400", "nan"]
        match draw.randrange(4):
            case 0:
                row.append(draw.choice(words))
            case 1 if row:
                row.pop()
            case _ if row:
                row[draw.randrange(len(row))] = draw.choice(words)
    sign = draw.choice([",", ",", ";", "\t", "|"])
    text = draw.choice(["\n", "\n", "\r\n", "\r"]).join(sign.join(row) for row in cells)
    path.write_bytes(text.encode(draw.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"]), "replace"))


def parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f"x{i}": VALUES[:, i] for i in range(3)}
    pq.write_table(pa.table(columns | {"label": LABELS}), path)


def parquet_changed(path: Path, draw: Draw) -> None:
    import datetime as dt
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    n = draw.choice([0, 1, 24])
    values: list[Any] = [1.0, float("nan"), 2**62, "a", EVIL, None, b"\xff", [1, 2], {"a": 1}]
    values += [Decimal("1.5"), dt.date(2020, 1, 1), dt.timedelta(1), True, dt.datetime(9999, 1, 1)]
    names = ["x0", "x1", "label", "__index_level_0__", *TEXTS]
    columns = []
    for _ in range(draw.randrange(1, 5)):
        value = draw.choice(values)
        column = pa.array([value] * n)
        if draw.random() < 0.2 and isinstance(value, (str, float)):
            column = column.dictionary_encode()
        columns.append((draw.choice(names).encode("utf-8", "replace").decode(), column))
    pq.write_table(pa.table([c for _, c in columns], names=[n for n, _ in columns]), path)


def archive_changed(path: Path, draw: Draw) -> None:
    arrays: dict[str, Any] = {"x": VALUES, "y": LABELS, "classes": np.array(["a", "b", "c"])}
    for _ in range(draw.randrange(1, 3)):
        key = draw.choice(list(arrays))
        kinds = ["U9", "S9", "c8", "M8[s]", "f2", "u8", "?", "O", "i1", "V8", ">f4", "f8,i4"]
        shapes = [(), (0,), (24,), (24, 3, 1), (1,) * 9, (0, 3), (24, 0), (2, 2, 2, 2, 2)]
        match draw.randrange(4):
            case 0:
                arrays[key] = np.zeros(arrays[key].shape[:1], dtype=draw.choice(kinds))
            case 1:
                arrays[key] = np.zeros(draw.choice(shapes), dtype=draw.choice(kinds[:7]))
            case 2:
                arrays[key] = np.full(24, draw.choice([np.nan, np.inf, -1, 1e300, 0.5]))
            case _:
                arrays[draw.choice([*TEXTS[2:5], "x.npy", "y"])] = arrays.pop(key)
                arrays |= {"x": VALUES} if not arrays else {}
    file = io.BytesIO()
    np.savez(file, **{k or "z": v for k, v in arrays.items()})
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    if draw.random() < 0.4:  # the head of an array, which says what follows
        name = draw.choice(list(members))
        head = draw.choice([
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 3), }" % draw.choice([10**12, -1, 10**30]),
            b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
            b"{'descr': [('a', '<f4')] , 'fortran_order': 7, 'shape': 3, }",
            b"(" * 3000, b"__import__('os')", b"{'descr': '<f4', 'shape': (3,)}", b"{" * 50, b"1" * 9000,
        ])  # fmt: skip
        members[name] = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    kind = zipfile.ZIP_DEFLATED if draw.random() < 0.3 else zipfile.ZIP_STORED
    path.write_bytes(packed(members, kind))


def image(path: Path) -> None:
    from PIL import Image

    (path.parent.parent / "b").mkdir(exist_ok=True)
    Image.fromarray(np.uint8(VALUES * 9)).save(path.parent.parent / "b" / "whole.png")
    Image.fromarray(np.uint8(VALUES * 9)).save(path)


def image_changed(path: Path, draw: Draw) -> None:
    """Write an image of another format, mode or size, or a head that promises another one."""
    from zlib import crc32

    from PIL import Image

    modes = (
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "I",
        "I;16",
        "F",
        "LA",
        "PA",
        "YCbCr",
        "LAB",
        "HSV",
    )
    size = (draw.choice([1, 3, 80]), draw.choice([1, 5, 70]))
    kind = draw.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA"])
    file = io.BytesIO()
    try:
        Image.new(draw.choice(modes), size).save(file, kind)
    except (OSError, ValueError, KeyError):
        Image.new("RGB", size).save(file, "PNG")
    data = bytearray(file.getvalue())
    if data.startswith(b"\x89PNG") and draw.random() < 0.5:  # IHDR, with its right sum
        at = draw.choice([16, 20, 24, 25, 26, 27, 28])
        new = draw.choice([0, 1, 255, 70_000, 2**31 - 1, 2**32 - 1])
        data[at : at + 4 if at < 24 else at + 1] = (
            new.to_bytes(4, "big") if at < 24 else bytes([new & 255])
        )
        data[29:33] = crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(injured(bytes(data), np.random.default_rng(draw.getrandbits(32))))


# --- code and programs

RAISED = ("ValueError('x\\x1b[2J')", "KeyError()", "RecursionError", "MemoryError", "SystemExit(3)",
          "StopIteration", "OSError(5, 'no')", "UnicodeError", "AssertionError", "Odd('\\u202e')",
          "ExceptionGroup('g', [ValueError()])", "Mute()", "NotImplementedError", "GeneratorExit")  # fmt: skip
GIVEN = ("None", "7", "'text'", "b''", "[]", "{}", "[None]", "[(X, Y)]", "[(X, Y), None]", "iter([])",
         "[(X, Y[:3])]", "[(X[:0], Y[:0])]", "[(X, Y.float() + .5)]", "[(X, 'a')]", "[{'x': X, 'y': Y}]",
         "(X, Y)", "(X, None)", "(X, Y, 7)", "[X]", "X", "[(X.to('meta'), Y)]", "[(X * float('nan'), Y)]",
         "[(X, Y - 5)]", "[(X, Y + 10**9)]", "[(X.to_sparse(), Y)]", "[(X.long(), Y)]", "[(X[0], Y[0])]",
         "range(3)", "lambda: 0", "torch", "type('D', (), {'dataset': 7})()", "[[[[]]]]", "(x for x in [3])",
         "[(X, Y), (X, Y.view(-1, 1))]", "[(X.tolist(), Y.tolist())]", "torch.utils.data.TensorDataset(X)",
         "Breaks()", "Long()", "[(X, torch.eye(3)[Y])]", "[('a', 'b')]", "[(X, Y.bool())]", "{1: (X, Y)}",
         "[torch.utils.data]", "Lies()", "[Lies()]", "(n for n in GEN())")  # fmt: skip
LOADER = """
import torch
X, Y = torch.randn(24, 3), torch.arange(24) % 3
class Odd(Exception): pass
class Mute(Exception):
    def __str__(self): raise ValueError
class Breaks:
    def __iter__(self):
        yield X, Y
        raise {raised}
class Long:
    def __len__(self): raise {raised}
    def __iter__(self): return iter([(X, Y)])
class Lies:
    def __len__(self): return {number}
    def __getitem__(self, i): raise {raised}
    def __getattr__(self, name): raise {raised}
def GEN():
    yield X, Y
    raise {raised}
{top}
def loader(*a):
    {inner}
    return {given}
"""


def code(path: Path) -> None:
    path.write_text(
        LOADER.format(raised="ValueError", number=1, top="", inner="pass", given="[(X, Y)]")
    )


def code_changed(path: Path, draw: Draw) -> None:
    raised = draw.choice(RAISED)
    top = draw.choice(
        ["", "", "", "", f"raise {raised}", "import nowhere", "def", "loader = 3", "\0"]
    )
    given = draw.choice(GIVEN)
    # what a function that is its module's last does, and what it is called
    text = LOADER.format(
        raised=raised, number=draw.choice([-1, 0, 3, 10**20, "'x'"]), top=top, given=given,
        inner=draw.choice(["pass", "pass", "pass", f"raise {raised}", "import nowhere", "1 / 0"]),
    )  # fmt: skip
    if draw.random() < 0.1:
        text = text.replace(
            "def loader(*a)", draw.choice(["def loader(a)", "def lader()", "class loader"])
        )
    path.write_bytes(text.encode())


def read_code(path: Path) -> None:
    import sys

    sys.modules.pop(f"normscope_file_{path.stem}", None)
    from normscope.probe.load import _executed

    _executed.cache_clear()
    data = data_for_model(f"{path}:loader", 8, 8, factory=True)
    accumulate(model(), data.batches, batch_limit=4)
    repr((data.samples, data.classes))


def graph() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    def held(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], transB=1),
        helper.make_node(
            "BatchNormalization", ["h", "b.weight", "b.bias", "b.running_mean", "b.running_var"],
            ["n"], epsilon=1e-5,
        ),
        helper.make_node("Relu", ["n"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in "xy"]
    kept = [held("a.weight", 3, 3), *(held(f"{k}.{n}", 3) for k, n in (
        ("a", "bias"), ("b", "weight"), ("b", "bias"), ("b", "running_mean"), ("b", "running_var")))]  # fmt: skip
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], kept)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def graph_changed(path: Path, draw: Draw) -> None:
    """Change fields of the messages that a graph is made of."""
    message = graph()
    for _ in range(draw.randrange(1, 4)):
        at = message
        while True:
            set_ = [(f, v) for f, v in at.ListFields()]
            if not set_:
                break
            field, value = draw.choice(set_)
            many = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
            if field.message_type is not None and draw.random() < 0.85:
                at = draw.choice(list(value)) if many and len(value) else value if not many else at
                continue
            values = {
                "string": ["", "x", EVIL, "h", "y", "Conv"],
                "bytes": [b"", b"x" * 7, EVIL.encode()],
            }
            whole = [-1, 0, 1, 2, 7, 11, 2**31 - 1]
            try:
                if (many and draw.random() < 0.5) or field.message_type is not None:
                    at.ClearField(field.name)
                elif many:
                    value.append(draw.choice([*value, *whole[:3]]))
                elif isinstance(value, (str, bytes)):
                    setattr(
                        at,
                        field.name,
                        draw.choice(values["string" if isinstance(value, str) else "bytes"]),
                    )
                else:
                    setattr(at, field.name, draw.choice([*whole, float("nan")]))
            except (TypeError, ValueError):
                at.ClearField(field.name)
            break
    path.write_bytes(message.SerializeToString())


def beside_module(path: Path) -> None:
    """Compare a graph with a module, as `normscope parity` does."""
    x = torch.from_numpy(VALUES)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()
    shown(parity(net, path, x))


def exported(path: Path) -> None:
    torch.jit.save(torch.jit.trace(model(), torch.ones(2, 3)), str(path))


def with_passport(path: Path) -> None:
    own = passport(model(), batches()).to_json()
    write_weights(path, model().state_dict(), {"normscope.passport": own})


def passport_changed(path: Path, draw: Draw) -> None:
    tree = json.loads(passport(model(), batches()).to_json())
    write_weights(path, model().state_dict(), {"normscope.passport": json_changed(tree, draw)})


def checked_passport(path: Path) -> None:
    own = read_passport(path)
    if own is not None:
        compare_to_passport(model(), own)
        compare_to_passport(read_weights(path), own)


def run_folder(path: Path) -> None:
    path.write_text(RUN.to_json())


def continued(path: Path) -> None:
    """Read a run and hold its options against those of a command, as --resume does."""
    folder = RunFolder(path.parent)
    run = folder.read()
    folder.resume(RUN.config, run.environment.get("data"))


def network(path: Path) -> None:
    checkpoint.save_model(path, NETWORK.build(0), NETWORK)


def kinds() -> dict[str, Kind]:
    """Every kind of file that is read."""

    def plain(path: Path) -> None:
        write_weights(path, state, {"a": "b"})

    state = model().state_dict()
    progress = {"norm": "batch", "seed": 0, "trainer": {"step": 3, "curve": [torch.ones(3)]}}
    wrapped = {"epoch": 3, "state_dict": dict(state), "optimizer": {"param_groups": []}}
    seen = accumulate(model(), batches())
    run = cut(json.loads(RUN.to_json()))
    found, repaired = pages.faulty()
    records = (
        pages.converted(), found, repaired, inspected(), pages.compared(), pages.made_up_bench(),
        pages.worked_lesson(), *pages.equivalences(), pages.made_up_claims(),
    )  # fmt: skip
    whole = Kind(
        lambda path: torch.save(wrapped, path), "m.pt", read_weights, torch_changed(wrapped)
    )
    return {
        "checkpoint": whole,
        "old checkpoint": Kind(
            lambda path: torch.save(state, path, _use_new_zipfile_serialization=False),
            "m.pth", read_weights, torch_changed(dict(state)),
        ),
        "safetensors": Kind(
            plain, "m.safetensors", read_weights, safetensors_changed(plain)
        ),
        "network of a run": Kind(
            network, "n.safetensors", checkpoint.load_model, safetensors_changed(network)
        ),
        "progress of a run": Kind(
            lambda path: torch.save(progress, path), "state.pt", checkpoint.load_checkpoint,
            torch_changed(progress),
        ),
        "pass of the lens": Kind(
            lambda path: seen.save(path), "p.pt",
            merged, torch_changed(seen),
        ),
        "run folder": Kind(
            run_folder, "run.json", continued,
            lambda path, draw: path.write_text(json_changed(run, draw)),
        ),
        **{f"record: {record.kind}": record_kind(record) for record in records},
        "passport": Kind(with_passport, "m.safetensors", checked_passport, passport_changed),
        "archive": Kind(lambda p: np.savez(p, x=VALUES, y=LABELS), "d.npz", read_npz, archive_changed),
        "table": Kind(table, "d.csv", read_csv, table_changed),
        "parquet": Kind(parquet, "d.parquet", read_parquet, parquet_changed),
        "image": Kind(image, "a/image.png", lambda p: read_folder(p.parent.parent), image_changed),
        "onnx": Kind(
            lambda p: p.write_bytes(graph().SerializeToString()), "g.onnx", beside_module, graph_changed
        ),
        "loader in a .py file": Kind(code, "l.py", read_code, code_changed),
    }  # fmt: skip


def inputs(kind: Kind, path: Path, seed: int, count: int) -> Iterator[int]:
    """Write one damaged file after another, bytes and fields in turn; yield its number."""
    kind.write(path)
    whole = path.read_bytes()
    for number in range(count):
        if kind.change is not None and number % 2:
            kind.change(path, Random(f"{seed} {number}"))
        else:
            path.write_bytes(damaged(whole, np.random.default_rng((seed, number))))
        yield number
