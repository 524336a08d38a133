"""Models by name and checkpoints by content: what a file is comes before what it holds."""

import importlib
import importlib.util
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import FileError, InputError, MissingExtraError, ModelError
from normscope.factories import made, reason
from normscope.files import shown, write_whole

# where training frameworks put the weights among other things, and what they put before each name
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.")

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a pickled magic number


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """The model that `spec` names, with the weights of a checkpoint where one is given.

    Args:
        spec: "pkg.module:factory", "path/file.py:factory" or "timm:NAME". The factory is called
            without arguments; a module that is already built serves too.
        weights: safetensors or a torch checkpoint, see `read_weights`.

    Raises:
        InputError: a spec of another form.
        ModelError: the factory is not there, fails, or gives no module; weights that do not fit.
        MissingExtraError: timm is not installed.
        FileError: as `read_weights`.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(
            f"{spec!r} names no model; write pkg.module:factory, path/file.py:factory or timm:NAME"
        )
    state = None if weights is None else read_weights(weights)
    model = _timm(name) if place == "timm" else _made(place, name)
    if state is not None and weights is not None:
        try:
            model.load_state_dict(_fitted(state, set(model.state_dict())))
        except RuntimeError as problem:
            reasons = " ".join(str(problem).split("\n", 1)[-1].split())
            raise ModelError(
                f"{shown(weights)} does not fit {type(model).__name__}: {reasons[:300]}"
            ) from problem
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU; no code in the file is ever run.

    Reads safetensors, and torch files through `torch.load(weights_only=True)` without mmap. The
    weights may lie inside {"state_dict": ...}, {"model": ...} and the like.

    Raises:
        FileError: the file is missing, a folder, empty, a Git LFS pointer, a web page, text,
            truncated, compressed, asks to run code, claims more values than it holds, or holds
            no weights.
    """
    data = _bytes(path)
    if data[:4] == b"PK\x03\x04":
        content = _zipped(path, data)
    elif data.startswith(_LEGACY):
        content = _torch(path, data)
    elif data[8:9] == b"{":
        content = _safetensors(path, data)
    else:
        raise FileError(f"{shown(path)} is {_kind(data)}; give safetensors or a torch checkpoint")
    state = _unwrapped(content)
    if not state:
        raise FileError(f"{shown(path)} holds no weights; save model.state_dict()")
    for name, tensor in state.items():
        _check_whole(path, name, tensor)
    return state


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and strings as one safetensors file, whole.

    Raises:
        FileError: the file cannot be written; what was there before is still there.
    """
    from safetensors.torch import save

    # each on its own: tensors that share memory are refused by the format
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_whole(path, save(own, metadata))


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise FileError(f"{shown(path)} is a folder; name the checkpoint in it")
    if not path.exists():
        raise FileError(f"there is no checkpoint {shown(path)}; check the path")
    if not path.is_file():
        raise FileError(f"{shown(path)} is no plain file; copy the checkpoint to one")
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise FileError(f"{shown(path)} cannot be read: {problem.strerror}") from problem
    if not data:
        raise FileError(f"{shown(path)} is empty; copy or download the checkpoint again")
    return data


def _kind(data: bytes) -> str:
    """What a file that is no checkpoint is, as a phrase."""
    start = data[:1024].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (run git lfs pull)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps of a login or an error"
    if data[:1] == b"\x80":
        return "a bare pickle, which could run code when read"
    if b"\0" not in data[:1024]:
        return "text"
    return "no checkpoint, or a damaged one"


def _zipped(path: Path, data: bytes) -> Any:
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except zipfile.BadZipFile as problem:
        raise _damaged(path) from problem
    names = {member.filename.rpartition("/")[2] for member in members}
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise FileError(
            f"{shown(path)} is a compressed archive, which torch never writes and which may "
            "unpack to any size; save the checkpoint again with torch.save or safetensors"
        )
    if "constants.pkl" in names:
        raise FileError(
            f"{shown(path)} is a TorchScript program; save its state_dict() and give that"
        )
    if "data.pkl" not in names:
        raise FileError(f"{shown(path)} is a zip archive without a checkpoint in it")
    return _torch(path, data)


def _torch(path: Path, data: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        found = re.search(r"GLOBAL (\S+)", str(problem))
        what = f"{found[1]} when it is read" if found else "more than tensors when it is read"
        raise FileError(
            f"{shown(path)} asks for {what}, which could run code; nothing was run, "
            "ask for a file with nothing but the state_dict, best as safetensors"
        ) from problem
    except Exception as problem:
        # a damaged file fails in torch in a dozen ways
        raise _damaged(path) from problem


def _safetensors(path: Path, data: bytes) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as problem:
        raise _damaged(path) from problem


def _damaged(path: Path) -> FileError:
    return FileError(
        f"{shown(path)} is truncated or damaged; copy or download the checkpoint again"
    )


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The state_dict in whatever a training framework saved; empty where there is none."""
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _unwrapped(content[key])
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _check_whole(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that claims values which the file does not hold."""
    stored = 0
    if tensor.layout is torch.strided and tensor.device.type == "cpu":
        stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:
        raise FileError(
            f"{shown(path)} claims {tensor.numel():,} values for {shown(name)} and holds "
            f"{stored:,}; a checkpoint must hold every value"
        )


def _fitted(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, as long as no name is one of the model's."""
    while not state.keys() & wanted:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _timm(name: str) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError(f"timm:{name} needs timm: pip install 'normscope[timm]'")
    try:
        timm = importlib.import_module("timm")
    except Exception as problem:
        raise ModelError(
            f"timm cannot be imported ({reason(problem)}); where that names torchvision, "
            "install the torchvision made for your torch"
        ) from problem
    try:
        model: nn.Module = timm.create_model(name, pretrained=False)
    except Exception as problem:
        raise ModelError(f"timm makes no model {name!r}: {reason(problem)}") from problem
    return model


def _made(place: str, name: str) -> nn.Module:
    """The module that `name` in the file or package `place` is or returns."""
    value = made(place, name, finished=nn.Module)
    if not isinstance(value, nn.Module):
        raise ModelError(
            f"{shown(place)}:{name} gives {type(value).__name__}; it must give a torch.nn.Module"
        )
    return value
