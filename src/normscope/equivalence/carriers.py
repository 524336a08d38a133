"""Where a passport lies: in the metadata of safetensors, or in a file beside any checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from normscope.errors import FileError, InputError
from normscope.files import json_text, read_bytes, read_text, shown, write_whole
from normscope.probe.load import read_weights, write_weights
from normscope.records import Passport

KEY = "normscope.passport"
ENDING = ".passport.json"


def beside(path: Path) -> Path:
    """Return the path beside a checkpoint where its passport lies."""
    return path.with_name(path.name + ENDING)


def write_passport(path: str | Path, own: Passport) -> Path:
    """Give a checkpoint its passport: into safetensors, beside any other; where it was written.

    Other metadata, names, dtypes and values stay as they are.

    >>> import torch, normscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, eps=1e-3))
    >>> torch.save(model.state_dict(), "model.pt")
    >>> normscope.write_passport("model.pt", normscope.passport(model)).name
    'model.pt.passport.json'

    Raises:
        FileError: the checkpoint cannot be read, or the file not be written.
    """
    path = Path(path)
    metadata = _metadata(path)
    if metadata is not None:
        write_weights(path, read_weights(path), {**metadata, KEY: own.to_json()})
        return path
    read_bytes(path, "checkpoint")
    return write_whole(beside(path), json_text(json.loads(own.to_json()), indent=1) + "\n")


def read_passport(path: str | Path) -> Passport | None:
    """Read the passport in a checkpoint, or beside it; None where there is none.

    >>> import torch, normscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, eps=1e-3))
    >>> torch.save(model.state_dict(), "model.pt")
    >>> normscope.read_passport("model.pt") is None
    True

    Raises:
        FileError: a file that cannot be read, or a passport that is damaged.
    """
    path = Path(path)
    text, where = (_metadata(path) or {}).get(KEY), path
    if text is None and beside(path).is_file():
        where = beside(path)
        text = read_text(where, "passport")
    if text is None:
        return None
    try:
        return Passport.from_json(text)
    except InputError as problem:
        raise FileError(f"{shown(where)} holds a damaged passport: {problem}") from problem


def passport_in(content: Mapping[str, Any]) -> Passport | None:
    """Read the passport that a callback wrote into a checkpoint of a training framework."""
    text = content.get(KEY)
    return Passport.from_json(text) if isinstance(text, str) else None


def _metadata(path: Path) -> dict[str, str] | None:
    """Read the strings in the header of a safetensors file, without its tensors.

    None for a file of another format, as its first bytes say.
    """
    if not path.is_file():
        raise FileError(f"there is no checkpoint {shown(path)}; check the path")
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return None
    try:
        with safe_open(path, framework="pt") as tensors:
            return dict(tensors.metadata() or {})
    except SafetensorError as problem:
        raise FileError(
            f"{shown(path)} is truncated or damaged; copy or download the checkpoint again"
        ) from problem
