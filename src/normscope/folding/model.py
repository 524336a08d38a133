"""A copy of a model in which the batch norms are folded, and what became of each."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from normscope.conversion.kinds import Refusal, read
from normscope.errors import InputError, ModelError
from normscope.folding.flow import Flow, copied, is_norm
from normscope.folding.pair import Side, difference, fold_into
from normscope.probe.frozen import refuse_traced, refuse_unready
from normscope.probe.load import reason
from normscope.probe.random import kept_generators
from normscope.records import Comparison

KINDS = ("torch", "sync", "batch", "ghost", "renorm", "frozen")  # one affine map in eval()
SIDES: tuple[Side, ...] = ("before", "behind")


@dataclass(frozen=True)
class Folding:
    """A model without the batch norms that could be folded, and what became of each.

    Attributes:
        model: the folded copy, in eval().
        folded: the name of each folded norm, with that of the neighbour that took it in.
        left: the name of each norm that is still there, with the reason.
        original: the model that was folded, by reference.
    """

    model: nn.Module
    folded: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    original: nn.Module = field(repr=False)

    def verify(self, *inputs: Any, tolerance: float | None = None) -> Comparison:
        """Compare the outputs of the original and the folded model, both copied and in eval().

        Args:
            inputs: a batch, as the model's forward takes it.
            tolerance: largest difference allowed, over the largest output; None: the square root
                of the machine epsilon of the outputs, 3.5e-4 in float32.

        Raises:
            InputError: no inputs.
            ModelError: a model fails on them, or gives no floating point numbers.
        """
        if not inputs:
            raise InputError("verify needs a batch as the model takes it")
        before, after = _outputs(self.original, inputs), _outputs(self.model, inputs)
        if tolerance is None:
            tolerance = torch.finfo(before[0].dtype).eps ** 0.5
        return Comparison("outputs", "eval", difference(before, after), tolerance)


@kept_generators()  # tracing runs the forward
@torch.no_grad()
def fold(model: nn.Module) -> Folding:
    """Copy a model for inference, with batch norms folded into their linear neighbours.

        scale = weight / sqrt(running_var + eps),  shift = bias - running_mean * scale
        norm(W x + b) = (scale W) x + (scale b + shift)     into the neighbour before, or else
        W norm(x) + b = (W scale) x + (W shift + b)         into the one behind, where exact

    Neighbours are Linear, Conv*d and ConvTranspose*d with any groups, with or without bias;
    behind a norm no ConvTranspose*d, and no convolution that pads with zeros, since the shift
    misses at the edges. The copy is of the same class, with the same names; a folded norm is an
    identity, behind which run the activations that it brought along (act=, timm's drop and act).
    It is in eval() and for inference: where it is trained, it trains without batch norm.

    Arithmetic is in float64, rounded once to the neighbour's dtype, and each pair is run before
    and after on random numbers in float64. A norm stays, with the reason in `Folding.left`,
    where something else sees what lies between the two (a second user, a hook), where one of
    them runs twice or shares a parameter, where it has no or several sets of running statistics,
    and in parts that torch.fx cannot trace. Traced is forward in eval() with its default
    arguments.

    Args:
        model: any module; it is not changed.

    Raises:
        ModelError: the model cannot be copied or, as a whole, not be traced by torch.fx, is a
            program of TorchScript or torch.export, lazy, or on the meta device; a norm or the
            result of its folding is not finite, or a running_var is below 0.

    Source: Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", section 3.2.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).eval()
    >>> normscope.fold(net).folded
    (('1', '0'),)
    """
    refuse_traced(model, parts=False)
    refuse_unready(model)
    folded = copied(model).eval()
    names = [name for name, module in folded.named_modules() if is_norm(module)]
    if names in ([], [""]):
        alone = tuple((type(model).__name__, "it is the whole model") for _ in names)
        return Folding(folded, (), alone, model)
    flow = Flow(folded)
    pairs, left = [], []
    for name in names:
        try:
            pairs.append((name, _fold(flow, name)))
        except Refusal as problem:
            left.append((name, str(problem)))
    return Folding(folded, tuple(pairs), tuple(left), model)


def _fold(flow: Flow, name: str) -> str:
    """Fold one norm; the name of the neighbour that took it in."""
    norm = flow.modules[name]
    plain = read(norm)
    assert plain is not None, "asked before"
    if plain.kind not in KINDS:
        raise Refusal(f"{plain.kind} norm is not one map for all samples")
    if plain.tensors["running_mean"] is None:
        raise Refusal("it keeps no running statistics: each batch has its own")
    node = flow.call(name)
    reasons = []
    for side in SIDES:
        try:
            neighbour = flow.neighbour(node, side)
            fold_into(flow.modules[neighbour], norm, plain, side, (name, neighbour))
            return neighbour
        except Refusal as problem:
            reasons.append(f"{side} it: {problem}")
    raise Refusal("; ".join(reasons))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Run a copy of a model in eval() and return its floating point tensors."""
    with kept_generators(0), torch.no_grad():
        try:
            leaves = tree_leaves(copied(model).eval()(*inputs))
        except Exception as problem:
            raise ModelError(
                f"{type(model).__name__} fails on these inputs: {reason(problem)}"
            ) from problem
    found = [y for y in leaves if isinstance(y, Tensor) and y.is_floating_point()]
    if not found:
        raise ModelError(f"{type(model).__name__} gives no floating point numbers to compare")
    return found
