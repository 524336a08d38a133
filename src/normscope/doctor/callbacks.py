"""Health checks inside Lightning and the Hugging Face Trainer, by the names of this room."""

from normscope.callbacks import lightning_health as lightning
from normscope.callbacks import trainer_health as trainer

__all__ = ["lightning", "trainer"]
