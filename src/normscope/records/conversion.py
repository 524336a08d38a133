"""A conversion: the new layers of a model, and the comparison that verifies them."""

from dataclasses import dataclass
from typing import Any, Literal

from normscope.records.base import Record

# what a norm layer can be converted to
NormKind = Literal[
    "torch", "sync", "batch", "ghost", "renorm", "evalnorm", "frozen",
    "conditional", "mode", "group",
]  # fmt: skip


@dataclass(frozen=True)
class Change:
    """A layer that became another."""

    name: str  # as in model.named_modules(); the class name where the model is the layer
    before: str  # class names
    after: str
    # where it computes what it did: in training too, in eval() only as was asked for, or nowhere
    equal: Literal["always", "eval", "never"]
    note: str = ""  # what to know, as a phrase


@dataclass(frozen=True)
class Fusion:
    """An activation that a norm layer does now."""

    name: str  # the norm layer's
    act: str
    place: str  # where it was, as a phrase
    residual: bool = False  # the sum before it is the norm layer's too


@dataclass(frozen=True)
class Left:
    """A normalisation layer that stayed as it was."""

    name: str
    layer: str  # class name
    reason: str  # as a phrase


@dataclass(frozen=True)
class Comparison:
    """One thing that was compared before and after a conversion."""

    what: str  # "outputs", "gradients", ...
    mode: Literal["eval", "train"]
    difference: float  # largest absolute difference over the largest value of before
    # what rounding explains: a hundred times what the model before makes of an input moved by one
    # unit in the last place; None where the two may differ
    allowed: float | None

    @property
    def ok(self) -> bool:
        """Whether the two are equal, or need not be."""
        return self.allowed is None or self.difference <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Converted(Record, kind="conversion"):
    """The result of converting a model, and the comparison that verifies it."""

    model: str
    to: str
    changed: tuple[Change, ...]
    kept: tuple[Left, ...]
    refused: tuple[Left, ...]
    fused: tuple[Fusion, ...] = ()
    unfused: tuple[Left, ...] = ()  # norm layers that do no activation, where that was asked for
    comparisons: tuple[Comparison, ...] = ()  # empty where it was not verified

    @property
    def ok(self) -> bool:
        """Whether all that must be equal is equal."""
        return all(comparison.ok for comparison in self.comparisons)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per normalisation layer: what it became, or why it stayed."""
        left = {"kept": self.kept, "refused": self.refused}
        return [
            {"layer": c.name, "outcome": "changed", "before": c.before, "after": c.after}
            | {"equal": c.equal, "note": c.note}
            for c in self.changed
        ] + [
            {"layer": c.name, "outcome": outcome, "before": c.layer, "after": c.layer}
            | {"equal": "always", "note": c.reason}
            for outcome, group in left.items()
            for c in group
        ]
