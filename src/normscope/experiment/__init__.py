"""Data sources, networks and the training loop that records what it does."""

from normscope.experiment.fit import load_member, load_run
from normscope.experiment.training import train

__all__ = ["load_member", "load_run", "train"]
