"""Callbacks of training frameworks that look after a model's health, by the names of this room."""

from normscope.callbacks import lightning_averages as averages
from normscope.callbacks import lightning_health as lightning
from normscope.callbacks import trainer_health as trainer

__all__ = ["averages", "lightning", "trainer"]
