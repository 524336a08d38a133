"""Save and load unfinished training, and finished networks; nothing in a file can run."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from normscope.errors import FileError, InputError
from normscope.experiment.nets import ModelConfig
from normscope.files import shown, write_whole
from normscope.probe.load import is_overstated, read_weights, write_weights

AGAIN = "start again with --overwrite"


def save_checkpoint(path: Path, norm: str, seed: int, **parts: Any) -> None:
    """Write the states of a network in training, whole; the old file stays where that fails."""
    content = io.BytesIO()
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"norm": norm, "seed": seed, **states}, content)
    write_whole(path, content.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote; None where there is none.

    Raises:
        FileError: cut short, or something else; nothing in it is run.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = content["norm"], content["seed"], content["trainer"]["step"]
        if is_overstated(content):
            raise ValueError("it claims more values than it holds")
    except Exception as problem:  # a damaged file fails in torch in a dozen ways
        raise FileError(
            f"{shown(path)} is no whole checkpoint of a run; nothing in it was run, {AGAIN}"
        ) from problem
    return content


def restore(path: Path, content: dict[str, Any], **parts: Any) -> None:
    """Load the states of a checkpoint; raises FileError where they do not fit."""
    try:
        for name, part in parts.items():
            part.load_state_dict(content[name])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise FileError(f"{shown(path)} does not fit this network; {AGAIN}") from problem


def save_model(path: Path, model: nn.Module, config: ModelConfig) -> None:
    """Write a network's state_dict, with what is needed to build it again."""
    write_weights(path, model.state_dict(), {"blueprint": json.dumps(asdict(config))})


def load_model(path: Path) -> nn.Module:
    """Load the network that `save_model` wrote, in eval mode.

    Raises:
        FileError: missing, cut short, or something else; nothing in it is run.
        InputError: made by a version with other nets or norms.
    """
    tensors = read_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads(file.metadata()["blueprint"])
        model = ModelConfig(**fields | {"shape": tuple(fields["shape"])}).build(seed=0)
        model.load_state_dict(tensors)
    except InputError:
        raise
    except (KeyError, TypeError, RuntimeError, ValueError, OSError, SafetensorError) as problem:
        raise FileError(f"{shown(path)} is no network of a run; train it again") from problem
    return model.eval()
