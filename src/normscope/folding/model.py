"""A copy of a model in which the batch norms are folded, and what became of each."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from normscope.arguments import listed
from normscope.conversion.kinds import Plain, Refusal, is_norm, read
from normscope.errors import InputError, ModelError
from normscope.folding.flow import Flow, copied
from normscope.folding.observed import ObservedFlow, called
from normscope.folding.pair import Side, difference, fold_into, make_affine
from normscope.folding.program import fold_graph
from normscope.layers.tracing import as_calls
from normscope.probe.frozen import program_kind, refuse_traced, refuse_unready
from normscope.probe.load import reason
from normscope.probe.random import kept_generators
from normscope.records import Comparison

KINDS = ("torch", "sync", "batch", "ghost", "renorm", "frozen")  # one affine map in eval()
Rest = Literal["norm", "affine"]
RESTS: tuple[Rest, ...] = get_args(Rest)
SIDES: tuple[Side, ...] = ("before", "behind")


@dataclass(frozen=True)
class Folding:
    """A model without the batch norms that could be folded, and what became of each.

    Attributes:
        model: the folded copy, in eval().
        folded: the name of each folded norm, with that of the neighbour that took it in.
        left: the name of each norm that is still there, with the reason.
        affine: the name of each norm that became a multiplication and an addition.
        original: the model that was folded, by reference.
    """

    model: nn.Module
    folded: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    original: nn.Module = field(repr=False)
    affine: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kind, count = type(self.original).__name__, len(self.folded)
        lines = [f"Folding of {kind}: {count} norms folded into a neighbour"]
        if self.affine:
            lines.append(f"{len(self.affine)} became a multiplication and an addition")
        lines += [f"still there: {name}: {why}" for name, why in self.left[:6]]
        if len(self.left) > 6:
            lines.append(f"and {len(self.left) - 6} more")
        return "\n".join([*lines, "the copy is .model; .verify(batch) compares the two"])

    def verify(self, *inputs: Any, tolerance: float | None = None) -> Comparison:
        """Compare the outputs of the original and the folded model, both copied and in eval().

        Args:
            inputs: a batch, as the model's forward takes it; one dict: arguments by their names.
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
def fold(
    model: nn.Module | torch.export.ExportedProgram, rest: Rest = "norm", *, inputs: Any = None
) -> Folding:
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
    arguments. In parts that cannot be traced `inputs` show which layer runs on whose output; the
    model is run on them before and after.

    Args:
        model: any module; it is not changed. Or a program of torch.export: its graph is folded into
            the operators before each norm, and the result is a module of the new graph.
        rest: what becomes of norms that no neighbour takes in. "norm": they stay. "affine": each
            becomes a multiplication and an addition, so that nothing is left for back ends that
            know no batch norm; of norms with several maps or none, and of models that torch.fx
            cannot trace, see `Folding.left` and `Folding.affine`.
        inputs: a batch, for the parts that torch.fx cannot trace: a tensor, a tuple of arguments,
            or a dict of arguments by their names.

    Raises:
        InputError: another `rest`.
        ModelError: the model cannot be copied, fails on `inputs` or gives other outputs folded,
            without `inputs` cannot be traced by torch.fx as a whole, is a
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
    if rest not in RESTS:
        raise InputError(f"rest is {rest!r}; it can be {listed(RESTS)}")
    if isinstance(model, torch.export.ExportedProgram):
        graph = model.module()
        assert isinstance(graph, fx.GraphModule), "an exported program is a graph"
        into, stay, lines = fold_graph(graph, affine=rest == "affine")
        return Folding(graph, tuple(into), tuple(stay), model.module(), tuple(lines))
    refuse_traced(model, parts=False)
    refuse_unready(model)
    folded = copied(model).eval()
    as_calls(folded)
    names = [name for name, module in folded.named_modules() if is_norm(module)]
    if names in ([], [""]) and rest == "norm":
        alone = tuple((type(model).__name__, "it is the whole model") for _ in names)
        return Folding(folded, (), alone, model)
    flow: Flow | None = None
    try:
        flow = Flow(folded) if names not in ([], [""]) else None
    except ModelError:
        if rest == "norm" and inputs is None:
            raise
    dark = [name for name in names if flow is None or flow.is_opaque(name)]
    observed = None if inputs is None or not dark else ObservedFlow(folded, inputs)
    pairs, left, affine = [], [], []
    for name in names:
        known = observed if observed is not None and name in dark else flow
        try:
            if known is None:
                raise Refusal("torch.fx cannot trace the model")
            pairs.append((name, _fold(known, name)))
        except Refusal as problem:
            left.append((name, str(problem)))
    if observed is not None and not (proof := Folding(folded, (), (), model).verify(inputs)).ok:
        raise ModelError(
            f"{type(model).__name__} gives other outputs when it is folded (they differ by "
            f"{proof.difference:.2g} of the largest); fold it without inputs="
        )
    for name, why in left if rest == "affine" else ():
        layer = folded.get_submodule(name)
        try:
            if is_norm(layer):  # else it is one that was met before under another name
                make_affine(layer, _one_map(layer), name or type(model).__name__)
            affine.append(name or type(model).__name__)
        except Refusal as problem:
            if str(problem) not in why:
                left[left.index((name, why))] = (name, str(problem))
    done = set(affine)
    left = [(name, why) for name, why in left if (name or type(model).__name__) not in done]
    return Folding(folded, tuple(pairs), tuple(left), model, tuple(affine))


def _one_map(norm: nn.Module) -> Plain:
    """Read a norm as its five tensors, if in eval() it is one affine map for all samples.

    Raises:
        Refusal: it is not.
    """
    plain = read(norm)
    assert plain is not None, "asked before"
    if plain.kind not in KINDS:
        raise Refusal(f"{plain.kind} norm is not one map for all samples")
    if plain.tensors["running_mean"] is None:
        raise Refusal("it keeps no running statistics: each batch has its own")
    return plain


def _fold(flow: Flow | ObservedFlow, name: str) -> str:
    """Fold one norm; the name of the neighbour that took it in."""
    norm = flow.modules[name]
    plain = _one_map(norm)
    flow.check(name)
    reasons = []
    for side in SIDES:
        try:
            neighbour, rank = flow.neighbour(name, side)
            fold_into(flow.modules[neighbour], norm, plain, side, (name, neighbour), rank)
            return neighbour
        except Refusal as problem:
            reasons.append(f"{side} it: {problem}")
    raise Refusal("; ".join(reasons))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Run a copy of a model in eval() and return its floating point tensors."""
    with kept_generators(0), torch.no_grad():
        try:
            # a program has no modes
            own = model if program_kind(model) == "exported" else copied(model).eval()
            leaves = tree_leaves(called(own, inputs))
        except Exception as problem:
            raise ModelError(
                f"{type(model).__name__} fails on these inputs: {reason(problem)}"
            ) from problem
    found = [y for y in leaves if isinstance(y, Tensor) and y.is_floating_point()]
    if not found:
        raise ModelError(f"{type(model).__name__} gives no floating point numbers to compare")
    return found
