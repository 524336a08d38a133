"""Measures of every stage that a record holds by name.

A new one is a function here and two messages: `page.measure.NAME`, its name, and
`page.measure.NAME.how`, which says in a sentence what it is. The record has it in
`StageMeasures.more`; frame, tables, page and notebook follow.
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
def participation(scatter: ImageScatter, directions: Directions) -> float:
    """Return the participation ratio tr(S_T)^2 / tr(S_T^2): how many directions share the spread.

    1 where all of it lies along one line, as many as there are channels where all directions
    have the same; NaN where nothing varies.

    Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    square = float(
        (scatter.total**2).sum()
    )  # of a symmetric matrix: the sum of squared eigenvalues
    return float(scatter.total.trace()) ** 2 / square if square > 0 else math.nan
