"""Data sources, networks and the training loop that records what it does."""

from normscope.experiment.training import train

__all__ = ["train"]
