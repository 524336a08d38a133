"""Measure normalisation layers inside any training loop."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope import probe
from normscope.errors import InputError, ModelError, few
from normscope.lens import measures
from normscope.lens.sinks import Sink as Sink
from normscope.lens.sinks import Values as Values
from normscope.lens.sinks import sink
from normscope.lens.sweep import Sweep, absorb, rows_of
from normscope.moments import Moments, rms
from normscope.probe.hooks import attach
from normscope.probe.random import kept_generators

DEAD = 1e-3  # a channel above 0 in a smaller share of outputs is dead; above 1 - DEAD, it is open
PARTS = ("count", "mean", "m2")  # of Moments


def monitor(model: nn.Module, *, every: int = 100, to: Iterable[Any] = ()) -> "Monitor":
    """Measure the normalisation layers of `model` at every k-th training step.

    It goes around the steps of a loop::

        watching = monitor(model, every=100, to=["norms.csv", wandb_run])
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

    What does not exist (no gamma, no gradient, no labels) is left out. `Monitor.measure` measures
    on fixed samples instead, so that the values of different steps compare.

    Args:
        model: any; layers without running statistics are passed over.
        every: steps between two that are measured; the first is.
        to: where the scalars go: paths of .csv and .jsonl files, a SummaryWriter, runs of W&B and
            MLflow, loggers of frameworks, functions; see `sinks.sink`.

    Raises:
        InputError: every below 1, or nothing can be written to what `to` names.
        MissingExtraError: the package of a logger is not installed.
        ModelError: no layer to monitor.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> from normscope.lens import monitor
    >>> watching = monitor(net, every=10)
    >>> for step in range(20):
    ...     with watching.step():
    ...         net(torch.randn(32, 4)).sum().backward()
    >>> watching.last["1/values"]
    32.0
    """
    if every < 1:
        raise InputError(f"every is {every}; it must be 1 or more steps")
    norms = [norm for norm in probe.find_norms(model) if norm.skipped is None]
    if not norms:
        raise ModelError("the model has no normalisation layer with running statistics to monitor")
    return Monitor(model, {norm.name: norm.module for norm in norms}, every, tuple(map(sink, to)))


@dataclass(eq=False)
class Monitor:
    """Measures layers during training. Use `step`, or `start` and `stop` from callbacks.

    Attributes:
        model: the model in training.
        layers: those that are measured, by name; any module with one input and one output.
        every: steps between two that are measured.
        sinks: what receives the values.
        merge: merges the moments of a batch with those of other ranks; the identity if alone.
        count: steps so far.
        last: what was measured last; scalars only.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    every: int = 100
    sinks: tuple[Sink, ...] = ()
    merge: Callable[[Moments], Moments] = lambda moments: moments
    count: int = 0
    last: Values = field(default_factory=dict)
    _hooks: ExitStack | None = None
    _labels: Tensor | None = None
    _before: dict[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    _reference: dict[str, Moments] = field(default_factory=dict)  # of the last `measure`
    _current: dict[str, Moments] | None = None  # of a `measure` that is running

    def __repr__(self) -> str:
        names = few(list(self.layers))
        return (
            f"Monitor of {type(self.model).__name__}: {len(self.layers)} layers ({names}), every "
            f"{self.every} steps; {self.count} steps so far, {len(self.sinks)} sinks"
        )

    @contextmanager
    def step(self, labels: Tensor | None = None) -> Iterator[None]:
        """Measure around one training step: forward, backward, optimiser; labels (N,)."""
        self.start(labels)
        try:
            yield
        except BaseException:
            self.release()
            raise
        self.stop()

    def start(self, labels: Tensor | None = None) -> None:
        """Begin a training step."""
        self.release()
        if self.count % self.every:
            return
        self._labels = None if labels is None else labels.detach().cpu()
        self._before = {name: _parameters(module) for name, module in self.layers.items()}
        self._attach()

    def gradients(self) -> None:
        """Note the gradients now, for loops that clear them before the step ends."""
        if self._hooks:
            for name, module in self.layers.items():
                self._put(name, _gradients(module))

    def stop(self, step: int | None = None) -> None:
        """End a step; `step` is the number to report, by default how many there were before."""
        number = self.count if step is None else step
        measured = self._hooks is not None
        if measured:
            self._measure_parameters()
        self.release()
        self.count += 1
        if measured:
            self._send(number)

    def measure(self, run: Callable[[], object], step: int, **others: float) -> Values:
        """Measure now, whatever `every` is, what `run()` sends through the layers.

        `run` is called in the mode that the model is in, without gradients; buffers and all
        random states are put back. Given the same samples each time, it shows how the network
        moved and not which samples came. Updates are left out; from the second call on there are
        also::

            shift_in, shift_out   how far the distribution of a layer's input, of its output, moved
                                  since the last call, see `shift`

        Args:
            run: a forward of the model, or several.
            step: the number to report.
            others: further scalars for the sinks, such as the loss.

        Returns:
            What the sinks received.
        """
        self.release()
        current: dict[str, Moments] = {}
        self._current = current
        try:
            with torch.no_grad(), kept_generators(), _kept_buffers(self.model):
                self._attach()
                run()
            self._measure_parameters()
        finally:
            self.release()
        for place, moments in current.items():
            if place in self._reference:
                name, _, side = place.rpartition("/")
                self._put(name, _finite({f"shift_{side}": shift(self._reference[place], moments)}))
        self._reference = current
        self.last |= _finite(others)
        self._send(step)
        return self.last

    def release(self) -> None:
        """Drop every hook and every tensor that a step, also one that failed, left behind."""
        if self._hooks:
            self._hooks.close()
        self._hooks = self._labels = self._current = None
        self._before.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next `measure` compares with, as named tensors."""
        return {
            f"{place}.{part}": getattr(moments, part)
            for place, moments in self._reference.items()
            for part in PARTS
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        places = dict.fromkeys(key.rpartition(".")[0] for key in state)
        self._reference = {p: Moments(*(state[f"{p}.{part}"] for part in PARTS)) for p in places}

    def _attach(self) -> None:
        self.last = {}
        self._hooks = attach(self.layers, self._input, self._output)

    def _send(self, step: int) -> None:
        for write in self.sinks:
            write(step, self.last)

    @torch.no_grad()
    def _input(self, name: str, module: nn.Module, x: Tensor) -> None:
        """Compare a batch with the running statistics, before the layer updates them."""
        seen = Sweep.of(rows_of(x))
        moments = self._keep(f"{name}/in", seen)
        values = {"values": float(moments.count)} | _against_running(moments, module)
        if self._labels is not None and self._labels.shape == (len(x),):
            classes = Moments.empty(int(self._labels.max()) + 1, x.shape[1])
            absorb(classes, seen, self._labels)
            values["eta2"] = float(measures.eta2(classes).nanmean())
        self._put(name, _finite(values))

    @torch.no_grad()
    def _output(self, name: str, y: Tensor) -> None:
        seen = Sweep.of(rows_of(y))
        if self._current is not None:
            self._keep(f"{name}/out", seen)
        # the share of positive values merges over ranks as a mean does
        count = seen.positions.sum().unsqueeze(0)
        fired = (seen.fired.sum(0) / count.clamp(min=1)).unsqueeze(0)
        share = self.merge(Moments(count, fired, torch.zeros_like(fired))).mean
        values = {
            "firing": float(share.mean()),
            "dead": float((share < DEAD).double().mean()),
            "open": float((share > 1 - DEAD).double().mean()),
        }
        self._put(name, values)

    def _keep(self, place: str, seen: Sweep) -> Moments:
        """Return the moments of a batch, (1, C), and keep them where `measure` is running."""
        moments = Moments.empty(1, seen.mean.shape[1])
        absorb(moments, seen, torch.zeros(len(seen.mean), dtype=torch.int64))
        moments = self.merge(moments)
        if self._current is not None:
            known = self._current.get(place)
            self._current[place] = moments if known is None else known + moments
        return moments

    def _measure_parameters(self) -> None:
        for name, module in self.layers.items():
            self._put(name, _gradients(module) | _moved(self._before.get(name), module))

    def _put(self, name: str, values: Values) -> None:
        # of a layer that is called several times in a step the first call counts
        for key, value in values.items():
            self.last.setdefault(f"{name}/{key}", value)


def shift(before: Moments, after: Moments) -> float:
    """Return how far a distribution moved, mean over channels, in standard deviations of before.

        sqrt((mean' - mean)^2 + (std' - std)^2) / std,

    the Wasserstein-2 distance of two Gaussians. Constant channels of `before` are left out; NaN
    where all are constant.
    """
    old, new = before.var(correction=0).sqrt(), after.var(correction=0).sqrt()
    distance = torch.hypot(after.mean - before.mean, new - old)
    varies = old > 1e-12 * before.mean.abs()
    return float((distance[varies] / old[varies]).mean())


def _against_running(moments: Moments, module: nn.Module) -> Values:
    """Measure how far a batch is from the layer's running statistics."""
    mean, var = moments.mean[0], moments.var(correction=0)[0]
    stored, spread = _table(module, "running_mean"), _table(module, "running_var")
    if stored is None or spread is None or stored.shape != mean.shape:
        return {}
    live = spread > 0
    std = spread[live].sqrt()
    distance = (mean - stored)[live] / std
    change = var[live].sqrt() / std - 1
    return {
        "mean_z": rms(distance),
        "var_ratio": float((var[live] / spread[live]).mean()),
        "drift": float((distance**2 + change**2).sqrt().mean()),
    }


@torch.no_grad()
def _moved(before: tuple[Tensor | None, Tensor | None] | None, module: nn.Module) -> Values:
    """Measure gamma and beta after a step, and how far it moved them from `before`."""
    values: Values = {}
    gamma, beta = _parameters(module)
    old_gamma, old_beta = before or (None, None)
    if gamma is not None:
        values["gamma_mean"] = float(gamma.mean())
        values["gamma_off_one"] = rms(gamma - 1)
        if old_gamma is not None:
            values["flips"] = float((gamma * old_gamma < 0).double().mean())
    if beta is not None:
        values["beta_rms"] = rms(beta)
        if gamma is not None and bool((gamma != 0).any()):
            values["gate"] = float((beta / gamma)[gamma != 0].abs().mean())
    for name, old, new in (("gamma", old_gamma, gamma), ("beta", old_beta, beta)):
        if old is not None and new is not None and float(old.norm()) > 0:
            change = float((new - old).norm() / old.norm())
            if change > 0:
                values[f"{name}_update"] = math.log10(change)
    return _finite(values)


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


def _finite(values: Values) -> Values:
    return {key: value for key, value in values.items() if math.isfinite(value)}


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    # by content: torch's batch norm writes running statistics without a new version number
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, content in buffers:
            buffer.copy_(content)
