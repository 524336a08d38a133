"""One pass over a model and its data: what every normalisation layer did to every class."""

from normscope.lens.accumulation import Accumulation as Accumulation
from normscope.lens.compare import compare as compare
from normscope.lens.monitor import Monitor as Monitor
from normscope.lens.monitor import monitor as monitor
from normscope.lens.one_pass import accumulate as accumulate
from normscope.lens.one_pass import inspect as inspect
from normscope.lens.one_pass import inspection as inspection

Watch, watch = Monitor, monitor  # their names before
