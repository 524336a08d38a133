"""The layers people know by name, thin over `functional`."""

from normscope.layers.batch import BatchNorm1d as BatchNorm1d
from normscope.layers.batch import BatchNorm2d as BatchNorm2d
from normscope.layers.batch import BatchNorm3d as BatchNorm3d
from normscope.layers.conditional import ConditionalBatchNorm1d as ConditionalBatchNorm1d
from normscope.layers.conditional import ConditionalBatchNorm2d as ConditionalBatchNorm2d
from normscope.layers.conditional import ConditionalBatchNorm3d as ConditionalBatchNorm3d
from normscope.layers.conditional import condition as condition
