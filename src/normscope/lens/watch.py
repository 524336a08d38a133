"""Telemetry of normalisation layers while somebody's own loop trains them."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.errors import InputError, ModelError
from normscope.lens import measures
from normscope.lens.sweep import Sweep, absorb
from normscope.moments import Moments

Values = dict[str, float]
Sink = Callable[[int, Values], None]  # the step, and "layer/measure" -> value

DEAD = 1e-3  # a gate that fires less often than this, or more often than 1 - DEAD, cuts nothing


def watch(model: nn.Module, *, every: int = 100, to: Iterable[Sink] = ()) -> "Watch":
    """Measure the normalisation layers of `model` at every k-th training step.

    It goes around the steps of a loop::

        watching = watch(model, every=100, to=[csv("norms.csv"), logged(wandb_run)])
        for x, y in loader:
            with watching.step(y):
                ...  # forward, backward, optimizer.step()

    Between measured steps there are no hooks, no copies and no tensors: a step then costs one
    comparison. At a measured step each layer yields these scalars, of one training batch::

        gamma_mean, gamma_off_one   mean of gamma; root mean square of gamma - 1
        beta_rms, gate              root mean square of beta; mean of |beta / gamma|
        flips                       share of channels whose gamma changed its sign in this step
        gamma_update, beta_update   log10 of |change| / |value| by this step
        gamma_grad, beta_grad       length of the gradient
        values                      how many values per channel were normalised together
        mean_z                      rms of (batch mean - running mean) / running deviation
        var_ratio                   mean of batch variance / running variance
        drift                       both as the distance of two Gaussians, in running deviations
        firing, dead, open          share of outputs above 0; channels with hardly any, nearly all
        eta2                        between-class share of the variance, where labels are given

    What does not exist (no gamma, no gradient, no labels) is left out.

    Args:
        model: any; layers without running statistics are passed over.
        every: steps between two that are measured; the first is.
        to: called with the step and {"layer/measure": value}; see `sinks`.

    Raises:
        InputError: every below 1.
        ModelError: no layer to watch.
    """
    if every < 1:
        raise InputError(f"every is {every}; it must be 1 or more steps")
    norms = [norm for norm in probe.find_norms(model) if norm.skipped is None]
    if not norms:
        raise ModelError("the model has no normalisation layer with running statistics to watch")
    return Watch({norm.name: norm.module for norm in norms}, every, tuple(to))


@dataclass(eq=False)
class Watch:
    """What `watch` returns. Use `step`, or `start` and `stop` from callbacks.

    Attributes:
        layers: by name.
        every: steps between two that are measured.
        sinks: who is told.
        count: steps so far.
        last: what was measured last; scalars only.
    """

    layers: dict[str, nn.Module]
    every: int
    sinks: tuple[Sink, ...]
    count: int = 0
    last: Values = field(default_factory=dict)
    _hooks: list[Any] = field(default_factory=list)
    _labels: Tensor | None = None
    _before: dict[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    @contextmanager
    def step(self, labels: Tensor | None = None) -> Iterator[None]:
        """Around one training step: forward, backward and optimiser; labels (N,) of its batch."""
        self.start(labels)
        try:
            yield
        except BaseException:
            self.release()
            raise
        self.stop()

    def start(self, labels: Tensor | None = None) -> None:
        """A training step begins."""
        self.release()
        if self.count % self.every:
            return
        self.last = {}
        self._labels = None if labels is None else labels.detach().cpu()
        for name, module in self.layers.items():
            self._before[name] = _parameters(module)
            self._hooks += [
                module.register_forward_pre_hook(self._input(name)),
                module.register_forward_hook(self._output(name)),
            ]

    def gradients(self) -> None:
        """Note the gradients now, for loops that clear them before the step ends."""
        if self._hooks:
            for name, module in self.layers.items():
                self._put(name, _gradients(module))

    def stop(self, step: int | None = None) -> None:
        """It ends; `step` is the number to report, by default how many there were before."""
        measured = bool(self._hooks)
        if measured:
            self.gradients()
            for name, module in self.layers.items():
                for key, value in _moved(self._before[name], module).items():
                    self.last[f"{name}/{key}"] = value
        self.release()
        number = self.count if step is None else step
        self.count += 1
        if measured:
            for sink in self.sinks:
                sink(number, self.last)

    def release(self) -> None:
        """Drop every hook and every tensor; what a step that failed left behind."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._before.clear()
        self._labels = None

    def _input(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def measure(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() > 1:
                self._put(name, _batch(module, args[0].detach(), self._labels))

        return measure

    def _output(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def measure(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() > 1:
                seen = Sweep.of(output.detach())
                share = seen.fired.sum(0) / (len(seen.fired) * seen.positions)
                self._put(
                    name,
                    {
                        "firing": float(share.mean()),
                        "dead": float((share < DEAD).double().mean()),
                        "open": float((share > 1 - DEAD).double().mean()),
                    },
                )

        return measure

    def _put(self, name: str, values: Values) -> None:
        # of a layer that is called several times in a step the first call counts
        for key, value in values.items():
            self.last.setdefault(f"{name}/{key}", value)


@torch.no_grad()
def _batch(module: nn.Module, x: Tensor, labels: Tensor | None) -> Values:
    """What a batch looks like to the layer before it normalises it."""
    seen = Sweep.of(x)
    groups = torch.zeros(len(x), dtype=torch.int64)
    pooled = Moments.empty(1, x.shape[1])
    absorb(pooled, seen, groups)
    mean, var = pooled.mean[0], pooled.var(correction=0)[0]
    values = {"values": float(pooled.count)}
    stored, spread = (_table(module, n) for n in ("running_mean", "running_var"))
    if stored is not None and spread is not None and stored.shape == mean.shape:
        live = spread > 0
        std = spread[live].sqrt()
        distance = (mean - stored)[live] / std
        change = var[live].sqrt() / std - 1
        values["mean_z"] = _rms(distance)
        values["var_ratio"] = float((var[live] / spread[live]).mean())
        values["drift"] = float((distance**2 + change**2).sqrt().mean())
    if labels is not None and labels.shape == (len(x),):
        moments = Moments.empty(int(labels.max()) + 1, x.shape[1])
        absorb(moments, seen, labels.long())
        values["eta2"] = float(measures.eta2(moments).nanmean())
    return {key: value for key, value in values.items() if math.isfinite(value)}


@torch.no_grad()
def _moved(before: tuple[Tensor | None, Tensor | None], module: nn.Module) -> Values:
    """Gamma and beta after the step, and how far it moved them."""
    values: Values = {}
    gamma, beta = _parameters(module)
    if gamma is not None:
        values["gamma_mean"] = float(gamma.mean())
        values["gamma_off_one"] = _rms(gamma - 1)
        if before[0] is not None:
            values["flips"] = float((gamma * before[0] < 0).double().mean())
    if beta is not None:
        values["beta_rms"] = _rms(beta)
        if gamma is not None and bool((gamma != 0).any()):
            values["gate"] = float((beta / gamma)[gamma != 0].abs().mean())
    for name, old, new in (("gamma", before[0], gamma), ("beta", before[1], beta)):
        if old is not None and new is not None and float(old.norm()) > 0:
            change = float((new - old).norm() / old.norm())
            if change > 0:
                values[f"{name}_update"] = math.log10(change)
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _gradients(module: nn.Module) -> Values:
    found = {
        "gamma_grad": getattr(module, "weight", None),
        "beta_grad": getattr(module, "bias", None),
    }
    return {
        name: float(value.grad.norm())
        for name, value in found.items()
        if isinstance(value, Tensor) and value.grad is not None
    }


def _parameters(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    return _table(module, "weight"), _table(module, "bias")


def _table(module: nn.Module, name: str) -> Tensor | None:
    value = getattr(module, name, None)
    return value.detach().double().cpu().clone() if isinstance(value, Tensor) else None


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
