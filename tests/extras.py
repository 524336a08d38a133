"""Packages that not every environment has."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def quiet_import(name: str) -> Any:
    """Import a package whose import warns; without it the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def lightning_module(net: nn.Module) -> Any:
    """Make a module of Lightning that learns classes."""
    pl = quiet_import("pytorch_lightning")

    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, place: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()
