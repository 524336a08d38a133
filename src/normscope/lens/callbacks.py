"""Telemetry inside Lightning and the Hugging Face Trainer, by the names of this room."""

from normscope.callbacks import labels_of as labels_of
from normscope.callbacks import lightning_monitor as lightning
from normscope.callbacks import trainer_monitor as trainer

__all__ = ["labels_of", "lightning", "trainer"]
