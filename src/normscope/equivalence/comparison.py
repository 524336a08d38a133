"""Both forms of a network in one mode: which norms are the same, and why the others are not."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, cached_property

from torch import Tensor

from normscope.equivalence.align import Alignment, Both
from normscope.equivalence.causes import of_dtypes, reasons_of
from normscope.equivalence.forms import Form, Inputs, Mode, ModuleForm
from normscope.equivalence.maps import exact_reason, map_reason
from normscope.equivalence.sites import NAN, STATISTICS, Run, Site, Sketch, gap
from normscope.equivalence.upstream import input_reason, tail_reasons, weights_reason
from normscope.probe.compare import largest, largest_gap
from normscope.records import ModeParity, NormPair, PairStatus, Reason

FLOOR = 4  # rounding errors; a smaller difference needs no explanation
SIDES = ("first", "second")
SAFETY = 16  # the largest of few random roundings, against the largest of all


class Comparison:
    """One run of both forms in one mode, and of one with noise where that is needed.

    Norms are looked for from the side that has more of them: the other may be the folded one.
    That side runs with noise; the other where it has all norms too and this one is compiled.

    Attributes:
        forwards: how often each form was run.
        noisy_side: which one runs with noise, 0 or 1.
        extra: norms of one side with nothing in their place on the other.
    """

    def __init__(
        self,
        forms: tuple[Form, Form],
        inputs: tuple[Inputs, Inputs],
        mode: Mode,
        accepted: frozenset[str],
        rested: int = 0,
    ) -> None:
        """Run both; `rested` is the side to run with noise, where there is a choice."""
        self._mode, self._accepted = mode, accepted
        runs = [form.run(x, mode) for form, x in zip(forms, inputs, strict=True)]
        self.forwards = [1 + (run.watched is not None) for run in runs]
        self._turned = len(runs[1].of("norm")) > len(runs[0].of("norm"))
        order = (1, 0) if self._turned else (0, 1)
        self._a, self._b = (runs[side] for side in order)
        self._batches = inputs[order[0]].sketch(), inputs[order[1]].sketch()
        self._sides = tuple(zip(runs, forms, inputs, strict=True))
        self._both_train = all(form.norms is not None for form in forms)
        self._coarse = max(run.rounding for run in runs)
        self._aligned = Alignment(self._a, self._b)
        self.extra = self._aligned.extra
        self.noisy_side = order[0]
        if self._aligned.complete:
            compiled = [form.kind == "compiled" for form in forms]
            self.noisy_side = rested if compiled[0] == compiled[1] else compiled.index(False)

    @cached_property
    def _noisy(self) -> Run:
        _, form, inputs = self._sides[self.noisy_side]
        self.forwards[self.noisy_side] += 1
        return form.run(inputs, self._mode, noise=True)

    def _allowed(self, moved: float) -> float:
        """Return what rounding explains, where one rounding error in each layer makes `moved`."""
        own = self._sides[self.noisy_side][0].rounding
        return SAFETY * max(moved * self._coarse / max(own, 1e-300), self._coarse)

    def _rounds(self, value: float, site: Site, side: str = "after") -> tuple[bool, float]:
        """Tell whether a difference at a site is rounding, and how much that explains."""
        floor = FLOOR * self._coarse
        if value <= floor:
            return True, floor
        mine = site if self.noisy_side == self._turned else self._aligned.partner(site)
        allowed = SAFETY * floor
        for twin in self._noisy.sites if mine is not None else ():
            if mine is not None and (twin.order, twin.label) == (mine.order, mine.label):
                allowed = self._allowed(gap(getattr(mine, side), getattr(twin, side)))
        return value <= allowed, allowed

    @cache  # noqa: B019  a comparison lives as long as one call of parity
    def result(self) -> ModeParity:
        """Compare the outputs."""
        a, b = self._a, self._b
        worst, allowed = _outputs_gap(a.outputs, b.outputs), FLOOR * self._coarse
        if worst > allowed and len(a.outputs) == len(b.outputs):
            allowed = self._allowed(self._moved)
        shared = a.statistics.keys() & b.statistics.keys()
        gaps = [largest_gap(a.statistics[key], b.statistics[key]) for key in shared]
        return ModeParity(
            mode=self._mode, outputs=worst, allowed=allowed, statistics=max(gaps, default=NAN)
        )

    @property
    def _moved(self) -> float:
        own = self._sides[self.noisy_side][0]
        return _outputs_gap(own.watched or own.outputs, self._noisy.outputs)

    def pairs(self) -> list[NormPair]:
        """Compare every norm, in the order of execution."""
        norms = self._a.of("norm")
        found: list[NormPair] = []
        for norm in norms:
            pair = self._compare(norm, differed=_first(found) is not None)
            if pair.reasons and pair.reasons[0].code == "before" and self._blamed(found, norms):
                pair = self._compare(norm, differed=True)
            found.append(pair)
        if _first(found) is None and not self.result().ok:
            self._blamed(found, norms)
        return [_turned(pair) for pair in found] if self._turned else found

    def _compare(self, norm: Site, *, differed: bool, direct: bool = False) -> NormPair:
        other = self._aligned.partner(norm)
        if other is not None and other.kind == "norm":
            return self._held(norm, other, differed)
        return self._fused(norm, other, differed, direct=direct)

    def _blamed(self, found: list[NormPair], norms: list[Site]) -> bool:
        """Put a difference that comes from no norm down to the last that was taken for fused.

        The layer behind a norm may be that of another branch, which says nothing of the norm.
        """
        for place in reversed(range(len(found))):
            if found[place].status == "fused" and _first(found) is None:
                pair = self._compare(norms[place], differed=False, direct=True)
                if pair.reasons and pair.reasons[0].code != "fused_wrong":
                    found[place] = pair
                    return True
        return False

    def rest(self) -> list[Reason]:
        """Say what else there is where no norm differs and the outputs do."""
        for side, (run, _, _) in enumerate(self._sides):
            own = 0.0 if run.watched is None else _outputs_gap(run.watched, run.outputs)
            if own > FLOOR * self._coarse and own > self._allowed(self._moved):
                whole = Reason(code="compiled_code", detail=SIDES[side], amount=own)
                return [whole, *self._in_code(side)]
        result = self.result()
        if result.ok:
            return []
        if self._quantised:
            which = SIDES[not self._sides[0][0].quantised]
            return [Reason(code="quantised", detail=which, amount=result.outputs)]
        return tail_reasons(self._aligned.linear(), result.outputs)

    def _in_code(self, side: int) -> list[Reason]:
        """Find the first layer whose output is another in compiled code, and why."""
        run, form, inputs = self._sides[side]
        assert isinstance(form, ModuleForm), "only a module is compiled"
        self.forwards[side] += 1
        code = form.in_code(inputs, self._mode, [site.name for site in run.sites])
        allowed = self._allowed(self._moved)
        for site in run.sites:
            if site.name in code:
                output = Sketch.of(code[site.name], site.axis)
                off = min(gap(y, output) for y in (site.after, site.activated) if y is not None)
                if off > allowed:
                    why = map_reason(site, output, allowed) if site.kind == "norm" else None
                    where = Reason(code="compiled_layer", detail=site.label, amount=off)
                    return [where, why] if why else [where]
        return []

    @property
    def _quantised(self) -> bool:
        """Whether one of the two alone computes in quantised arithmetic."""
        return self._a.quantised != self._b.quantised

    def _held(self, a: Site, b: Site, differed: bool) -> NormPair:
        """Compare two norms that hold their numbers."""
        d_in, in_same, _ = self._compared((a, b), "before")
        d_out, out_same, allowed = self._compared((a, b))
        others = [norm for norm in self._a.of("norm") if norm is not a]
        reasons = reasons_of(a, b, others, both_train=self._both_train)
        if self._mode == "train":
            updated = [] if reasons or not (in_same and out_same) else self._updated(a, b, allowed)
            # eval() said what the numbers say
            reasons = [*updated, *(r for r in reasons if r.code == "training")]
        if self._quantised and in_same and not out_same and not reasons:
            reasons = [Reason(code="quantised", amount=d_out)]
        layer = weights_reason(*self._aligned.before(a)) if a.channels == b.channels else None
        if layer is not None:
            reasons = [*reasons, layer] if in_same else [layer, *reasons]
        if not reasons and not in_same and not differed:
            reasons = [input_reason(self._aligned, a, self._batches, d_in)]
        if not reasons and in_same and not out_same:
            computed = Reason(code="computed", amount=d_out)
            if self._mode == "train":
                reasons = [replace(computed, code="batch_statistics")]
            else:
                reasons = [map_reason(a, b.after, allowed) or computed]
        quiet: PairStatus = "same" if in_same and out_same else "carried"
        return self._pair(a, b, quiet, d_in, d_out, allowed, reasons)

    def _updated(self, a: Site, b: Site, allowed: float) -> list[Reason]:
        """Say that a step leaves other running statistics behind."""
        mine, other = self._a.statistics, self._b.statistics
        worst = 0.0
        for key, power in zip(STATISTICS, (0.5, 1.0), strict=True):
            x, y = mine.get(f"{a.name}.{key}"), other.get(f"{b.name}.{key}")
            if x is not None and y is not None:
                size = largest(mine[f"{a.name}.running_var"]) ** power  # means may all be near 0
                worst = max(worst, largest_gap(x, y, max(size, largest(x))))
        same = worst <= max(SAFETY * FLOOR * self._coarse, allowed)
        return [] if same else [Reason(code="statistics_update", amount=worst)]

    def _fused(self, a: Site, inplace: Site | None, differed: bool, *, direct: bool) -> NormPair:
        """Find the map of a norm that the second has no more: it must be in a layer beside it.

        With `direct` it must be in the layer before it, or in a module of its name.
        """
        before, behind = self._aligned.before(a), self._aligned.behind(a)
        gaps = {
            site: min(gap(y, site.after) for y in (a.after, a.activated) if y is not None)
            for site in (inplace, before[1])
            if site is not None
        }
        other = min(gaps, key=lambda site: gaps[site], default=None)
        d_out = NAN if other is None else gaps[other]
        d_in, in_same, _ = self._compared(before, "before")
        same, allowed = self._rounds(math.inf if other is None else d_out, a)
        if same:
            exact = None
            if inplace is not None and inplace.tensors:
                exact = exact_reason(a, None, inplace)
            elif before[0] is not None and before[1] is not None and not self._b.quantised:
                exact = exact_reason(a, before[0], before[1])
            return self._pair(a, other, "fused", d_in, d_out, allowed, [exact] if exact else [])
        d_behind, same, rounding = self._compared(behind)
        if same and d_behind == d_behind and not direct:
            return self._pair(a, behind[1], "fused", d_in, d_behind, rounding, [])
        # where what comes next is given the same, the map is somewhere before it
        later = self._aligned.later(a)
        same = bool(self._b.sites) and self.result().ok
        if later is not None:
            _, same, _ = self._compared(later, "before")
        same &= not direct
        if same or (differed and not in_same):
            return self._pair(a, other, "fused" if same else "carried", d_in, d_out, allowed, [])
        reason: Reason | None = None
        if self._quantised:
            reason = Reason(code="quantised", amount=d_out)
        elif not in_same:
            reason = input_reason(self._aligned, a, self._batches, d_in)
        elif inplace is None and self._compared(before)[1]:
            # nothing was done here: it is in the layer behind, or nowhere
            if behind[1] is None or weights_reason(*behind) is None:
                reason = Reason(code="missing", amount=d_out)
        elif other is not None:
            reason = map_reason(a, other.after, allowed)
        reasons = [reason or Reason(code="fused_wrong", amount=d_out)]
        if other is not None and a.before.dtype != other.after.dtype:
            reasons.insert(0, of_dtypes(a.before.dtype, other.after.dtype))
        return self._pair(a, other, "carried", d_in, d_out, allowed, reasons)

    def _compared(self, pair: Both, side: str = "after") -> tuple[float, bool, float]:
        """Measure a difference, whether it is rounding, and what is; NaN where there is no pair."""
        a, b = pair
        if a is None or b is None:
            return NAN, True, NAN
        value = gap(getattr(a, side), getattr(b, side))
        return value, *self._rounds(value, a, side)

    def _pair(
        self, a: Site, b: Site | None, quiet: PairStatus,
        d_in: float, d_out: float, allowed: float, reasons: Iterable[Reason],
    ) -> NormPair:  # fmt: skip
        """Record a norm; its status is `quiet` where no reason is left."""
        left = tuple(r for r in reasons if r.code not in self._accepted)
        missing = any(r.code == "missing" for r in left)
        return NormPair(
            name=a.label,
            other="" if b is None else b.label,
            layers=(a.layer, "" if b is None else b.layer),
            channels=a.channels,
            status="missing" if missing else "differs" if left else quiet,
            inputs=d_in,
            outputs=d_out,
            allowed=allowed,
            reasons=left,
        )


def _first(pairs: list[NormPair]) -> NormPair | None:
    return next((pair for pair in pairs if pair.status in ("differs", "missing")), None)


def _turned(pair: NormPair) -> NormPair:
    """Return the pair as seen from the other side."""
    reasons = tuple(replace(r, first=r.second, second=r.first) for r in pair.reasons)
    return replace(pair, layers=(pair.layers[1], pair.layers[0]), reasons=reasons)


def _outputs_gap(a: list[Tensor], b: list[Tensor]) -> float:
    if len(a) != len(b):
        return float("inf")
    return max((largest_gap(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
