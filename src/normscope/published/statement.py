"""A statement: a source, an experiment for one seed, and a rule fixed beforehand."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from normscope.published.digits import Digits
from normscope.records import Curve, Measured, StatementVerdict

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """The result of one seed.

    Attributes:
        numbers: by name.
        curves: by name, pairs of x and y.
    """

    numbers: Mapping[str, float]
    curves: Mapping[str, Points] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The results of all seeds, which a rule judges."""

    outcomes: tuple[Outcome, ...]

    def mean(self, name: str) -> float:
        """Return the mean of a number."""
        return fmean(o.numbers[name] for o in self.outcomes)

    def spread(self, name: str) -> float:
        """Return its standard deviation over seeds; 0 for one seed."""
        return _deviation([o.numbers[name] for o in self.outcomes])

    def sure(self, name: str) -> float:
        """Divide a number by its standard error over seeds: above 2 it is no chance."""
        error = self.spread(name) / math.sqrt(len(self.outcomes))
        mean = self.mean(name)
        return math.copysign(math.inf, mean) if error == 0 and mean else mean / max(error, 1e-300)

    def measured(self, percent: Sequence[str]) -> tuple[Measured, ...]:
        """List every number."""
        return tuple(
            Measured(name=n, mean=self.mean(n), spread=self.spread(n), percent=n in percent)
            for n in self.outcomes[0].numbers
        )

    def curves(self, scatter: Sequence[str]) -> tuple[Curve, ...]:
        """Average every curve over seeds; of a scatter keep the points of all seeds."""
        return tuple(self._curve(name, name in scatter) for name in self.outcomes[0].curves)

    def _curve(self, name: str, scatter: bool) -> Curve:
        runs = [o.curves[name] for o in self.outcomes]
        if scatter:
            flat = [point for run in runs for point in run]
            x, y = (tuple(p[i] for p in flat) for i in (0, 1))
            return Curve(name=name, x=x, mean=y, spread=(0.0,) * len(x), points=True)
        x = tuple(point[0] for point in runs[0])
        columns = [[run[i][1] for run in runs] for i in range(len(x))]
        mean, spread = tuple(map(fmean, columns)), tuple(map(_deviation, columns))
        return Curve(name=name, x=x, mean=mean, spread=spread)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Statement:
    """A published sentence and its test. The sentence and the rule are messages, by the name.

    Attributes:
        name: of the command line.
        source: authors, year and title.
        link: arXiv.
        seeds: how often it is run.
        run: the experiment with one seed.
        judge: the rule.
        percent: numbers that are shares.
        scatter: curves that are points.
        log_x, log_y: axes.
    """

    name: str
    source: str
    link: str
    seeds: int
    run: Callable[[Digits, int], Outcome]
    judge: Callable[[Summary], StatementVerdict]
    percent: tuple[str, ...] = ()
    scatter: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False


def graded(agrees: bool, direction: bool) -> StatementVerdict:
    """Return the verdict of a rule with two steps."""
    return "agrees" if agrees else "direction" if direction else "no"
