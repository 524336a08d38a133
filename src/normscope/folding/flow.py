"""Which module of a model runs on whose output, as torch.fx sees it."""

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from normscope.conversion.kinds import Refusal, is_norm
from normscope.conversion.tracing import PartialTracer, check_unwatched
from normscope.errors import ModelError
from normscope.folding.pair import LINEAR, Folded, Side
from normscope.probe.load import reason

# exactly these classes change nothing in eval()
PASSING: tuple[type[nn.Module], ...] = (nn.Identity, Folded, *_DropoutNd.__subclasses__())


class Flow:
    """Which module runs on whose output, as torch.fx sees it.

    Raises:
        ModelError: torch.fx cannot trace the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = Layers(model)
        self.modules = self.layers.modules
        twin = copied(model).eval()
        tracer = _Tracer(twin)
        try:
            nodes = tracer.trace_defaults(twin).nodes
        except Exception as problem:
            raise ModelError(
                f"{type(twin).__name__} cannot be folded, since torch.fx cannot trace its "
                f"forward ({reason(problem)}); fold the parts of it that can be traced"
            ) from problem
        self.opaque = tracer.opaque
        self.calls: dict[str, fx.Node] = {str(n.target): n for n in nodes if n.op == "call_module"}
        self.layers.read = [str(n.target) for n in nodes if n.op == "get_attr"]
        self.layers.runs = Counter(
            inner
            for node in nodes
            if node.op == "call_module"
            for inner in self.modules[str(node.target)].modules()
        )

    def is_opaque(self, name: str) -> bool:
        """Whether a layer is in a part that cannot be traced."""
        return any(name.startswith(f"{part}.") for part in self.opaque)

    def check(self, name: str) -> None:
        """Refuse a norm that is not called once, on its input alone, with tensors of its own.

        Raises:
            Refusal: it is one.
        """
        for part, problem in self.opaque.items():
            if name.startswith(f"{part}."):
                raise Refusal(f"it is inside {part!r}, which torch.fx cannot trace ({problem})")
        if name not in self.calls:
            raise Refusal("forward does not run it in eval()")
        self.layers.check_own(name)
        node = self.calls[name]
        if len(node.args) != 1 or node.kwargs:
            raise Refusal("it is called with more than its input")

    def neighbour(self, norm: str, side: Side) -> tuple[str, int | None]:
        """Return the name of the linear layer next to a norm, through modules that change nothing.

        With it comes the rank of the norm's input where one step between the two puts the
        channels in another place, as `flatten(0, 1)` or `transpose(1, 2)` do; else None.

        Raises:
            Refusal: something else is there, or sees what lies between.
        """
        node, path, rank = self.calls[norm], [norm], None
        while True:
            node = _next(node, side)
            if rank is None and (rank := moved_channels(node, side)) is not None:
                continue
            name, module = str(node.target), self.modules.get(str(node.target))
            if node.op != "call_module" or module is None:
                raise Refusal(f"{node.name!r} is no layer")
            path.append(name)
            if isinstance(module, LINEAR):
                self.layers.check_own(name)
                check_unwatched(path, self.modules)
                return name, rank
            if type(module) not in PASSING:
                raise Refusal(f"{name!r} ({type(module).__name__}) is not linear")


class Layers:
    """The modules of a model: how often each runs, what they share, who looks at them.

    Attributes:
        modules: by name.
        runs: how often each runs in a forward.
        read: names of the tensors that a forward uses by themselves.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.runs: Counter[nn.Module] = Counter()
        self.read: list[str] = []
        owners = Counter(p for m in self.modules.values() for p in set(m._parameters.values()))
        self.tied = {p for p, count in owners.items() if p is not None and count > 1}

    def check_own(self, name: str) -> None:
        """Refuse a layer that runs twice, or whose tensors are not its own.

        Raises:
            Refusal: it is one.
        """
        module = self.modules[name]
        if self.runs[module] > 1:
            raise Refusal(f"{name!r} runs {self.runs[module]} times")
        if any(parameter in self.tied for parameter in module._parameters.values()):
            raise Refusal(f"{name!r} shares a parameter with another module")
        if any(target.startswith(f"{name}.") for target in self.read):
            raise Refusal(f"forward uses a tensor of {name!r} by itself")


class _Tracer(PartialTracer):
    """Stop at norms and linear layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # asked before, since tracing records each question about a tensor
        self.leaves = {m for m in model.modules() if isinstance(m, LINEAR) or is_norm(m)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As torch.fx, and the layers that are folded, of whatever origin."""
        return m in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _next(node: fx.Node, side: Side) -> fx.Node:
    """Return the call before or behind that sees this node, and that alone."""
    if side == "before":
        alone = not node.kwargs and (node.op != "call_module" or len(node.args) == 1)
        other = node.args[0] if alone and node.args else None
        if not isinstance(other, fx.Node):
            raise Refusal(f"{str(node.target)!r} is called with more than its input")
        if other.op == "call_module" and len(_users(other)) > 1:
            raise Refusal(f"the output of {str(other.target)!r} is used elsewhere too")
        return other
    users = _users(node)
    if len(users) != 1:
        raise Refusal(f"its output is used {len(users)} times")
    other = users[0]
    if other.op == "call_module" and (other.args != (node,) or other.kwargs):
        raise Refusal(f"{str(other.target)!r} is called with more than its input")
    return other


def _users(node: fx.Node) -> list[fx.Node]:
    """Return the calls that see the values of a node, and not its shape alone."""
    return [
        user
        for user in node.users
        if not (
            (user.op == "call_method" and user.target in ("size", "dim"))
            or (user.target is getattr and user.args[1] in ("shape", "ndim"))
            or (user.target in ("reshape_as", "view_as") and user.args[0] is not node)
        )
    ]


def moved_channels(node: fx.Node, side: Side) -> int | None:
    """Return for which rank of the norm's input a call has the last axis of a linear layer there.

    Before a norm the last axis becomes axis 1: `flatten(0, 1)` and `reshape(-1, C)` give two axes,
    `transpose(1, 2)` three, `permute(0, 3, 1, 2)` four. Behind it axis 1 becomes the last.
    """
    if node.kwargs or node.op not in ("call_method", "call_function"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    axes = node.args[1:]
    if len(axes) == 1 and isinstance(axes[0], (tuple, list)):
        axes = tuple(axes[0])
    if side == "before" and len(_users(node)) > 1:
        return None
    if name in ("reshape", "view") and side == "before" and len(axes) == 2:
        return 2  # rows as long as the layer's outputs, or the norm does not fit it
    if not all(isinstance(axis, int) for axis in axes):
        return None
    if name == "flatten" and side == "before" and len(axes) == 2 and axes[0] == 0:
        return 2
    if name in ("transpose", "swapaxes") and sorted(axes) == [1, 2]:  # type: ignore[type-var]
        return 3
    rank = len(axes)
    ahead = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
    return rank if name == "permute" and rank > 2 and axes == ahead[side == "behind"] else None


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, or raise a ModelError with the reason why there is none."""
    try:
        return copy.deepcopy(model)
    except Exception as problem:
        raise ModelError(f"{type(model).__name__} cannot be copied: {reason(problem)}") from problem
