"""Which layer runs on whose output, as one run of the model shows it: for what cannot be traced."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normscope.conversion.kinds import Refusal, is_norm
from normscope.conversion.tracing import check_unwatched, without_hooks
from normscope.errors import ModelError
from normscope.folding.flow import Layers, copied
from normscope.folding.pair import LINEAR, Side
from normscope.probe.grammar import arguments, signature_of
from normscope.probe.load import reason

OUTSIDE = ""  # stands for everything that is no norm and no linear layer


def called(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Call a model on a batch; a dict alone holds named arguments, a tuple alone the others."""
    args, named = inputs, dict[str, Any]()
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        args, named = arguments(signature_of(model), inputs[0], inputs[0], None)
    elif len(inputs) == 1 and isinstance(inputs[0], tuple):
        args = inputs[0]
    return model(*args, **named)


class ObservedFlow:
    """Which norm or linear layer runs on whose output in one run of a copy of the model.

    Every operator of torch is seen: a tensor that one of them takes outside of these layers, or
    that the model returns, is used elsewhere too.

    Raises:
        ModelError: the model fails on the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.layers = Layers(model)
        self.modules = self.layers.modules
        self._taken: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}
        self._users: dict[int, set[str]] = defaultdict(set)
        self._inside: list[str] = [OUTSIDE]
        self._alive: list[Any] = []  # so that no other tensor gets the identity of one
        twin = without_hooks(copied(model).eval())
        self._own = {
            name: [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            for name, module in twin.named_modules()
        }
        for name, module in twin.named_modules():
            if isinstance(module, LINEAR) or is_norm(module):
                self._follow(name, module)
        try:
            with torch.no_grad(), _Users(self):
                output = called(twin, (inputs,))
        except Exception as problem:
            raise ModelError(
                f"{type(model).__name__} fails on these inputs: {reason(problem)}"
            ) from problem
        for leaf in tree_leaves(output):
            self._users[id(leaf)].add(OUTSIDE)

    def check(self, name: str) -> None:
        """Refuse a norm that is not called once, on its input alone, with tensors of its own.

        Raises:
            Refusal: it is one.
        """
        if not self.layers.runs[self.modules[name]]:
            raise Refusal("forward does not run it on these inputs in eval()")
        self._check_own(name)
        if name not in self._taken:
            raise Refusal("it is called with more than its input")

    def neighbour(self, norm: str, side: Side) -> tuple[str, None]:
        """Return the name of the linear layer right next to a norm; see `Flow.neighbour`.

        Raises:
            Refusal: something else is there, or sees what lies between.
        """
        between = self._taken[norm] if side == "before" else self._given[norm]
        others = self._given if side == "before" else self._taken
        found = [
            name
            for name, tensor in others.items()
            if tensor is between and isinstance(self.modules[name], LINEAR)
        ]
        if len(found) != 1:
            raise Refusal("no linear layer is there")
        allowed = {norm} if side == "before" else set(found)
        if self._users[id(between)] != allowed:
            raise Refusal("what lies between is used elsewhere too")
        self._check_own(found[0])
        check_unwatched([norm, found[0]], self.modules)
        return found[0], None

    def _check_own(self, name: str) -> None:
        self.layers.check_own(name)
        if any(self._users[id(tensor)] - {name} for tensor in self._own[name]):
            raise Refusal(f"forward uses a tensor of {name!r} by itself")

    def use(self, values: Any) -> None:
        """Note who takes these tensors."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._users[id(leaf)].add(self._inside[-1])
                self._alive.append(leaf)

    def _follow(self, name: str, module: nn.Module) -> None:
        forward, layer = module.forward, self.modules[name]

        def followed(*args: Any, **kwargs: Any) -> Any:
            self.layers.runs[layer] += 1
            self._inside.append(name)
            try:
                output = forward(*args, **kwargs)
            finally:
                self._inside.pop()
            alone = len(args) == 1 and not kwargs
            if alone and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self._taken[name], self._given[name] = args[0], output
            return output

        module.forward = followed


class _Users(TorchDispatchMode):
    """Tells a flow of every operator."""

    def __init__(self, flow: ObservedFlow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._flow.use((args, kwargs))
        return func(*args, **(kwargs or {}))
