"""Models for inference, their batch norms folded into the linear layers next to them."""

from normscope.folding.model import Folding, fold
from normscope.folding.pair import Folded

__all__ = ["Folded", "Folding", "fold"]
