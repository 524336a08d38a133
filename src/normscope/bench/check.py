"""The CPU kernel against the definition, before anything is timed."""

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.arguments import Activation
from normscope.errors import KernelError
from normscope.functional import batch_norm


class Form(NamedTuple):
    """One combination of arguments that the kernel is checked with."""

    dtype: torch.dtype
    act: Activation | None
    residual: bool
    mask: bool
    groups: int


FORMS = (  # every choice occurs
    Form(torch.float32, None, residual=False, mask=False, groups=1),
    Form(torch.float32, "relu", residual=False, mask=False, groups=3),
    Form(torch.float32, "silu", residual=False, mask=True, groups=3),
    Form(torch.float32, "leaky_relu", residual=True, mask=False, groups=1),
    Form(torch.float64, "relu", residual=True, mask=True, groups=3),
    Form(torch.bfloat16, "relu", residual=False, mask=False, groups=1),
    Form(torch.float16, "relu", residual=True, mask=True, groups=3),
)
SHAPES = ((12, 6, 5, 7), (3, 2, 20_000))  # whole channels, and channels that threads share
TOLERANCE = {  # a hundred roundings
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
}


def check_kernel() -> int:
    """Compare outputs and gradients with the reference in float64; how many forms were equal.

    Raises:
        KernelError: one is not; nothing measured with such a kernel means anything.
    """
    done = 0
    for form, shape, last in product(FORMS, SHAPES, (False, True)):
        if last and len(shape) < 4:
            continue
        difference = largest_difference(form, shape, last)
        if not difference <= TOLERANCE[form.dtype]:  # NaN is not equal either
            raise KernelError(
                f"the CPU kernel differs from its definition by {difference:.1e} for {form.dtype}, "
                f"act={form.act!r}, residual={form.residual}, mask={form.mask}, "
                f"groups={form.groups}, x {shape}; at most {TOLERANCE[form.dtype]:.0e} is "
                'rounding, so nothing is reported: use impl="reference" and report this'
            )
        done += 1
    return done


def largest_difference(form: Form, shape: tuple[int, ...], last: bool) -> float:
    """Return the largest difference of y and all gradients, relative where values exceed 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def values() -> Tensor:
        t = (2 * normal(*shape) + 3).to(form.dtype)
        return t.contiguous(memory_format=torch.channels_last) if last else t

    n, c = shape[:2]
    table = form.dtype if form.dtype.itemsize > 2 else torch.float32
    leaves = {"x": values(), "weight": 1 + normal(c).abs().to(table), "bias": normal(c).to(table)}
    if form.residual:
        leaves["residual"] = values()
    mask = torch.rand(n, 1, *shape[2:], generator=generator) < 0.7 if form.mask else None
    groups = torch.arange(n) % form.groups if form.groups > 1 else None
    rest = {"mask": mask, "groups": groups, "num_groups": form.groups, "act": form.act}
    dy = values()
    mine = _step(leaves, dy, impl="auto", **rest)
    exact = _step({k: t.double() for k, t in leaves.items()}, dy.double(), "reference", **rest)
    found = [
        float((a.double() - b).abs().max()) / max(1.0, float(b.abs().max()))
        for a, b in zip(mine, exact, strict=True)
    ]
    return float("nan") if any(f != f for f in found) else max(found)


def _step(leaves: dict[str, Tensor], dy: Tensor, impl: str, **rest: Any) -> list[Tensor]:
    own = {name: t.detach().requires_grad_() for name, t in leaves.items()}
    y = batch_norm(**own, training=True, impl=impl, **rest)  # type: ignore[arg-type]
    y.backward(dy)
    return [y.detach(), *(t.grad for t in own.values() if t.grad is not None)]
