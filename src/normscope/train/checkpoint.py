"""Save and load unfinished training, and finished networks; nothing in a file can run."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from normscope.errors import FileError, InputError
from normscope.files import shown, write_whole
from normscope.train.nets import ModelConfig
from normscope.weights import read_weights, write_weights

AGAIN = "start again with --overwrite"


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """One network at the end of an epoch, with all that its further training depends on."""

    norm: str
    seed: int
    step: int
    seconds: float
    curve: list[dict[str, Any]]  # of each `Epoch`
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    telemetry: dict[str, Tensor]
    rng: Tensor  # of torch

    def save(self, path: Path) -> None:
        """Write it whole; raises FileError and leaves the old one where that fails."""
        content = io.BytesIO()
        torch.save(vars(self), content)
        write_whole(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            FileError: cut short, or something else; nothing in it is run.
        """
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except Exception as problem:  # a damaged file fails in torch in a dozen ways
            raise FileError(
                f"{shown(path)} is no whole checkpoint of a run; nothing in it was run, {AGAIN}"
            ) from problem


def restore(path: Path, begun: Checkpoint, model: nn.Module, optimizer: Any) -> None:
    """Load the tensors of a checkpoint; raises FileError where they do not fit."""
    try:
        model.load_state_dict(begun.model)
        optimizer.load_state_dict(begun.optimizer)
        for parameter, state in optimizer.state.items():
            for name, tensor in state.items():
                if isinstance(tensor, Tensor) and tensor.shape != parameter.shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}")
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
    except (KeyError, TypeError, RuntimeError, ValueError, OSError, SafetensorError) as problem:
        if isinstance(problem, InputError):
            raise
        raise FileError(f"{shown(path)} is no network of a run; train it again") from problem
    return model.eval()
