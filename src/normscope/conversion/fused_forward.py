"""Give a block a forward in which its norm layers also add and activate, beside its own one."""

import copy
import functools
import importlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode

from normscope.arguments import Activation
from normscope.conversion.activation_pairs import NoActivationError, activation_of
from normscope.conversion.blend import Behind
from normscope.conversion.kinds import Refusal
from normscope.conversion.straight import Fact, fact, read_straight
from normscope.conversion.tracing import has_hook
from normscope.kernels.reference import ACTIVATIONS, LEAK
from normscope.layers.batch import Normalizer
from normscope.probe.load import reason

SUMS: dict[Any, str] = {
    operator.add: "add",
    torch.add: "add",
    "add": "add",
    operator.iadd: "add_",
    "add_": "add_",
}
FUNCTIONS: dict[Any, Activation] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.silu: "silu",
    F.leaky_relu: "leaky_relu",
}
FRESH = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their outputs are nobody else's memory


class Fused(NamedTuple):
    """A norm layer's call that does more.

    Attributes:
        norm: its name.
        act: the activation; None where there is only a sum.
        place: where the activation was, as a phrase.
        residual: whether the sum before it is taken in.
    """

    norm: str
    act: Activation | None
    place: str
    residual: bool


class FusedForward(nn.Module):
    """A block with a fused forward, which goes on being of its own class.

    The block's own forward runs where the fused one might not be the same: other inputs than one
    plain tensor, an attribute that its course depends on was changed, hooks on the layers that
    are fused, tracing and compilation. Nothing else of the block or its layers is changed, so a
    pickled copy is the block as it was.
    """

    origin: type[nn.Module]
    fused: tuple[Fused, ...]
    _facts: tuple[tuple[str, Fact], ...]
    _watched: tuple[str, ...]  # the modules whose calls are replaced

    def is_unchanged(self) -> bool:
        """Return whether the fused forward does what the block's own would do now."""
        if torch.compiler.is_compiling() or _has_any_global_hook():
            return False
        try:
            if any(fact(self, name) != seen for name, seen in self._facts):
                return False
        except Refusal:
            return False
        for name in self._watched:
            module: Any = self
            for part in name.split("."):
                module = module._modules[part]
            known = type(module) is nn.Identity or _is_plain(module) or activation_of(module)
            if has_hook(module) or not known:
                return False
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        made: Any = super().__reduce_ex__(4)
        new: nn.Module = made[0](*made[1])
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(made[2], memo))
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(max(2, int(protocol)))
        if made[0].__name__ != "__newobj__":
            return made  # the class knows how to make itself anew
        return _new, (self.origin,), *made[2:]


