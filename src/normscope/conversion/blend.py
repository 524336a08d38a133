"""Classes for layers that are derived from a batch norm: what they were, and one of the family."""

from typing import Any

from torch import Tensor, nn

from normscope.arguments import Activation
from normscope.layers.batch import Normalizer


class Blend(nn.Module):
    """A layer of the family that goes on being what it was to those who ask for its class."""

    origin: type[nn.Module]
    target: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        behind = isinstance(self, Behind)
        return _empty, (self.target, self.origin, behind), self.__dict__.copy()


class Behind(Blend):
    """A layer with modules drop and act of its own, which run behind the normalisation."""

    taken_act: Activation | None = None  # what the layer does since `act` is an identity

    @property
    def fused_act(self) -> Activation | None:
        """The activation in the layer's own loop; `act` is the module behind it."""
        return self.taken_act

    @property
    def act(self) -> Any:
        """The module, as in the class that the layer was."""
        return self._modules["act"]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return act(drop(norm(x)))."""
        drop: Any = self.drop
        y: Tensor = self.act(drop(super().forward(*args, **kwargs)))
        return y


_blends: dict[tuple[type, type, bool], type[nn.Module]] = {}


def blended(target: type[nn.Module], origin: type[nn.Module], behind: bool) -> type[nn.Module]:
    """Make a class that computes as `target` and is an `origin` too, where both are batch norms.

    One and the same class for the same arguments, so that copies of a layer are of one class.
    """
    if (target, origin, behind) in _blends:
        return _blends[target, origin, behind]
    bases: tuple[type[nn.Module], ...] = (Behind, target) if behind else (Blend, origin, target)
    if behind and issubclass(target, Normalizer) and issubclass(origin, nn.BatchNorm2d):
        bases = (Behind, target, origin)
    made_of = {"origin": origin, "target": target}
    blend: type[nn.Module] = type(origin.__name__, bases, made_of)
    return _blends.setdefault((target, origin, behind), blend)


def _empty(target: type[nn.Module], origin: type[nn.Module], behind: bool) -> nn.Module:
    cls = blended(target, origin, behind)
    return cls.__new__(cls)
