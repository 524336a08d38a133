"""Packages that not every environment has."""

import warnings
from typing import Any

import pytest


def quiet_import(name: str) -> Any:
    """Import a package whose import warns; without it the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)
