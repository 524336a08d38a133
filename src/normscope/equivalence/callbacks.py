"""Callbacks that give every checkpoint of a training framework its passport."""

from normscope.callbacks import lightning_passport as lightning
from normscope.callbacks import trainer_passport as trainer

__all__ = ["lightning", "trainer"]
