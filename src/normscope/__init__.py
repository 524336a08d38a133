"""normscope: what batch normalisation does to your classes, shown, trained and repaired.

Public names are resolved on first use, so `import normscope` does not import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FAMILY = {
    "batch": ("BatchNorm", "GhostBatchNorm"),
    "conditional": ("ConditionalBatchNorm",),
    "frozen": ("FrozenBatchNorm",),
    "mode": ("ModeNorm",),
    "own": ("EvalNorm",),
    "renorm": ("BatchRenorm",),
}
_WHERE = {
    **{
        f"{name}{rank}d": f"layers.{file}"
        for file, names in _FAMILY.items()
        for name in names
        for rank in (1, 2, 3)
    },
    "condition": "layers.conditional",
    "guard": "layers.guarding",
    "commit": "layers.guarding",
    "merge_ranks": "layers.statistics",
    "snapshot": "layers.statistics",
    "Policy": "layers.statistics",
    "convert": "conversion",
    "from_flax": "conversion",
    "from_inplace_abn": "conversion",
    "from_keras": "conversion",
    "fold": "folding",
    "parity": "equivalence",
    "assert_parity": "equivalence",
    "passport": "equivalence",
    "claims": "published",
    "read_passport": "equivalence",
    "write_passport": "equivalence",
    "apply_passport": "equivalence",
    "Moments": "moments",
    "recalibrate": "doctor",
    "recompute": "kernels.recomputation",
    "InputError": "errors",
    "FileError": "errors",
    "ModelError": "errors",
    "NormscopeError": "errors",
}
_ROOMS = (
    "conversion",
    "doctor",
    "equivalence",
    "errors",
    "folding",
    "functional",
    "layers",
    "lens",
    "lesson",
    "moments",
    "probe",
    "published",
    "records",
    "train",
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
