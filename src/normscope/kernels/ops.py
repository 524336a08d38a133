"""The contract of the four verbs as torch operators, and the seam where a device registers.

`torch.ops.normscope.{moments, normalize, backward_reduce, backward_input}` take and return what
`reference` documents. The reference serves every device; a faster kernel registers itself for
its device with `register("CPU", ...)` and nothing above this file changes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normscope.kernels import reference

_library = torch.library.Library("normscope", "DEF")

_SCHEMAS = {
    "moments": "(Tensor x, Tensor? groups, int num_groups, Tensor? mask)"
    " -> (Tensor, Tensor, Tensor)",
    "normalize": "(Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias,"
    " Tensor? groups, Tensor? mask) -> Tensor",
    "backward_reduce": "(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? groups,"
    " int num_groups, Tensor? mask) -> (Tensor, Tensor)",
    "backward_input": "(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight,"
    " Tensor? mean_g, Tensor? mean_g_xhat, Tensor? groups, Tensor? mask) -> Tensor",
}


def register(dispatch_key: str, verb: str, kernel: Callable[..., Any]) -> None:
    """Make `kernel` the implementation of `verb` for a device, such as "CPU" or "CUDA"."""
    _library.impl(verb, kernel, dispatch_key)


for _verb, _schema in _SCHEMAS.items():
    _library.define(_verb + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    register("CompositeExplicitAutograd", _verb, getattr(reference, _verb))


@torch.library.register_fake("normscope::moments", lib=_library)
def _(x: Tensor, groups: Any, num_groups: int, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
    table = x.new_empty(num_groups, x.shape[1], dtype=reference.accumulate_dtype(x))
    return table.new_empty(num_groups), table, torch.empty_like(table)


@torch.library.register_fake("normscope::normalize", lib=_library)
def _(x: Tensor, *_tables: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("normscope::backward_reduce", lib=_library)
def _(
    dy: Tensor, x: Tensor, mean: Any, rstd: Any, groups: Any, num_groups: int, mask: Any
) -> tuple[Tensor, Tensor]:
    table = x.new_empty(num_groups, x.shape[1], dtype=reference.accumulate_dtype(x))
    return table, torch.empty_like(table)


@torch.library.register_fake("normscope::backward_input", lib=_library)
def _(dy: Tensor, x: Tensor, *_tables: Any) -> Tensor:
    return torch.empty_like(x)


moments = torch.ops.normscope.moments.default
normalize = torch.ops.normscope.normalize.default
backward_reduce = torch.ops.normscope.backward_reduce.default
backward_input = torch.ops.normscope.backward_input.default
