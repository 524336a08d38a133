"""Random generators: kept and given back, begun anew, and a stream of one's own beside them."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from normscope.probe.random import RandomState, kept_generators, seed_all


def drawn() -> tuple[float, float, float]:
    """One number of each of the three generators."""
    numpys = np.random.rand()  # noqa: NPY002
    return float(torch.rand(())), random.random(), float(numpys)


def test_a_seed_begins_all_three_anew() -> None:
    with kept_generators():
        seed_all(7)
        first = drawn()
        seed_all(8)
        other = drawn()
        assert all(a != b for a, b in zip(first, other, strict=True))
        seed_all(7)
        assert drawn() == first
        torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
        assert drawn() == first, "as their own seeds do"
        seed_all(2**32 + 5)  # NumPy takes 32 bits
        large = drawn()
        seed_all(5)
        small = drawn()
        assert large[2] == small[2]
        assert large[:2] != small[:2]


def fails(inside: list[Any]) -> None:
    inside.append(drawn())
    raise KeyError


@pytest.mark.parametrize("seed", [None, 3])
def test_generators_go_on_outside_where_they_were(seed: int | None) -> None:
    with kept_generators(1):
        expected = drawn(), drawn()
    with kept_generators(1):
        first = drawn()
        inside: list[Any] = []
        with pytest.raises(KeyError), kept_generators(seed):
            fails(inside)
        assert (first, drawn()) == expected
    assert (inside[0] == expected[1]) is (seed is None), "without a seed they begin where they are"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def number(of: torch.Generator) -> float:
    return float(torch.rand((), generator=of))


def test_a_stream_of_ones_own_goes_on_inside_and_is_not_seen_outside() -> None:
    held = [generator(seed) for seed in (1, 2, 3)]
    loader: Any = SimpleNamespace(
        generator=held[0],
        sampler=SimpleNamespace(generator=held[1]),
        batch_sampler=SimpleNamespace(generator=held[2]),
    )
    with kept_generators(5):
        expected = [(drawn(), *map(number, held)) for _ in range(2)]
    for seed, one in zip((1, 2, 3), held, strict=True):
        one.manual_seed(seed)
    with kept_generators(5):
        state = RandomState.now(loader)
        seed_all(11)
        outside = [(drawn(), *map(number, held)) for _ in range(2)]
        seed_all(11)
        for one, its in zip(held, [generator(s) for s in (1, 2, 3)], strict=True):
            one.set_state(its.get_state())
            number(one)
        for round_ in range(2):
            with state.own():
                assert (drawn(), *map(number, held)) == expected[round_]
            if round_ == 0:
                assert drawn() == outside[0][0]
                assert [number(one) for one in held] == list(outside[1][1:])
        with pytest.raises(KeyError), state.own():
            fails([])
        assert drawn() == outside[1][0], "also after an error"


def test_what_holds_no_generator_has_the_three_of_the_process_alone() -> None:
    holders: Any = (
        [1, 2],
        SimpleNamespace(generator=None, sampler=None),
        SimpleNamespace(generator="mine"),
    )
    for batches in holders:
        with kept_generators(2):
            expected = drawn()
        with kept_generators(2):
            state = RandomState.now(batches)
            drawn()
            with state.own():
                assert drawn() == expected
