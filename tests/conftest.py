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
    "test_wheel",
)  # `make slow` and .ci/run run them
LONG = (*SLOW, "test_cli", "test_gpu", "test_browser")


# what torch itself does otherwise before 2.12
OLD_TORCH = {
    "test_a_graph_of_any_size_is_one_graph": "torch.compile of a layer needs torch 2.12",
    "test_compiles_and_exports": "torch.compile of a layer needs torch 2.12",
    "test_compiles_in_one_graph_without_recompiling": "torch.compile of a layer needs torch 2.12",
    "test_eps_zero_is_allowed_in_eval": "torch refuses eps=0 in eval() before 2.12",
    "test_errors_are_torchs": "torch words these errors otherwise before 2.12",
    "test_every_error_of_torchs_own_suite": "torch accepts some of these before 2.12",
    "test_inductor_agrees_with_eager": "torch.compile of a layer needs torch 2.12",
    "test_signature_repr_and_class_are_torchs": "torch has no bias= before 2.13",
}
IS_OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = OLD_TORCH.get(getattr(item, "originalname", item.name))
        if IS_OLD and reason:
            item.add_marker(pytest.mark.skip(reason=reason))
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
    """The operators that torchvision's compiled half brings, where it does not fit this torch."""
    if importlib.util.find_spec("torchvision") is None or "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
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
