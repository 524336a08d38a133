"""What every remedy is given, and what it may answer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from normscope.doctor.loader import Loader, Part
from normscope.doctor.state import LayerState, of_model
from normscope.records import Score


class Unfit(Exception):
    """A remedy cannot be carried out here; its argument says why, as a sentence."""


@dataclass(frozen=True, eq=False)
class Patient:
    """A model under repair.

    Attributes:
        model: changed by remedies, in place.
        loader: data as in training; None where none were given.
        score: how well the model does now, on what is not held out; None without data.
        live: data as in use; None where none were given.
        part: of the data that remedies may read: all, or what is not held out.
    """

    model: nn.Module
    loader: Loader | None
    score: Callable[[], Score] | None
    part: Part
    live: Loader | None = None

    def states(self, names: tuple[str, ...]) -> list[LayerState]:
        """The layers of these names; all where there is none."""
        found = of_model(self.model)
        return [s for s in found if s.name in names] or found

    def data(self) -> Loader:
        """The data, or the reason why there is no remedy."""
        if self.loader is None:
            raise Unfit("it needs data")
        return self.loader


Remedy = Callable[[Patient, tuple[str, ...]], tuple[str, ...]]  # names of layers it changed
