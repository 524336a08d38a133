"""normscope: what batch normalisation does to your classes, shown, trained and repaired.

Public names are resolved on first use, so `import normscope` does not import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "BatchNorm1d": "layers.batch",
    "BatchNorm2d": "layers.batch",
    "BatchNorm3d": "layers.batch",
    "ConditionalBatchNorm1d": "layers.conditional",
    "ConditionalBatchNorm2d": "layers.conditional",
    "ConditionalBatchNorm3d": "layers.conditional",
    "condition": "layers.conditional",
    "Moments": "moments",
    "InputError": "errors",
    "FileError": "errors",
    "ModelError": "errors",
    "NormscopeError": "errors",
}
_ROOMS = (
    "errors",
    "functional",
    "layers",
    "lens",
    "lesson",
    "moments",
    "probe",
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
