"""The layers people know by name, thin over `functional`."""

from normscope.layers.batch import BatchNorm1d as BatchNorm1d
from normscope.layers.batch import BatchNorm2d as BatchNorm2d
from normscope.layers.batch import BatchNorm3d as BatchNorm3d
from normscope.layers.batch import GhostBatchNorm1d as GhostBatchNorm1d
from normscope.layers.batch import GhostBatchNorm2d as GhostBatchNorm2d
from normscope.layers.batch import GhostBatchNorm3d as GhostBatchNorm3d
from normscope.layers.conditional import ConditionalBatchNorm1d as ConditionalBatchNorm1d
from normscope.layers.conditional import ConditionalBatchNorm2d as ConditionalBatchNorm2d
from normscope.layers.conditional import ConditionalBatchNorm3d as ConditionalBatchNorm3d
from normscope.layers.conditional import condition as condition
from normscope.layers.frozen import FrozenBatchNorm1d as FrozenBatchNorm1d
from normscope.layers.frozen import FrozenBatchNorm2d as FrozenBatchNorm2d
from normscope.layers.frozen import FrozenBatchNorm3d as FrozenBatchNorm3d
from normscope.layers.guarding import commit as commit
from normscope.layers.guarding import guard as guard
from normscope.layers.mode import ModeNorm1d as ModeNorm1d
from normscope.layers.mode import ModeNorm2d as ModeNorm2d
from normscope.layers.mode import ModeNorm3d as ModeNorm3d
from normscope.layers.renorm import BatchRenorm1d as BatchRenorm1d
from normscope.layers.renorm import BatchRenorm2d as BatchRenorm2d
from normscope.layers.renorm import BatchRenorm3d as BatchRenorm3d
from normscope.layers.statistics import Policy as Policy
from normscope.layers.statistics import Snapshot as Snapshot
from normscope.layers.statistics import snapshot as snapshot
