"""Find the activation modules that norm layers can do in their place, as torch.fx sees them."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

from torch import fx, nn

from normscope.arguments import Activation
from normscope.conversion.kinds import Refusal
from normscope.conversion.tracing import PartialTracer, check_unwatched
from normscope.kernels.reference import LEAK
from normscope.probe.load import reason
from normscope.probe.random import kept_generators


class NoActivationError(Refusal):
    """Nothing follows that a norm layer could do."""


class Pair(NamedTuple):
    """A norm layer and the activation module behind it, by name."""

    norm: str
    module: str
    act: Activation


def activation_of(module: nn.Module) -> Activation | None:
    """Return the name of the activation that a module is, where norm layers have that one too."""
    if "forward" in module.__dict__:
        return None
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.SiLU:
        return "silu"
    leaky = type(module) is nn.LeakyReLU and module.negative_slope == LEAK
    return "leaky_relu" if leaky else None


def find_pairs(model: nn.Module, norms: Iterable[str]) -> tuple[list[Pair], dict[str, Refusal]]:
    """Pair norm layers with the activation modules that can become an identity.

    The forward is traced with its default arguments on a copy, in train() and in eval(). A pair
    must hold in both: every output of the norm goes to the module alone, be it through an
    `nn.Identity`, and the module gets nothing else but outputs of norms that are paired with it.

    Args:
        model: any module; it is not changed.
        norms: names of norm layers without an activation of their own.

    Returns:
        The pairs, and for each other norm the reason.
    """
    wanted = list(norms)
    try:
        traces = [_traced(model, training) for training in (True, False)]
    except Refusal as problem:
        return [], dict.fromkeys(wanted, problem)
    modules = dict(model.named_modules())
    partners: dict[str, str] = {}
    left: dict[str, Refusal] = {}
    for name in wanted:
        try:
            partners[name] = _partner(name, modules, traces)
        except Refusal as problem:
            left[name] = problem
    while spoilt := _not_alone(partners, modules, traces):
        for name, module in list(partners.items()):
            if module in spoilt:
                del partners[name]
                left[name] = Refusal(f"{module!r} is also given {spoilt[module]}")
    pairs = []
    for name, module in partners.items():
        act = activation_of(modules[module])
        assert act is not None, "asked before"
        pairs.append(Pair(name, module, act))
    return pairs, left


class _Trace(NamedTuple):
    calls: Mapping[str, list[fx.Node]]  # of modules, by name
    opaque: Mapping[str, str]  # parts that cannot be traced, with the reason


@kept_generators()  # tracing runs the forward
def _traced(model: nn.Module, training: bool) -> _Trace:
    try:
        twin = copy.deepcopy(model).train(training)
    except Exception as problem:
        raise Refusal(f"the model cannot be copied ({reason(problem)})") from problem
    tracer = _Tracer()
    try:
        graph = tracer.trace_defaults(twin)
    except Exception as problem:
        raise Refusal(f"torch.fx cannot trace the model ({reason(problem)})") from problem
    calls = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    return _Trace(calls, tracer.opaque)


class _Tracer(PartialTracer):
    """Stop at norm layers, of whatever origin."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep whole what torch.fx does, and everything that holds running statistics itself."""
        return "running_mean" in m._buffers or super().is_leaf_module(m, module_qualified_name)


def _partner(name: str, modules: Mapping[str, nn.Module], traces: list[_Trace]) -> str:
    """Find the activation module that gets all outputs of a norm.

    Raises:
        Refusal: there is none, or something else sees what lies between.
    """
    found = set()
    for trace in traces:
        for part, problem in trace.opaque.items():
            if name.startswith(f"{part}."):
                raise Refusal(f"it is inside {part!r}, which torch.fx cannot trace ({problem})")
        for node in trace.calls.get(name, ()):
            path = [name, *_path(node, modules)]
            target = path[-1]
            if activation_of(modules[target]) is None:
                kind = type(modules[target]).__name__
                raise NoActivationError(
                    f"{target!r} ({kind}) behind it is no activation that norm layers have"
                )
            check_unwatched(path, modules)
            found.add(target)
    if not found:
        raise Refusal("forward does not run it by itself")
    if len(found) > 1:
        raise Refusal(f"its output goes to several modules: {', '.join(sorted(found))}")
    return found.pop()


def _path(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[str]:
    """Find the modules behind a call, through identities up to the first that is none."""
    path: list[str] = []
    while not path or type(modules[path[-1]]) is nn.Identity:
        if len(node.users) != 1:
            raise Refusal(f"its output is used {len(node.users)} times")
        user = next(iter(node.users))
        if user.op != "call_module" or user.args != (node,) or user.kwargs:
            raise Refusal(f"its output goes to {_shown(user)}, which is no activation module")
        path.append(str(user.target))
        node = user
    return path


def _not_alone(
    partners: Mapping[str, str], modules: Mapping[str, nn.Module], traces: list[_Trace]
) -> dict[str, str]:
    """Find the modules that get something else than outputs of their norms, and what that is."""
    spoilt = {}
    for module in set(partners.values()):
        for node in (node for trace in traces for node in trace.calls.get(module, ())):
            source = node.args[0] if node.args else None
            while _is_identity(source, modules):
                source = source.args[0]
            if not isinstance(source, fx.Node):
                spoilt[module] = "something that is no tensor"
            elif source.op != "call_module" or partners.get(str(source.target)) != module:
                spoilt[module] = f"the output of {_shown(source)}"
    return spoilt


def _is_identity(node: Any, modules: Mapping[str, nn.Module]) -> TypeGuard[fx.Node]:
    is_call = isinstance(node, fx.Node) and node.op == "call_module" and len(node.args) == 1
    return is_call and type(modules[str(node.target)]) is nn.Identity


def _shown(node: fx.Node) -> str:
    if node.op in ("call_module", "call_method"):
        return repr(str(node.target))
    return repr(node.name)
