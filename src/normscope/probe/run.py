"""Run a model with chosen statistics in its norms, and measure what enters them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from normscope.functional import batch_norm, moments
from normscope.layers.conditional import current_condition
from normscope.moments import Moments
from normscope.probe.batches import Loader
from normscope.probe.compare import Answer, Goal
from normscope.probe.grammar import Batch
from normscope.probe.hooks import uncompiled
from normscope.probe.random import seed_all
from normscope.probe.stream import MomentStream

Statistics = Mapping[str, tuple[Tensor, Tensor]]  # layer -> mean, biased or unbiased variance


class _Stop(BaseException):
    """End a forward early: what comes after is not measured."""


class NormRun:
    """Override what norm layers normalise with, and record the moments of their inputs.

    Use inside `preserved(model)`, which also takes back the statistics chosen here and the state
    of the random generators: every batch runs under random numbers of its own number, so a
    model that draws noise draws the same in every run.

    Attributes:
        streams: layer -> one stream of moments per call in a forward.
        order: layers in the order of their first call.
        most_calls: layer -> calls in one forward.
        features: output of the last norm layer that ran.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        by_batch: Set[str] = frozenset(),
        stored: Statistics | None = None,
        measured: Set[str] | None = None,
        last: str | None = None,
    ) -> None:
        """Choose what each layer normalises with, and what is measured.

        Args:
            layers: by name; each keeps running statistics per channel.
            by_batch: layers that normalise with the statistics of the batch at hand.
            stored: others for some layers than they have.
            measured: None: all layers.
            last: stop each forward when this layer was measured.
        """
        self.streams: dict[str, list[MomentStream]] = {}
        self.order: list[str] = []
        self.most_calls: Counter[str] = Counter()
        self._layers = layers
        self._by_batch = by_batch
        self._stored = stored or {}
        self._measured = set(layers) if measured is None else measured
        self._last = last
        self._calls: Counter[str] = Counter()
        self.features: Tensor | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Take the place of every layer's forward."""
        with ExitStack() as undo:
            for name, layer in self._layers.items():
                if name in self._stored:
                    put(layer, *self._stored[name])
                own = layer.__dict__.get("forward")
                layer.__dict__["forward"] = self._replaced(name, layer, layer.forward)
                undo.callback(_own_again, layer, own)
            undo.enter_context(uncompiled())  # compiled code would pass by
            yield

    def run(self, loader: Loader, model: nn.Module, batch: Batch) -> Any:
        """Run the model; return its output, None where it stopped at `last`."""
        self._calls.clear()
        self._size = batch.size
        self.features = None
        seed_all(batch.index)
        try:
            return loader.run(model, batch)
        except _Stop:
            return None

    def answer(self, loader: Loader, model: nn.Module, batch: Batch, goal: Goal) -> Answer:
        """Run the model, and read its output as the goal does."""
        return goal.answer(self.run(loader, model, batch), batch, self.features)

    def _replaced(
        self, name: str, layer: nn.Module, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        by_batch, measured = name in self._by_batch, name in self._measured

        def watched(*args: Any, **kwargs: Any) -> Any:
            index = self._calls[name]
            self._calls[name] += 1
            self.most_calls[name] = max(self.most_calls[name], index + 1)
            if name not in self.order:
                self.order.append(name)
            seen, output = None, None
            if by_batch and isinstance(layer, _BatchNorm):
                with _ByBatch(layer) as inside:
                    output = forward(*args, **kwargs)
                seen = inside.seen
            served = seen is not None
            if (by_batch or measured) and not served:
                seen = _moments(layer, args, kwargs)
            if seen is not None and measured:
                self._add(name, index, seen)
            if seen is not None and by_batch and not served:
                _normalise_by(layer, seen, self._stored.get(name))
            output = output if served else forward(*args, **kwargs)
            if isinstance(output, Tensor):
                self.features = output
            return output

        return watched

    def _add(self, name: str, index: int, seen: Moments) -> None:
        calls = self.streams.setdefault(name, [])
        if index == len(calls):
            calls.append(MomentStream())
        calls[index].add(seen, self._size)
        if name == self._last:
            raise _Stop


class _ByBatch(TorchFunctionMode):
    """Inside, the layer's own call of batch_norm normalises by the batch, and its moments are kept.

    One sweep over the data measures and normalises. What one set of statistics per channel does
    not describe (groups, a mask, one value per channel) passes as it is.

    Attributes:
        seen: the moments; None where nothing was served.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer
        self.seen: Moments | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in (F.batch_norm, batch_norm):
            x, _, _, *affine = args[:5]
            alone = x.dim() < 2 or x.numel() <= x.shape[1]
            if not alone and given.get("groups") is None and given.get("mask") is None:
                weight, bias = (*affine, given.get("weight"), given.get("bias"))[:2]
                eps = args[7] if len(args) > 7 else given.get("eps", 1e-5)
                act, residual = given.get("act"), given.get("residual")
                y = batch_norm(
                    x, None, None, weight, bias, training=True, eps=eps,
                    act=act, residual=residual, on_moments=self._keep,
                )  # fmt: skip
                if act is not None or residual is not None:
                    # whoever looks at what is fused recomputes it with what the layer holds
                    assert self.seen is not None, "just kept"
                    _normalise_by(self._layer, self.seen, None)
                return y
        return func(*args, **given)

    def _keep(self, batch: Moments) -> None:
        self.seen = batch[0]


def _own_again(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    """Return the forward that was the layer's own; None: that of its class."""
    if own is None:
        del layer.__dict__["forward"]
    else:
        layer.__dict__["forward"] = own


def put(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Let a layer normalise with these, in tensors of their own; its old ones are untouched."""
    for name, value in (("running_mean", mean), ("running_var", var)):
        old = layer._buffers[name]
        assert old is not None, "a layer with statistics was asked for"
        layer._buffers[name] = value.detach().to(old.device, old.dtype)


def tensors_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return running_mean and running_var."""
    mean, var = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor), "find_norms saw it"
    assert isinstance(var, Tensor), "find_norms saw it"
    return mean, var


def dropouts(model: nn.Module) -> list[nn.Module]:
    """List the layers that drop something in train()."""
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]


@torch.no_grad()
def _moments(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moments | None:
    """Return moments of a layer's input in the shape of its statistics: (C,), or (K, C)."""
    x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    mean, _ = tensors_of(layer)
    if x is None or x.dim() < 2 or x.shape[1] != mean.shape[-1]:
        return None
    mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
    if mean.dim() == 1:
        return moments(x.detach(), mask=mask)[0]
    ids = kwargs.get("condition", args[1] if len(args) > 1 else None)
    ids = current_condition() if ids is None else ids
    return None if ids is None else moments(x.detach(), ids, mean.shape[0], mask)


def _normalise_by(layer: nn.Module, batch: Moments, other: tuple[Tensor, Tensor] | None) -> None:
    """Compute the batch's own statistics, where it has more than one value per channel."""
    mean, var = tensors_of(layer) if other is None else other
    enough = (batch.count > 1).unsqueeze(-1)
    put(
        layer,
        torch.where(enough, batch.mean, mean.to(batch.mean.dtype)),
        torch.where(enough, batch.var(correction=0), var.to(batch.mean.dtype)),
    )
