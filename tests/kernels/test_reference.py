"""The float64 oracle judges the reference."""

import numpy as np
import pytest
import torch

from normscope.kernels import reference
from normscope.kernels.problem import Problem
from tests import oracle

SHAPES = [(3, 5, 7), (2, 1), (1, 4, 2), (9, 3, 2, 5), (4, 2, 1, 3, 2), (0, 3, 2), (6, 1, 1)]


def make(
    shape: tuple[int, ...], num_groups: int, masked: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    x = torch.randn(shape, dtype=torch.double) * 3 + 2
    groups = torch.randint(0, num_groups, (shape[0],)) if num_groups > 1 else None
    if groups is not None and shape[0]:
        groups[groups == 1] = 0  # group 1 is always empty
    mask = (torch.rand(shape[0], 1, *shape[2:]) < 0.7) if masked else None
    if mask is not None:
        x = torch.where(mask, x, torch.nan)  # what is masked may hold anything
    return x, groups, mask


def numpy_of(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_equal_the_oracle(shape: tuple[int, ...], num_groups: int, masked: bool) -> None:
    x, groups, mask = make(shape, num_groups, masked)
    flat_mask = None if mask is None else mask.squeeze(1).numpy()
    expected = oracle.moments(x.numpy(), numpy_of(groups), num_groups, flat_mask)
    found = reference.moments(Problem(x, groups, num_groups, mask))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((4, 3, 5, 2), torch.channels_last), ((4, 3, 2, 3, 2), torch.channels_last_3d)],
)
def test_moments_do_not_depend_on_the_memory_format(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    x = (torch.randn(shape) + 1e4).to(memory_format=memory_format)
    for a, b in zip(
        reference.moments(Problem(x)),
        reference.moments(Problem(x.contiguous())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


def test_nan_stays_in_its_group_and_channel() -> None:
    x = torch.randn(6, 3)
    x[0, 1] = torch.nan
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    _, mean, m2 = reference.moments(Problem(x, groups, 2))
    poisoned = torch.zeros(2, 3, dtype=torch.bool)
    poisoned[0, 1] = True
    assert torch.equal(mean.isnan(), poisoned)
    assert torch.equal(m2.isnan(), poisoned)
