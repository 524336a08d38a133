"""What ranks tell each other: a group of one process, and another rank that a stub plays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from normscope.functional import moments
from normscope.moments import Moments, check_distributed
from normscope.probe.ranks import gathered

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
X = torch.randn(7, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    meet: Path = tmp_path_factory.mktemp("ranks") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_one_process_gathers_its_own_value(world: Any) -> None:
    value = {"a": [1, 2]}
    for group in ((), (None,), (world,)):
        found = gathered(value, *group)
        assert found == [value]
        assert found[0] is not value, "it has gone through the group"


def test_the_moments_of_one_process_are_its_own(world: Any) -> None:
    own = moments(X, torch.arange(7) % 2, num_groups=2)
    for together in (own.all_reduce(), own.all_reduce(world)):
        for name in ("count", "mean", "m2"):
            torch.testing.assert_close(getattr(together, name), getattr(own, name))
    check_distributed()
    check_distributed(world)


def test_the_moments_of_two_ranks_are_merged(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = torch.arange(7) % 2
    first = moments(X[:4], groups[:4], num_groups=2)
    second = moments(X[4:], groups[4:], num_groups=2)
    asked: list[Any] = []

    def other_rank(ranks: list[torch.Tensor], packed: torch.Tensor, group: Any = None) -> None:
        asked.append(group)
        ranks[0].copy_(packed)
        ranks[1].copy_(torch.cat([t.flatten() for t in (second.count, second.mean, second.m2)]))

    def two(group: Any = None) -> int:
        asked.append(group)
        return 2

    monkeypatch.setattr(dist, "get_world_size", two)
    monkeypatch.setattr(dist, "all_gather", other_rank)
    found = first.all_reduce(world)
    assert asked == [world, world]
    expected = moments(X, groups, num_groups=2)
    for name in ("count", "mean", "m2"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert isinstance(found, Moments)
