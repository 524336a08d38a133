"""Shared by all tests: a seed per test, few threads, and nothing left behind."""

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

# no deadline: timings on a shared machine are not what is tested; derandomised: the same every run
settings.register_profile("normscope", deadline=None, derandomize=True, database=None)
settings.load_profile("normscope")

# files whose few tests take long begin first, so that no process ends with one of them alone
SLOW = (
    "test_timm",
    "test_distributed_train",
    "test_notebooks",
    "test_sync",
)  # `make slow` and .ci/run run them
LONG = (*SLOW, "test_cli", "test_gpu", "test_browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    before = _global_state()
    yield
    assert _global_state() == before, "a test changed torch's global state"


def _global_state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        len(torch.nn.modules.module._global_forward_hooks),
        len(torch.nn.modules.module._global_forward_pre_hooks),
    )


@pytest.fixture(scope="session")
def torchvision_operators() -> None:
    """The operators that torchvision's compiled half would bring, for what imports torchvision."""
    if importlib.util.find_spec("torchvision") and "torchvision" not in sys.modules:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _fragments.append(fragment)


@pytest.fixture(scope="session")
def timm(torchvision_operators: None) -> Any:
    """The timm package."""
    for name in ("torchvision", "timm"):
        if importlib.util.find_spec(name) is None:
            assert "CI" not in os.environ, f"CI needs {name}"
            pytest.skip(f"{name} is not installed")
    return importlib.import_module("timm")


_fragments: list[torch.library.Library] = []  # a fragment goes when nobody holds it