def _with_choice(own: Any, fused: Callable[[nn.Module, Tensor], Tensor]) -> Any:
    """Run the fused forward where it is the same, else the block's own, with its signature."""

    @functools.wraps(own)  # torch.fx reads the arguments' names
    def forward(self: FusedForward, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor and self.is_unchanged():
            return fused(self, args[0])
        return own(self, *args, **kwargs)

    return forward


def _new(cls: type[nn.Module]) -> nn.Module:
    return cls.__new__(cls)


def fused_class(block: nn.Module, path: str) -> type[FusedForward]:
    """Return the class that gives a block a fused forward.

    Args:
        block: a module whose forward calls norm layers; it is not changed.
        path: its name within the model, for what is told of it.

    Raises:
        Refusal: its forward cannot be known, or there is nothing in it to fuse.
    """
    origin = type(block)
    if issubclass(origin, FusedForward):
        raise Refusal("it has a fused forward already")
    names = read_straight(block)
    was = block.training
    graphs = []
    for training in (True, False):
        block.training = training  # of the block alone: its parts do not run
        try:
            graphs.append(_traced(block))
        finally:
            block.training = was
    if str(graphs[0]) != str(graphs[1]):
        raise Refusal("its forward is another one in eval()")
    modules = dict(block.named_modules(remove_duplicate=False))
    fused, watched = [], set[str]()
    for node in list(graphs[0].nodes):
        done = _fuse(graphs[0], node, modules)
        if done is not None:
            call, calls = done
            inner = call.place in modules
            place = f"{path}.{call.place}" if path else call.place
            place = place if inner else f"{call.place} in {path or origin.__name__}"
            name = f"{path}.{call.norm}" if path else call.norm
            fused.append(call._replace(norm=name, place=place))
            watched |= calls
    if not fused:
        raise NoActivationError("no sum or activation follows a norm layer there")
    code = graphs[0].python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(code.src, space)
    members = {
        "origin": origin,
        "fused": tuple(fused),
        "_facts": tuple((name, fact(block, name)) for name in names),
        "_watched": tuple(sorted(watched)),
        "forward": _with_choice(origin.forward, space["forward"]),
        "__module__": origin.__module__,
    }
    return type(origin.__name__, (FusedForward, origin), members)


class _Idle(TorchDispatchMode):
    """Refuses what would be computed during a trace, and be the same in every call after."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Refusal(f"its forward computes {func.__name__} of its own")


class _Proxy(fx.Proxy):
    """Keeps `a += b` apart from `a = a + b`: others may hold what is overwritten."""


def _in_place(change: Any) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", change, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a value while the forward is traced."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep all parts whole: only the block's own forward is of interest."""
        return True


def _traced(block: nn.Module) -> fx.Graph:
    # the mode imports it; while fx has functions of `math` replaced, it would note these for good
    importlib.import_module("torch._dynamo")
    try:
        with _Idle():
            return _Tracer().trace(block)
    except Refusal:
        raise
    except Exception as problem:
        raise Refusal(f"torch.fx cannot trace its forward ({reason(problem)})") from problem


def _is_plain(module: nn.Module) -> bool:
    """Return whether it is a norm layer of ours without an activation, whose forward is known."""
    if not isinstance(module, Normalizer) or "forward" in module.__dict__:
        return False
    forward: Any = type(module).forward
    if isinstance(module, Behind):
        behind = [module._modules[name] for name in ("drop", "act")]
        if not all(type(m) is nn.Identity and not has_hook(m) for m in behind):
            return False
        forward = module.target.forward
    return forward is Normalizer.forward and module.fused_act is None


def _fuse(
    graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[Fused, set[str]] | None:
    """Put one call in the place of a norm's and those behind it, where that is the same."""
    norm = str(node.target)
    if node.op != "call_module" or not _is_plain(modules[norm]) or has_hook(modules[norm]):
        return None
    if len(node.args) != 1 or node.kwargs:
        return None
    x, residual, how = node.args[0], None, "add"
    path, place = _through([node], modules), node
    user = _user(path[-1])
    if user is not None and user.target in SUMS:
        residual, how = _other(user, path[-1]), SUMS[user.target]
        if residual is None or not _stays(x, modules):
            return None
        path, place = _through([*path, user], modules), user
        user = _user(path[-1])
    act, where = (None, "+") if user is None else _activation(user, path[-1], modules)
    if user is not None and act is not None:
        path.append(user)
    elif residual is None:
        return None
    with graph.inserting_after(place):
        layer = graph.create_node("get_attr", norm)
    with graph.inserting_after(layer):
        made = graph.call_function(run_fused, (layer, x, residual, act, how))
    path[-1].replace_all_uses_with(made)
    for old in reversed(path):
        graph.erase_node(old)
    watched = {str(old.target) for old in path if old.op == "call_module"}
    return Fused(norm, act, where, residual is not None), watched


def _user(node: fx.Node) -> fx.Node | None:
    """Find the only call that sees a node."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.op.startswith("call") else None


def _through(path: list[fx.Node], modules: dict[str, nn.Module]) -> list[fx.Node]:
    """Find the path, and the identities behind it."""
    path = list(path)
    while (user := _user(path[-1])) is not None and user.op == "call_module":
        module = modules[str(user.target)]
        if type(module) is not nn.Identity or has_hook(module) or user.args != (path[-1],):
            break
        path.append(user)
    return path


def run_fused(
    norm: Normalizer,
    x: Tensor,
    residual: Tensor | None,
    act: Activation | None,
    add: str,
) -> Tensor:
    """Do act(norm(x) + residual) in one pass where the two have one shape and dtype."""
    if residual is None or (residual.shape == x.shape and residual.dtype == x.dtype):
        return norm.activated(x, residual, None, act)
    y = norm.activated(x, None, None, None)
    y = y.add_(residual) if add == "add_" else y + residual
    return y if act is None else ACTIVATIONS[act](y)


def _other(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """Find the other summand, where the sum is of two tensors and does not overwrite it."""
    if len(user.args) != 2 or user.kwargs or user.args[0] is user.args[1]:
        return None
    first, second = user.args
    if first is node and isinstance(second, fx.Node):
        return second
    swapped = second is node and isinstance(first, fx.Node) and SUMS[user.target] == "add"
    return first if swapped else None  # type: ignore[return-value]


def _stays(x: Any, modules: dict[str, nn.Module]) -> bool:
    """Return whether a norm's input is still the same at a later place."""
    return (
        isinstance(x, fx.Node)
        and x.op == "call_module"
        and len(x.users) == 1
        and type(modules[str(x.target)]) in FRESH
    )


def _activation(
    user: fx.Node, given: fx.Node, modules: dict[str, nn.Module]
) -> tuple[Activation | None, str]:
    """Find the activation that a node is, and where it is written."""
    if user.args[:1] != (given,):
        return None, "+"
    if user.op == "call_module":
        module = modules[str(user.target)]
        act = (
            None
            if has_hook(module) or len(user.args) != 1 or user.kwargs
            else activation_of(module)
        )
        return act, str(user.target)
    if user.op not in ("call_function", "call_method") or user.target not in FUNCTIONS:
        return None, "+"
    name, target = FUNCTIONS[user.target], user.target
    # by the names of torch's arguments, in their order
    order = ("inplace",) if name != "leaky_relu" else ("negative_slope", "inplace")
    rest = dict(zip(order, user.args[1:], strict=False)) | dict(user.kwargs)
    if len(user.args) > 1 + len(order) or rest.pop("negative_slope", LEAK) != LEAK:
        return None, "+"
    rest.pop("inplace", None)  # the norm's output is nobody else's
    shown = f".{target}()" if isinstance(target, str) else f"{target.__name__}()"
    return (None, "+") if rest else (name, shown)
