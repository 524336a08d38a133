"""A fixture for pytest: `def test_model(assert_healthy): assert_healthy(model, loader)`."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_healthy() -> Callable[..., Any]:
    """Return `normscope.doctor.assert_healthy`, which fails with one line per finding."""
    from normscope.doctor import assert_healthy

    return assert_healthy
