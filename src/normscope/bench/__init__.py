"""Speed, memory and accuracy of the operator and of its peers, in one run."""

from normscope.bench.check import check_kernel
from normscope.bench.session import measure
from normscope.bench.warm import warm

__all__ = ["check_kernel", "measure", "warm"]
