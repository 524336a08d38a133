"""Find the normalisation layers of any model, observe what passes through them, leave no trace."""

from normscope.probe.layers import Norm, bare, culprit, find_norms, named_layers
from normscope.probe.observe import ACTIVATIONS, Call, Watcher, observe
from normscope.probe.untouched import untouched

__all__ = [
    "ACTIVATIONS",
    "Call",
    "Norm",
    "Watcher",
    "bare",
    "culprit",
    "find_norms",
    "named_layers",
    "observe",
    "untouched",
]
