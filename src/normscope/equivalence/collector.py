"""Sites of what runs in a network: norms, linear layers, and what stands in a norm's place."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from normscope.equivalence.sites import Site, Sketch, numbers
from normscope.layers.statistics import RunningStatistics
from normscope.probe.observe import Call
from normscope.probe.operators import OperatorCall


class Collector:
    """Makes sites of what is told while a form runs."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.pending: OperatorCall | None = None  # a batch norm inside the layer that runs
        self._calls: Counter[str] = Counter()
        self._before: dict[str, list[Sketch]] = {}
        self._scaled: tuple[str, Tensor, Sketch] | None = None

    def normed(self, call: Call, before: Tensor, after: Tensor) -> None:
        """A norm layer of a module ran."""
        seen, self.pending = self.pending, None
        if seen is not None and seen.after.shape != after.shape:
            seen = None
        layer = call.module
        settings = dict(seen.settings) if seen is not None else {}
        settings |= {k: v for k in ("momentum",) if (v := getattr(layer, k, None)) is not None}
        settings.setdefault("eps", getattr(layer, "eps", float("nan")))
        if isinstance(layer, RunningStatistics):  # whose kernels are operators of their own
            settings.setdefault("training", layer.training)
        held = (
            vars(layer)["_parameters"] | vars(layer)["_buffers"] if seen is None else seen.tensors
        )
        self._add(call.name, "norm", type(layer).__name__, before, after, (1, 1), held, settings)

    def activated(self, call: Call, activation: str, after: Tensor) -> None:
        """The activation behind it ran; kept where it is part of the layer."""
        own = getattr(call.module, "fused_act", None) is not None or any(call.module.children())
        for site in reversed(self.sites) if own else ():
            if site.name == call.name:
                site.activated = Sketch.of(after, 1)
                return

    def operator(self, call: OperatorCall) -> None:
        """A linear operator of a module ran, or a batch norm inside one of its norm layers."""
        if call.kind == "norm":
            self.pending = call
        elif call.kind == "linear":
            self.step(call)

    def step(self, call: OperatorCall) -> None:
        """An operator of a program ran."""
        if call.kind == "scale":
            self._scaled = (call.name, call.after, Sketch.of(call.before, 1))
            return
        if call.kind == "shift":
            self._shift(call)
            return
        kind: Literal["norm", "linear"] = "norm" if call.kind == "norm" else "linear"
        name = self._numbered(call.name, kind) if call.name else ""
        axes, operator = (call.axis, call.axis), call.operator.removeprefix("aten::")
        self._add(name, kind, operator, call.before, call.after, axes, call.tensors, call.settings)

    def _shift(self, call: OperatorCall) -> None:
        """A sum per channel; behind a product of the same name it is what a norm became."""
        scaled, self._scaled = self._scaled, None
        if scaled is not None and scaled[0] == call.name and scaled[1] is call.before:
            label = self._numbered(call.name, "other")
            after = Sketch.of(call.after, 1)
            site = Site(label, label, "other", len(self.sites), "mul, add", scaled[2], after)
            self.sites.append(site)

    def enter(self, name: str, module: nn.Module, before: Tensor) -> None:
        """A module that stands in a norm's place begins."""
        self._before.setdefault(name, []).append(Sketch.of(before, 1))

    def leave(self, name: str, after: Tensor) -> None:
        """And ends."""
        if self._before.get(name):
            before = self._before[name].pop()
            label = self._numbered(name, "other")
            site = Site(label, label, "other", len(self.sites), "", before, Sketch.of(after, 1))
            self.sites.append(site)

    def _numbered(self, name: str, kind: str) -> str:
        self._calls[f"{kind} {name}"] += 1
        count = self._calls[f"{kind} {name}"]
        return name if count == 1 else f"{name}#{count}"

    def _add(
        self,
        name: str,
        kind: Literal["norm", "linear"],
        layer: str,
        before: Tensor,
        after: Tensor,
        axes: tuple[int, int],
        held: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        tensors, dtypes = numbers(held)
        label = name or f"{layer} {sum(s.kind == kind for s in self.sites) + 1}"
        self.sites.append(
            Site(
                name=name,
                label=label,
                kind=kind,
                order=len(self.sites),
                layer=layer,
                before=Sketch.of(before, axes[0]),
                after=Sketch.of(after, axes[1]),
                tensors=tensors,
                dtypes=dtypes,
                settings=settings,
            )
        )
