"""A model run over data while the inputs of its norms are measured, and its statistics chosen."""

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normscope.doctor.loader import Batch, Loader
from normscope.doctor.tally import Tally
from normscope.functional import moments
from normscope.layers.conditional import current_condition
from normscope.moments import Moments

Statistics = Mapping[str, tuple[Tensor, Tensor]]  # layer -> mean, biased or unbiased variance


class Enough(BaseException):
    """A pass may stop here: what is behind is not measured. No error; nobody should catch it."""


class Passage:
    """What stands at the entry of every norm while the model runs inside `watching`.

    Use inside `probe.untouched(model)`, which also takes back the statistics chosen here.

    Attributes:
        tallies: layer -> one tally per call in a forward.
        order: layers in the order of their first call.
        most_calls: layer -> calls in one forward.
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
        self.tallies: dict[str, list[Tally]] = {}
        self.order: list[str] = []
        self.most_calls: Counter[str] = Counter()
        self._layers = layers
        self._by_batch = by_batch
        self._stored = stored or {}
        self._measured = set(layers) if measured is None else measured
        self._last = last
        self._calls: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand at every layer's entry."""
        with ExitStack() as undo:
            for name, layer in self._layers.items():
                if name in self._stored:
                    put(layer, *self._stored[name])
                hook = layer.register_forward_pre_hook(self._entry(name), with_kwargs=True)
                undo.callback(hook.remove)
            yield

    def run(self, loader: Loader, model: nn.Module, batch: Batch) -> Any:
        """One forward; None where it stopped at `last`."""
        self._calls.clear()
        self._size = batch.size
        try:
            return loader.run(model, batch)
        except Enough:
            return None

    def _entry(self, name: str) -> Any:
        def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            index = self._calls[name]
            self._calls[name] += 1
            self.most_calls[name] = max(self.most_calls[name], index + 1)
            by_batch, measured = name in self._by_batch, name in self._measured
            if name not in self.order:
                self.order.append(name)
            if not by_batch and not measured:
                return
            seen = _moments(layer, args, kwargs)
            if seen is None:  # the layer itself will say what is wrong
                return
            if measured:
                calls = self.tallies.setdefault(name, [])
                if index == len(calls):
                    calls.append(Tally())
                calls[index].add(seen, self._size)
                if name == self._last:
                    raise Enough
            if by_batch:
                _normalise_by(layer, seen, self._stored.get(name))

        return enter


def put(layer: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Let a layer normalise with these, in tensors of their own; its old ones are untouched."""
    for name, value in (("running_mean", mean), ("running_var", var)):
        old = layer._buffers[name]
        assert old is not None, "a layer with statistics was asked for"
        layer._buffers[name] = value.detach().to(old.device, old.dtype)


def tensors_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """running_mean and running_var."""
    mean, var = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor), "find_norms saw it"
    assert isinstance(var, Tensor), "find_norms saw it"
    return mean, var


@torch.no_grad()
def _moments(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moments | None:
    """Of a layer's input, in the shape of its statistics: (C,), or (K, C) by condition."""
    x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    mean, _ = tensors_of(layer)
    if x is None or x.dim() < 2 or x.shape[1] != mean.shape[-1]:
        return None
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    mask = kwargs.get("mask", args[2] if len(args) > 2 else None)
    if mean.dim() == 1:
        whole = moments(x.detach(), mask=mask)
        return Moments(whole.count[0], whole.mean[0], whole.m2[0])
    ids = kwargs.get("condition", args[1] if len(args) > 1 else None)
    ids = current_condition() if ids is None else ids
    return None if ids is None else moments(x.detach(), ids, mean.shape[0], mask)


def _normalise_by(layer: nn.Module, batch: Moments, other: tuple[Tensor, Tensor] | None) -> None:
    """The batch's own statistics, where it has more than one value per channel."""
    mean, var = tensors_of(layer) if other is None else other
    enough = (batch.count > 1).unsqueeze(-1)
    put(
        layer,
        torch.where(enough, batch.mean, mean.to(batch.mean.dtype)),
        torch.where(enough, batch.var(correction=0), var.to(batch.mean.dtype)),
    )
