"""Shared by all tests: a seed per test, few threads, and nothing left behind."""

import zlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# no deadline: timings on a shared machine are not what is tested; derandomised: the same every run
settings.register_profile("normscope", deadline=None, derandomize=True, database=None)
settings.load_profile("normscope")


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
