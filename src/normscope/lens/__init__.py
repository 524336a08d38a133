"""One pass over a model and its data: what every normalisation layer did to every class."""

from normscope.lens.inspection import inspect as inspect
