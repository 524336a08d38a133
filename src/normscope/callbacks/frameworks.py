"""The classes that the callbacks of training frameworks derive from."""

import sys
from importlib import import_module
from typing import Any

from normscope.errors import MissingExtraError


def lightning() -> Any:
    """Return the package of Lightning that is in use; both may be installed.

    Raises:
        MissingExtraError: neither is installed.
    """
    packages = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(packages, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise MissingExtraError(
        "this callback needs Lightning: pip install 'normscope[lightning]' or lightning"
    )


def callback_of_lightning() -> Any:
    """Return the class Callback of Lightning."""
    return lightning().Callback


def callback_of_transformers() -> Any:
    """Return the class TrainerCallback of transformers.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    try:
        return import_module("transformers.trainer_callback").TrainerCallback
    except ImportError as problem:
        raise MissingExtraError(
            "this callback needs transformers: pip install 'normscope[transformers]'"
        ) from problem
