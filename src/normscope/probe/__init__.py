"""Find the normalisation layers of any model, observe what passes through them, leave no trace."""

from normscope.probe.layers import Norm, bare, culprit, eps_of, find_norms, named_layers
from normscope.probe.observe import ACTIVATIONS, Call, Watcher, observe
from normscope.probe.restore import preserved

untouched = preserved  # its name until 0.1

__all__ = [
    "ACTIVATIONS",
    "Call",
    "Norm",
    "Watcher",
    "bare",
    "culprit",
    "eps_of",
    "find_norms",
    "named_layers",
    "observe",
    "preserved",
    "untouched",
]
