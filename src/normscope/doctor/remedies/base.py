"""What every remedy is given, and what it may answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from normscope.doctor.evidence import KEPT
from normscope.doctor.held_out import HeldOut
from normscope.doctor.recalibrate import Propagate, chosen, measured
from normscope.doctor.state import LayerState, of_model
from normscope.probe.batches import Loader, Part
from normscope.probe.grammar import Batch
from normscope.probe.stream import MomentStream

Streams = Mapping[str, list[MomentStream]]


class Unfit(Exception):
    """A remedy cannot be carried out here; its argument says why, as a sentence."""


@dataclass(eq=False)
class RepairContext:
    """A model under repair.

    Attributes:
        model: changed by remedies, in place.
        loader: data as in training; None where none were given.
        judge: the held-out batches; remedies may not read them.
        live: data as in use; None where none were given.
        reference: the model that this one is an average or a copy of.
    """

    model: nn.Module
    loader: Loader | None
    judge: HeldOut
    live: Loader | None = None
    reference: nn.Module | None = None
    _measured: dict[tuple[str, bool], Streams] = field(default_factory=dict)

    @property
    def part(self) -> Part:
        """Of the data that remedies may read: all, or what is not held out."""
        return self.judge.part

    def states(self, names: tuple[str, ...]) -> list[LayerState]:
        """Return the layers of these names; all where there is none."""
        found = of_model(self.model)
        return [s for s in found if s.name in names] or found

    def data(self) -> Loader:
        """Return the data, or the reason why there is no remedy."""
        if self.loader is None:
            raise Unfit("it needs data")
        return self.loader

    def chooser(self) -> HeldOut:
        """Judge on a part of what remedies may read, to choose a setting."""
        batches: list[Batch] = []
        for batch in self.data().read(self.part):
            batches.append(batch)
            if sum(b.size for b in batches) >= KEPT:
                break
        return HeldOut.of(self.model, None, self.data().of(batches), self.judge.goal)

    def measured(self, propagate: Propagate = "batch", *, dropout: bool = False) -> Streams:
        """Measure the inputs of all layers over what may be read, once for all remedies."""
        key = (propagate, dropout)
        if key not in self._measured:
            layers, _ = chosen(self.model, ())
            self._measured[key], _ = measured(
                self.model, self.data(), layers, propagate, self.part, dropout=dropout
            )
        return self._measured[key]

    def forget(self) -> None:
        """Measure anew: the model was changed."""
        self._measured.clear()


Remedy = Callable[[RepairContext, tuple[str, ...]], tuple[str, ...]]  # names of layers it changed
