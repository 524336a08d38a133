"""Weights and unfinished training in safetensors: whole writes, and nothing in them can run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from normscope.errors import FileError
from normscope.files import shown
from normscope.probe.load import read_weights, write_weights
from normscope.records import Epoch
from normscope.train.nets import Blueprint

AGAIN = "start again with --overwrite"


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """One network at the end of an epoch, with all that its further training depends on."""

    norm: str
    seed: int
    step: int
    seconds: float
    curve: tuple[Epoch, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # see `optimizer_tensors`
    telemetry: dict[str, Tensor]
    rng: Tensor  # of torch

    def save(self, path: Path) -> None:
        """Write it whole; raises FileError and leaves the old one where that fails."""
        tensors = {"rng": self.rng}
        for part in ("model", "optimizer", "telemetry"):
            tensors |= {f"{part}.{name}": t for name, t in getattr(self, part).items()}
        progress = {
            "norm": self.norm,
            "seed": self.seed,
            "step": self.step,
            "seconds": self.seconds,
            "curve": [asdict(epoch) for epoch in self.curve],
        }
        write_weights(path, tensors, {"progress": json.dumps(progress)})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read what `save` wrote.

        Raises:
            FileError: missing, cut short, or something else; nothing in it is run.
        """
        tensors, metadata = read_tensors(path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "telemetry": {}}
        try:
            rng = tensors.pop("rng")
            for key, tensor in tensors.items():
                part, _, name = key.partition(".")
                parts[part][name] = tensor
            progress = json.loads(metadata["progress"])
            return cls(
                norm=str(progress["norm"]),
                seed=int(progress["seed"]),
                step=int(progress["step"]),
                seconds=float(progress["seconds"]),
                curve=tuple(Epoch(**epoch) for epoch in progress["curve"]),
                **parts,
                rng=rng,
            )
        except (KeyError, TypeError, ValueError) as problem:
            raise FileError(f"{shown(path)} is no whole checkpoint; {AGAIN}") from problem


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of each parameter, as "index.name"."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore(path: Path, checkpoint: Checkpoint, model: nn.Module, optimizer: Any) -> None:
    """Give model and optimiser the tensors of a checkpoint; FileError where they do not fit."""
    state: dict[int, dict[str, Tensor]] = {}
    try:
        model.load_state_dict(checkpoint.model)
        parameters = list(model.parameters())
        for key, tensor in checkpoint.optimizer.items():
            index, _, name = key.partition(".")
            if tensor.dim() and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"{key} is {tuple(tensor.shape)}")
            state.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    except (RuntimeError, ValueError, IndexError) as problem:
        raise FileError(f"{shown(path)} does not fit this network; {AGAIN}") from problem


def save_model(path: Path, model: nn.Module, blueprint: Blueprint) -> None:
    """Write a network's state_dict, with what is needed to build it again."""
    write_weights(path, model.state_dict(), {"blueprint": json.dumps(asdict(blueprint))})


def load_model(path: Path) -> nn.Module:
    """The network that `save_model` wrote, in eval mode.

    Raises:
        FileError: missing, cut short, or something else; nothing in it is run.
        InputError: made by a version with other nets or norms.
    """
    tensors, metadata = read_tensors(path)
    try:
        fields = json.loads(metadata["blueprint"])
        model = Blueprint(**fields | {"shape": tuple(fields["shape"])}).build(seed=0)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError, json.JSONDecodeError) as problem:
        raise FileError(f"{shown(path)} is no network of a run; train it again") from problem
    return model.eval()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_weights` wrote; raises FileError as `read_weights`."""
    tensors = read_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as problem:
        raise FileError(f"{shown(path)} is no safetensors file; {AGAIN}") from problem
