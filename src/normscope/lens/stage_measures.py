"""Measures of every stage that a record holds by name.

A new one is a function here and its message `page.measure.NAME` in both languages. The record has
it in `StageMeasures.more`; frame, tables, page, terminal and notebook follow.
"""

import math
from collections.abc import Callable

from normscope.lens.measures import Directions, ImageScatter

Measure = Callable[[ImageScatter, Directions], float]  # NaN where it cannot be said
MEASURES: dict[str, Measure] = {}  # by name, filled by `register`


def register(measure: Measure) -> Measure:
    """Add a measure to MEASURES, under the name of the function."""
    MEASURES[measure.__name__] = measure
    return measure


@register
def effective_rank(scatter: ImageScatter, directions: Directions) -> float:
    """Return how many directions the channels use alike: exp of the entropy of their eigenvalues.

    1 where all channels say the same, as many as there are channels where they are uncorrelated;
    of channels scaled to variance 1, so that no affine map per channel changes it.

    Source: Roy & Vetterli 2007, "The effective rank".
    """
    values = directions.values.clamp(min=0)
    if not len(values):
        return math.nan
    share = values / values.sum()
    return float((-share.xlogy(share).sum()).exp())
