"""Models by name and checkpoints by content: what a file is comes before what it holds."""

import importlib
import importlib.util
import io
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, ValuesView
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from normscope.errors import FileError, InputError, MissingExtraError, ModelError
from normscope.files import read_bytes, shown, write_whole

# where training frameworks put the weights among other things, and what they put before each name
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_ENDINGS = ("weight", "bias", "running_mean", "running_var")  # of names in most state dicts
FAILURES = (Exception, SystemExit, GeneratorExit)  # of somebody else's code; Ctrl-C is none
LONGEST = 300  # characters that an error takes of somebody else's message
_DEPTH = 5  # how far down a state dict is looked for

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a pickled magic number
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMBERS = (*_FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_ALLOWED = {"running_mean": _FLOATS, "running_var": _FLOATS, "num_batches_tracked": _NUMBERS}


def load_model(spec: str, weights: Path | None = None, key: str | None = None) -> nn.Module:
    """Make the model that `spec` names, with the weights of a checkpoint where one is given.

    Args:
        spec: "pkg.module:factory", "path/file.py:factory" or "timm:NAME". The factory is called
            without arguments; a module that is already built serves too.
        weights: safetensors or a torch checkpoint, see `read_weights`.
        key: as for `read_weights`.

    Raises:
        InputError: a spec of another form, a key without weights or that they do not have.
        ModelError: the factory is not there, fails, or gives no module; weights that do not fit.
        MissingExtraError: timm is not installed.
        FileError: as `read_weights`.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(
            f"{spec!r} names no model; write pkg.module:factory, path/file.py:factory or timm:NAME"
        )
    if key is not None and weights is None:
        raise InputError(f"key {key!r} belongs to a checkpoint; name that with weights")
    state = None if weights is None else read_weights(weights, key)
    model = _timm(name) if place == "timm" else made(place, name, finished=nn.Module)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{shown(place)}:{name} gives {type(model).__name__}; it must give a torch.nn.Module"
        )
    if state is not None and weights is not None:
        try:
            wanted = model.state_dict()
            fitted = _fitted(state, set(wanted))
            for name in fitted.keys() & wanted:  # torch drops the imaginary part, and warns once
                if fitted[name].is_complex() and not torch.is_complex(wanted[name]):
                    raise TypeError(f"{name} is complex, and real in the model")
            model.load_state_dict(fitted)
        except Exception as problem:
            text = " ".join(str(problem).split("\n", 1)[-1].split())[:LONGEST]
            raise ModelError(
                f"{shown(weights)} does not fit {type(model).__name__}: {shown(text)}"
            ) from problem
    return model


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, to the CPU; no code in the file is ever run.

    Reads safetensors, and torch files through `torch.load(weights_only=True)` without mmap. The
    weights may lie in a mapping inside: {"state_dict": ...}, {"g_ema": ..., "step": 5} and the
    like; the state of an optimizer does not count.

    Args:
        path: the file.
        key: which of several state dicts; "outer.inner" for a mapping in a mapping.

    Raises:
        FileError: no file, or one that is empty, a Git LFS pointer, a web page, text, truncated,
            or compressed; that asks to run code, claims more values than it holds, or holds
            itself, tensors that are not plain, no weights, or several state dicts and no key.
        InputError: the file has no such key.
    """
    state = _chosen(path, _content(path), key)
    for name, tensor in state.items():
        _check_plain(path, name, tensor)
    return state


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and strings as one safetensors file, whole.

    Raises:
        FileError: the file cannot be written; what was there before is still there.
    """
    # each on its own: tensors that share memory are refused by the format
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_whole(path, safetensors.torch.save(own, metadata))


def made(place: str, name: str, finished: type | tuple[type, ...] = ()) -> Any:
    """Import what `name` in a file or package is, and call it without arguments if it can be.

    Args:
        place: path/file.py or pkg.module.
        name: a function, or anything else in it.
        finished: types that are taken as they are, even where they can be called.

    Raises:
        FileError: there is no such file.
        ModelError: the code cannot be imported, has no such name, or fails.
    """
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise FileError(f"there is no file {shown(place)}; check the path")
    folder = str(Path(place).resolve().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)  # imports find what lies there, as when Python is started there
    try:
        try:
            source = _file(Path(place)) if is_file else importlib.import_module(place)
        except FAILURES as problem:
            raise ModelError(f"{shown(place)} cannot be imported: {reason(problem)}") from problem
        value = getattr(source, name, None)
        if value is None:
            raise ModelError(f"{shown(place)} has no {name!r}; name a function in it")
        if not isinstance(value, finished) and callable(value):
            try:
                value = value()
            except FAILURES as problem:
                raise ModelError(f"{shown(place)}:{name}() failed: {reason(problem)}") from problem
        return value
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def reason(problem: BaseException) -> str:
    """Say an exception of somebody else's code in one line, the beginning of a long one."""
    try:
        said = (str(problem) or "no message").splitlines()[0]
    except Exception:  # its own message fails too
        said = "no message"
    text = shown(f"{type(problem).__name__}: {said}")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _file(path: Path) -> Any:
    return _executed(path.resolve(), path.stat().st_mtime_ns)


@cache
def _executed(path: Path, changed: int) -> Any:
    """Run a file's module; once as long as it stays the same, so that its classes are the same."""
    found = importlib.util.spec_from_file_location(f"normscope_file_{path.stem}", path)
    assert found is not None and found.loader is not None, "a .py file has a loader"  # noqa: PT018
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def _timm(name: str) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError(f"timm:{name} needs timm: pip install 'normscope[timm]'")
    try:
        return importlib.import_module("timm").create_model(name, pretrained=False)
    except Exception as problem:
        way = "; install the torchvision made for your torch" * ("torchvision" in str(problem))
        raise ModelError(f"timm makes no model {name!r}: {reason(problem)}{way}") from problem


def _content(path: Path) -> Any:
    """Read what is in a file, by its first bytes."""
    data = read_bytes(path, "checkpoint")
    try:
        if data[8:9] == b"{":
            return safetensors.torch.load(data)
        if data[:4] == b"PK\x03\x04":
            _check_archive(path, zipfile.ZipFile(io.BytesIO(data)).infolist())
        elif not data.startswith(_LEGACY):
            raise FileError(
                f"{shown(path)} is {_kind(data)}; give safetensors or a torch checkpoint"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileError:
        raise
    except pickle.UnpicklingError as problem:
        found = re.search(r"GLOBAL (\S+)", str(problem))
        raise FileError(
            f"{shown(path)} asks for {shown(found[1]) if found else 'more than tensors'} when it "
            "is read, which could run code; nothing was run, ask for a file with nothing but the "
            "state_dict, best as safetensors"
        ) from problem
    except Exception as problem:  # a damaged file fails in a dozen ways
        raise FileError(
            f"{shown(path)} is truncated or damaged; copy or download the checkpoint again"
        ) from problem


def _kind(data: bytes) -> str:
    """Say what a file that is no checkpoint is, as a phrase."""
    start = data[:1024].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run git lfs pull)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps of a login or an error"
    if data[:1] == b"\x80":
        return "a bare pickle, which could run code when read"
    return "text" if b"\0" not in data[:1024] else "no checkpoint, or a damaged one"


def _check_archive(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = {member.filename.rpartition("/")[2] for member in members}
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise FileError(
            f"{shown(path)} is a compressed archive, which torch never writes and which may unpack "
            "to any size; save the checkpoint again with torch.save or safetensors"
        )
    if "constants.pkl" in names:
        raise FileError(
            f"{shown(path)} is a TorchScript program; save its state_dict() and give that"
        )
    if "data.pkl" not in names:
        raise FileError(f"{shown(path)} is a zip archive without a checkpoint in it")


def _chosen(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    """Find the state dict in whatever a training framework saved, or that which `key` names."""
    found = dict(_mappings(path, content, "", (), set()))
    there = {n: t for n, t in found.items() if not key or n == key or n.startswith(f"{key}.")}
    if key is not None and not there:
        names = ", ".join(map(repr, filter(None, found))) or "none; leave the key out"
        raise InputError(f"{shown(path)} has no state dict {key!r}; it has {names}")
    # a state dict by its names comes before statistics of data or the state of a generator
    likely = {name: _likelihood(name, tensors) for name, tensors in there.items()}
    best = [name for name in there if likely[name] == max(likely.values())]
    inner = [name for name in best if name != (key or "")]
    if len(inner) > 1:
        raise FileError(
            f"{shown(path)} holds several state dicts: {', '.join(map(repr, inner))}; "
            "name one of them with key= (--key)"
        )
    if not best:
        raise FileError(f"{shown(path)} holds no weights; save model.state_dict()")
    return there[(inner or best)[0]]


def _mappings(
    path: Path, content: Any, name: str, above: tuple[Any, ...], seen: set[int]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping that holds tensors, by its keys joined with dots; each object once."""
    if any(content is other for other in above):
        raise FileError(f"{shown(path)} holds itself under {name!r}; save model.state_dict()")
    if not isinstance(content, Mapping) or id(content) in seen or "param_groups" in content:
        return
    seen.add(id(content))
    tensors = {str(k): value for k, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for k, value in content.items() if len(above) < _DEPTH else ():
        if isinstance(k, str) and not k.endswith("_extra_state"):
            yield from _mappings(path, value, f"{name}.{k}" if name else k, (*above, content), seen)


def _likelihood(name: str, tensors: dict[str, Tensor]) -> int:
    if name.rpartition(".")[2] in _WRAPPERS or any(n.endswith(_ENDINGS) for n in tensors):
        return 2
    return int(any(t.is_floating_point() and t.dim() for t in tensors.values()))


def _check_plain(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor of an odd kind, or that claims values which the file does not hold."""
    allowed = _ALLOWED.get(name.rpartition(".")[2], (tensor.dtype,))
    if tensor.is_quantized or tensor.is_nested or tensor.dtype not in allowed:
        kind = "nested" if tensor.is_nested else str(tensor.dtype).removeprefix("torch.")
        wanted = "int64" if allowed is _NUMBERS else "plain floating point numbers"
        raise FileError(f"{shown(path)} holds {shown(name)} as {kind}; it must hold {wanted}")
    if tensor.numel() > (held := _held(tensor)):
        raise FileError(
            f"{shown(path)} claims {tensor.numel():,} values for {shown(name)} and holds "
            f"{held:,}; a checkpoint must hold every value"
        )


def _held(tensor: Tensor) -> int:
    """Return how many values the storage of a tensor has."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return 0
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def is_overstated(content: object) -> bool:
    """Return whether a tensor anywhere in what was loaded claims more values than are stored.

    One value that is repeated a million million times fits in any file, and ends no sum.
    """
    left: list[Any] = [content]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor) and value.numel() > _held(value):
            return True
        if id(value) not in seen:
            seen.add(id(value))
            parts = getattr(value, "__dict__", value)
            parts = parts.values() if isinstance(parts, Mapping) else parts
            if isinstance(parts, (list, tuple, set, ValuesView)):
                left += parts
    return False


def _fitted(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Take off the prefixes of wrappers, as long as no name is one of the model's."""
    while not state.keys() & wanted:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
