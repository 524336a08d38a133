"""Values of 16 bits, read and rounded by the CPU loops."""

import pytest
import torch

from normscope.kernels import cpu
from normscope.kernels.problem import Affine, Epilogue, Problem, Statistics


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 45, 64, 1024, 1500])
def test_every_16_bit_value_is_read_and_rounded_as_torch_does(
    dtype: torch.dtype, by_rows: bool, length: int
) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    values = bits[: len(bits) // length * length].view(dtype)
    x = values.view(-1, length) if by_rows else values.view(-1, 1, length)
    channels = x.shape[1]
    mean, rstd = torch.zeros(1, channels).double(), torch.ones(1, channels).double()
    weight, bias = torch.full((1, channels), 0.3), torch.full((1, channels), 0.1)
    y = cpu.normalize(
        Problem(x, None, 1, None),
        Statistics(mean, rstd),
        Epilogue(Affine(weight, bias), None, None),
    )
    expected = (x.float() * weight[0, 0] + bias[0, 0]).to(dtype)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
