import itertools
import multiprocessing as mp
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from normscope.errors import InputError
from normscope.functional import moments
from normscope.moments import Moments


def of(x: torch.Tensor) -> Moments:
    """Moments of (N, C) values as one set with axes () and (C,)."""
    return moments(x)[0]


def assert_same(a: Moments, b: Moments, rtol: float = 1e-12) -> None:
    for name in ("count", "mean", "m2"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=rtol, atol=1e-12)


@given(
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
)
def test_any_split_gives_the_moments_of_the_whole(cuts: list[int], offset: float) -> None:
    x = torch.from_numpy(np.random.default_rng(7).normal(offset, 2.0, (40, 3)))
    edges = [0, *sorted(cuts), 40]
    parts = [of(x[a:b]) for a, b in itertools.pairwise(edges)]
    merged = sum(parts[1:], start=parts[0])
    assert_same(merged, of(x), rtol=1e-9)
    assert_same(sum(reversed(parts), start=Moments.empty(3)), of(x), rtol=1e-9)


def test_empty_is_neutral_and_has_no_variance() -> None:
    some = of(torch.randn(5, 2, dtype=torch.double))
    assert_same(Moments.empty(2) + some, some)
    assert_same(some + Moments.empty(2), some)
    assert Moments.empty(2).var(correction=0).isnan().all()


def test_sets_are_taken_and_made_room_for() -> None:
    x, groups = torch.randn(9, 2, dtype=torch.double), torch.arange(9) % 3
    sets = moments(x, groups, num_groups=3)
    assert_same(sets[1], of(x[1::3]))
    assert sets.pool()[None].mean.shape == (1, 2)
    more = sets.padded(5)
    assert more.count.tolist() == [3, 3, 3, 0, 0]
    assert_same(more.pool(), of(x))
    assert_same(sets.padded(2), sets)


def test_var_names_its_correction() -> None:
    x = torch.randn(7, 3, dtype=torch.double)
    torch.testing.assert_close(of(x).var(correction=0), x.var(0, correction=0))
    torch.testing.assert_close(of(x).var(correction=1), x.var(0, correction=1))
    assert of(x[:1]).var(correction=1).isnan().all()


def test_pool_is_the_law_of_total_variance() -> None:
    x = torch.randn(30, 4, dtype=torch.double) + torch.arange(30).unsqueeze(1)
    groups = torch.arange(30) % 3
    groups[groups == 1] = 0  # one group stays empty
    assert_same(moments(x, groups, num_groups=3).pool(), of(x))


def test_large_mean_keeps_the_variance() -> None:
    x = torch.randn(1000, 2, dtype=torch.double) + 1e8
    near_zero = x - 1e8  # exact: the numbers are close
    torch.testing.assert_close(
        of(x).var(correction=0), near_zero.var(0, correction=0), rtol=1e-12, atol=0
    )


def _rank(rank: int, world: int, folder: str, x: torch.Tensor, edges: list[int]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    part = moments(x[edges[rank] : edges[rank + 1]])
    together = part.all_reduce()
    torch.save([together.count, together.mean, together.m2], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_all_reduce_equals_one_process_with_an_empty_rank(tmp_path: Path) -> None:
    if not dist.is_available():
        pytest.skip("torch was built without distributed")
    x = torch.randn(9, 3, dtype=torch.double)
    edges = [0, 6, 6, 9]
    context = mp.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(r, 3, str(tmp_path), x, edges)) for r in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
        assert rank.exitcode == 0
    for r in range(3):
        assert_same(Moments(*torch.load(tmp_path / f"{r}.pt", weights_only=True)), moments(x))


def test_all_reduce_without_other_processes_says_what_to_do() -> None:
    with pytest.raises(InputError, match="this process is none; call .*init_process_group first"):
        of(torch.randn(5, 2)).all_reduce()


def test_moments_carry_gradients_and_go_through_vmap() -> None:
    x = torch.randn(3, 6, 2, dtype=torch.double)
    leaf = x[0].clone().requires_grad_()
    found = moments(leaf)
    (slope,) = torch.autograd.grad(found.m2.sum(), leaf)
    torch.testing.assert_close(slope, 2 * (x[0] - x[0].mean(0)))
    many = torch.vmap(lambda part: moments(part).mean)(x)
    torch.testing.assert_close(many, x.mean(1, keepdim=True))
