"""normscope: what batch normalisation does to your classes, shown, trained and repaired.

    >>> import normscope
    >>> print(normscope.explain(seeds=1))  # doctest: +ELLIPSIS
    If batch normalisation makes all classes alike, how can a network still tell them apart?
    ...

Public names are resolved on first use, so `import normscope` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names as in _WHERE, for editors and type checkers
    from normscope import conversion as conversion
    from normscope import doctor as doctor
    from normscope import equivalence as equivalence
    from normscope import errors as errors
    from normscope import experiment as experiment
    from normscope import folding as folding
    from normscope import functional as functional
    from normscope import layers as layers
    from normscope import lens as lens
    from normscope import lesson as lesson
    from normscope import moments as moments
    from normscope import probe as probe
    from normscope import published as published
    from normscope import records as records
    from normscope.conversion import convert as convert
    from normscope.conversion import from_flax as from_flax
    from normscope.conversion import from_inplace_abn as from_inplace_abn
    from normscope.conversion import from_keras as from_keras
    from normscope.doctor import assert_healthy as assert_healthy
    from normscope.doctor import diagnose as diagnose
    from normscope.doctor.adapt import adapt as adapt
    from normscope.doctor.recalibrate import recalibrate as recalibrate
    from normscope.doctor.repair import repair as repair
    from normscope.equivalence import apply_passport as apply_passport
    from normscope.equivalence import assert_parity as assert_parity
    from normscope.equivalence import parity as parity
    from normscope.equivalence import passport as passport
    from normscope.equivalence import read_passport as read_passport
    from normscope.equivalence import write_passport as write_passport
    from normscope.errors import FileError as FileError
    from normscope.errors import InputError as InputError
    from normscope.errors import MissingExtraError as MissingExtraError
    from normscope.errors import ModelError as ModelError
    from normscope.errors import NormscopeError as NormscopeError
    from normscope.experiment import train as train
    from normscope.folding import fold as fold
    from normscope.kernels.recomputation import recompute as recompute
    from normscope.layers import BatchNorm1d as BatchNorm1d
    from normscope.layers import BatchNorm2d as BatchNorm2d
    from normscope.layers import BatchNorm3d as BatchNorm3d
    from normscope.layers import BatchRenorm1d as BatchRenorm1d
    from normscope.layers import BatchRenorm2d as BatchRenorm2d
    from normscope.layers import BatchRenorm3d as BatchRenorm3d
    from normscope.layers import ConditionalBatchNorm1d as ConditionalBatchNorm1d
    from normscope.layers import ConditionalBatchNorm2d as ConditionalBatchNorm2d
    from normscope.layers import ConditionalBatchNorm3d as ConditionalBatchNorm3d
    from normscope.layers import EvalNorm1d as EvalNorm1d
    from normscope.layers import EvalNorm2d as EvalNorm2d
    from normscope.layers import EvalNorm3d as EvalNorm3d
    from normscope.layers import FrozenBatchNorm1d as FrozenBatchNorm1d
    from normscope.layers import FrozenBatchNorm2d as FrozenBatchNorm2d
    from normscope.layers import FrozenBatchNorm3d as FrozenBatchNorm3d
    from normscope.layers import GhostBatchNorm1d as GhostBatchNorm1d
    from normscope.layers import GhostBatchNorm2d as GhostBatchNorm2d
    from normscope.layers import GhostBatchNorm3d as GhostBatchNorm3d
    from normscope.layers import ModeNorm1d as ModeNorm1d
    from normscope.layers import ModeNorm2d as ModeNorm2d
    from normscope.layers import ModeNorm3d as ModeNorm3d
    from normscope.layers import Policy as Policy
    from normscope.layers import commit as commit
    from normscope.layers import condition as condition
    from normscope.layers import guard as guard
    from normscope.layers import snapshot as snapshot
    from normscope.layers.statistics import merge_ranks as merge_ranks
    from normscope.lens import inspect as inspect
    from normscope.lens.compare import compare as compare
    from normscope.lens.monitor import monitor as monitor
    from normscope.lesson import explain as explain
    from normscope.moments import Moments as Moments
    from normscope.published import claims as claims
    from normscope.records import load as load

_FAMILY = {
    "batch": ("BatchNorm", "GhostBatchNorm"),
    "conditional": ("ConditionalBatchNorm",),
    "frozen": ("FrozenBatchNorm",),
    "mode": ("ModeNorm",),
    "own": ("EvalNorm",),
    "renorm": ("BatchRenorm",),
}
_NAMES = {
    "conversion": "convert from_flax from_inplace_abn from_keras",
    "doctor": "diagnose repair recalibrate adapt assert_healthy",
    "equivalence": "parity assert_parity passport read_passport write_passport apply_passport",
    "errors": "InputError FileError MissingExtraError ModelError NormscopeError",
    "experiment": "train",
    "folding": "fold",
    "kernels.recomputation": "recompute",
    "layers.conditional": "condition",
    "layers.guarding": "guard commit",
    "layers.statistics": "merge_ranks snapshot Policy",
    "lens": "inspect compare monitor",
    "lesson": "explain",
    "moments": "Moments",
    "published": "claims",
    "records": "load",
}
_WHERE = {
    **{name: module for module, names in _NAMES.items() for name in names.split()},
    **{
        f"{name}{rank}d": f"layers.{file}"
        for file, names in _FAMILY.items()
        for name in names
        for rank in (1, 2, 3)
    },
}
_ROOMS = (
    "conversion",
    "doctor",
    "equivalence",
    "errors",
    "experiment",
    "folding",
    "functional",
    "layers",
    "lens",
    "lesson",
    "moments",
    "probe",
    "published",
    "records",
)

__all__ = ["__version__", *_ROOMS, *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"normscope.{_WHERE[name]}"), name)
    if name in _ROOMS:
        return import_module(f"normscope.{name}")
    raise AttributeError(f"normscope has no {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
