"""Numbers as a reader sees them."""

import math
from collections.abc import Callable, Sequence
from statistics import stdev

from normscope.report.bilingual import Words, tr

POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, zero: float = 0.0, digits: int = 4) -> str:
    """Write a number in a few significant digits; what is smaller than `zero` is rounding."""
    if abs(value) <= zero:
        return "0"
    text = f"{value:.{digits}g}"
    # 1e+04 reads worse than 10000
    return f"{value:.0f}" if "e+0" in text and abs(value) < 1e7 else text


def three(value: float) -> str:
    """Write a number in three significant digits."""
    return number(value, digits=3)


def or_dash(value: float, show: Callable[[float], Words]) -> Words:
    """Write a number in some way; "-" where it is not known."""
    return "-" if math.isnan(value) else show(value)


def percent(share: float) -> str:
    """Write a share in per cent with at most one decimal; 100% only where it is all."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        return ">99.9%"
    return text.replace("-0.0", "0.0").removesuffix(".0") + "%"


def figure(value: float | None, digits: int = 4) -> Words:
    """Write a number; "-" where none was measured, in words where it is not finite."""
    if value is None:
        return "-"
    return number(value, digits=digits) if math.isfinite(value) else tr("page.not_finite")


def share(value: float | None) -> Words:
    """Write a share in per cent with one decimal; "-" and not finite as in `figure`."""
    if value is None or not math.isfinite(value):
        return figure(value)
    text = f"{100 * value:.1f}%"
    return percent(value) if text in ("0.0%", "100.0%") else text


def magnitude(value: float) -> Words:
    """Write a number of which the power of ten matters: 7.7 × 10⁶."""
    if not 1e4 <= value < math.inf:
        return figure(value, digits=3)
    digits, power = f"{value:.1e}".split("e+")
    return f"{digits} × 10{str(int(power)).translate(POWERS)}"


def power(value: float) -> str:
    """Write a difference of which the power of ten matters: 7.7e-06, 0 where there is none."""
    if value == 0 or not math.isfinite(value):
        return "-" if math.isnan(value) else f"{value:.0f}"
    return f"{value:.1e}"


def order(value: float) -> str:
    """Write a number of which only the power of ten matters, without a space: 2×10⁻⁸."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digit, power = f"{value:.0e}".split("e")
    return f"{digit}×10{str(int(power)).translate(POWERS)}"


def signed(value: float, digits: int = 3) -> str:
    """Write a change with its sign; "-" where it is not known."""
    if math.isnan(value):
        return "-"
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0
