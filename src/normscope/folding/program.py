"""Fold the batch norms of an exported program, whose layers are operators of a graph."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from normscope.conversion.kinds import Refusal

_ATEN = torch.ops.aten
# where each operator keeps eps
_NORMS: dict[Any, int] = {
    _ATEN.batch_norm.default: 7,
    _ATEN._native_batch_norm_legit_no_training.default: 6,
}
_LINEAR = (
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.conv3d.default,
    _ATEN.convolution.default,
    _ATEN.linear.default,
)
Done = tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]


def fold_graph(module: fx.GraphModule, *, affine: bool) -> Done:
    """Fold the batch norms of a graph into the linear operators before them, in place.

    The operators must be conv1d to conv3d, convolution or linear, whose weights and outputs
    nothing else uses. Arithmetic is in float64, rounded once.

    Args:
        module: of `ExportedProgram.module()`.
        affine: make the others a multiplication and an addition.

    Returns:
        Folded norms with their neighbour, those that are left with the reason, and those that
        became a multiplication and an addition.
    """
    pairs: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    changed: list[str] = []
    for node in list(module.graph.nodes):
        if node.target not in _NORMS:
            continue
        name = _owner(node)
        try:
            scale, shift = _map(module, node)
        except Refusal as problem:
            left.append((name, str(problem)))
            continue
        try:
            pairs.append((name, _into(module, node, scale, shift)))
        except Refusal as problem:
            if affine:
                _as_affine(module, node, f"affine_{len(changed)}", scale, shift)
                changed.append(name)
            else:
                left.append((name, str(problem)))
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()  # with the tensors of the norms that are gone
    module.graph.lint()
    module.recompile()
    return pairs, left, changed


def _owner(node: fx.Node) -> str:
    """Find the module that the norm was, by the name of its mean."""
    mean = node.args[3]
    if isinstance(mean, fx.Node) and mean.op == "get_attr":
        return str(mean.target).rpartition(".")[0] or node.name
    return node.name


def _map(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (C,) in float64.

    Raises:
        Refusal: it normalises by the batch, or holds what is computed.
    """
    if node.target is _ATEN.batch_norm.default and node.args[5]:
        raise Refusal("it normalises by the batch: the program was exported in train()")
    weight, bias, mean, var = (_held(module, node.args[place]) for place in (1, 2, 3, 4))
    if mean is None or var is None:
        raise Refusal("it keeps no running statistics: each batch has its own")
    eps = node.args[_NORMS[node.target]]
    assert isinstance(eps, float), "the schema says so"
    wide = var.double()
    scale = (1.0 if weight is None else weight.double()) / (wide + eps).sqrt()
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    if not bool(scale.isfinite().all() and shift.isfinite().all()):
        raise Refusal("its numbers are not finite")
    return scale, shift


def _held(module: fx.GraphModule, node: Any) -> Tensor | None:
    if node is None:
        return None
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        raise Refusal("its tensors are computed by the program")
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor), "norms hold tensors"
    return value.detach()


def _into(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> str:
    """Fold into the operator before; its name.

    Raises:
        Refusal: there is none that can take it in.
    """
    linear = node.args[0]
    assert isinstance(linear, fx.Node), "the first argument is a tensor"
    if linear.target not in _LINEAR:
        raise Refusal(f"before it: {linear.name!r} is not linear")
    if len(linear.users) != 1:
        raise Refusal(f"before it: the output of {linear.name!r} is used elsewhere too")
    if linear.target is _ATEN.convolution.default and linear.args[6]:
        raise Refusal(f"before it: {linear.name!r} is transposed")
    if linear.target is _ATEN.linear.default and linear.meta["val"].dim() != 2:
        raise Refusal(f"before it: {linear.name!r} has its channels on another axis")
    weight = _held(module, linear.args[1])
    bias = _held(module, linear.args[2] if len(linear.args) > 2 else None)
    assert weight is not None, "linear operators have one"
    if len(weight) != len(scale):
        raise Refusal(f"before it: {linear.name!r} has its channels on another axis")
    wide = weight.double() * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    own = shift if bias is None else shift + scale * bias.double()
    with module.graph.inserting_before(linear):
        nodes = [
            _parameter(module, f"folded_{linear.name}_{key}", value.to(weight.dtype))
            for key, value in (("weight", wide), ("bias", own))
        ]
    linear.args = (linear.args[0], *nodes, *linear.args[3:])
    _replace(module, node, linear)
    return linear.name


def _as_affine(
    module: fx.GraphModule, node: fx.Node, name: str, scale: Tensor, shift: Tensor
) -> None:
    """Put a multiplication and an addition in the place of the norm."""
    x = node.args[0]
    assert isinstance(x, fx.Node), "the first argument is a tensor"
    shape = (1, -1, *(1,) * (x.meta["val"].dim() - 2))
    kind = x.meta["val"].dtype
    with module.graph.inserting_before(node):
        weight, bias = (
            _parameter(module, f"{name}_{key}", value.to(kind).reshape(shape))
            for key, value in (("weight", scale), ("bias", shift))
        )
        product = module.graph.call_function(_ATEN.mul.Tensor, (x, weight))
        total = module.graph.call_function(_ATEN.add.Tensor, (product, bias))
    for new in (product, total):
        new.meta["val"] = x.meta["val"]
    _replace(module, node, total)


def _parameter(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    module.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
    return module.graph.get_attr(name)


def _replace(module: fx.GraphModule, node: fx.Node, new: fx.Node) -> None:
    """Let whoever uses a norm's output use another; a decomposed norm gives three."""
    if node.target is _ATEN.batch_norm.default:
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
        return
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(new)
            module.graph.erase_node(user)
