"""How layers stand to each other, and whether the model can be exported."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from normscope import probe
from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.errors import NormscopeError
from normscope.folding import fold
from normscope.records import Finding


def biased_before(model: nn.Module) -> list[tuple[str, nn.Linear | _ConvNd, str, _BatchNorm]]:
    """Find pairs (name, linear map with a bias, name, batch norm) that stand in sequence.

    Neighbours among the children of one module, with as many channels.
    """
    found = []
    for prefix, parent in model.named_modules():
        for (a, first), (b, second) in pairwise(parent.named_children()):
            if not isinstance(first, (nn.Linear, _ConvNd)) or not isinstance(second, _BatchNorm):
                continue
            out = first.out_features if isinstance(first, nn.Linear) else first.out_channels
            if first.bias is not None and out == second.num_features:
                dot = f"{prefix}." if prefix else ""
                found.append((dot + a, first, dot + b, second))
    return found


@register("NS012", needs="model", repair="fold_bias")
class UselessBias(Check):
    """A bias that the norm takes away again."""

    source = "the mean of x + b is mean + b"

    def find(self, case: CheckContext) -> Iterator[Finding]:
        pairs = biased_before(case.model)
        if pairs:
            first, _, norm, _ = pairs[0]
            count = sum(len(linear.bias) for _, linear, _, _ in pairs if linear.bias is not None)
            yield self.finding(
                "", "info", float(len(pairs)), first=first, norm=norm, pairs=len(pairs),
                count=count, confidence="medium",
            )  # fmt: skip


@register("NS024", needs="data")
class FoldParity(Check):
    """The folded model must compute the same."""

    source = "square root of the machine epsilon, relative to the largest output"
    warn, fail = 3.5e-4, 3.5e-4

    def find(self, case: CheckContext) -> Iterator[Finding]:
        batch = case.evidence.kept[0]
        alone = len(batch.args) == 1 and not batch.kwargs and isinstance(batch.args[0], Tensor)
        alone = alone and batch.args[0].is_floating_point()
        if not alone or case.damaged:
            raise Skip("doctor.skip.fold")
        x = batch.args[0]
        try:
            with probe.preserved(case.model):
                folding = fold(case.model)
                epsilon = max(torch.finfo(x.dtype).eps, case.evidence.rounding)
                allowed = max(self.fail, epsilon**0.5)
                check = folding.verify(x[:16], tolerance=allowed)
        except (NormscopeError, TypeError, RuntimeError) as problem:
            raise Skip("doctor.skip.fold") from problem
        if not folding.folded:
            raise Skip("doctor.skip.fold")
        if check.difference > allowed:
            yield self.finding("", "error", check.difference, allowed, count=len(folding.folded))


@register("NS025", needs="model")
class NormAtTheEnd(Check):
    """A batch norm on the output."""

    source = "the last module of the model"

    def find(self, case: CheckContext) -> Iterator[Finding]:
        leaves = [
            (n, m)
            for n, m in case.model.named_modules()
            if not any(True for _ in m.children()) and not isinstance(m, (nn.Identity, nn.Flatten))
        ]
        if len(leaves) > 1 and isinstance(leaves[-1][1], _BatchNorm):
            yield self.finding(leaves[-1][0], "info", 1.0, confidence="medium")
