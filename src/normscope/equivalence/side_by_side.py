"""`parity`: two forms of one network on the same inputs, norm by norm."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from normscope.equivalence.align import Aligned, aligned, linear_pairs
from normscope.equivalence.effective import affine_reason, weights_of_fold
from normscope.equivalence.forms import Form, Inputs, Mode, form_of
from normscope.equivalence.numbers import own_reasons
from normscope.equivalence.passports import compare_to_passport
from normscope.equivalence.sites import Run, Site, gap, largest_gap
from normscope.equivalence.upstream import input_reason, tail_reasons, weights_reason
from normscope.errors import InputError
from normscope.records import Mismatch, ModeParity, NormPair, Parity, Passport, Reason

FLOOR = 4  # rounding errors; a smaller difference needs no explanation
SAFETY = 16  # the largest of few random roundings, against the largest of all
MODES: tuple[Mode, ...] = ("eval", "train")
NAN = float("nan")


def parity(
    a: Any,
    b: Any,
    inputs: Any,
    *,
    inputs_b: Any = None,
    modes: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    passports: tuple[Passport | None, Passport | None] = (None, None),
    names: tuple[str, str] = ("A", "B"),
) -> Parity:
    """Compare two forms of one network on the same inputs: outputs, then norm by norm, and why.

    Each side is a module (compiled, folded, converted, averaged, of another checkpoint), an
    exported program, TorchScript, an ONNX graph, or the path of one of the last three. Linear
    layers and norms are watched at the operators that run, so that a norm is seen in a program as
    well as in a module. Norms belong together by name, else by their place in the graph.

    How far rounding drives the network is measured, not assumed: the first form runs once more
    with every linear layer and norm moved by one rounding error up or down. Differences of up to
    16 times what that makes are rounding. Both sides come back as they were.

    >>> import torch, normscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    >>> normscope.parity(model, normscope.fold(model).model, torch.randn(8, 3)).ok
    True

    Args:
        a: the one that is right.
        b: the other.
        inputs: a batch as both take it: a tensor, a tuple of arguments, or a mapping of named
            ones; floating point numbers are cast to the dtype of each side.
        inputs_b: another batch for the second side, where it takes the data in another form.
        modes: "eval", "train"; None: eval, and train where both are modules with the same norms (a
            folded copy is for inference). In eval() a layer
            that alone was left in train() stays so.
        ignore: codes of reasons that may differ, as "momentum" or "dtype".
        passports: of the two checkpoints, to say which side it is that changed; of modules only.
        names: shown in the record.

    Raises:
        InputError: something that cannot be run, inputs without a tensor, an unknown mode.
        ModelError: a side fails on the inputs.
        FileError, MissingExtraError: a file that cannot be read, or not without an extra.
    """
    first, second = form_of(a), form_of(b)
    given = Inputs.of(inputs)
    other = given if inputs_b is None else Inputs.of(inputs_b)
    accepted = frozenset(ignore)
    pairs: list[NormPair] = []
    results: list[ModeParity] = []
    reasons: list[Reason] = []
    extra: tuple[str, ...] = ()
    count = [0, 0]
    for mode in _modes(modes, first, second):
        compared = _Comparison(first, second, given, other, mode, accepted)
        found, result = compared.pairs(), compared.result()
        if not pairs:
            pairs, extra = found, compared.extra
        else:
            pairs = [_joined(*both) for both in zip(pairs, found, strict=False)]
        results.append(result)
        if not reasons and all(pair.status in ("same", "fused") for pair in pairs):
            reasons = [r for r in compared.rest() if r.code not in accepted]
        count = [n + m for n, m in zip(count, compared.forwards, strict=True)]
    return Parity(
        names=names,
        forms=(first.kind, second.kind),
        modes=tuple(results),
        norms=tuple(pairs),
        extra=extra,
        reasons=tuple(reasons[:8]),
        passports=tuple(map(_held_against, (a, b), passports)),
        forwards=(count[0], count[1]),
    )


def _held_against(subject: Any, own: Passport | None) -> tuple[Mismatch, ...] | None:
    if own is None or not isinstance(subject, torch.nn.Module):
        return None
    return tuple(compare_to_passport(subject, own))


def assert_parity(a: Any, b: Any, inputs: Any, **options: Any) -> Parity:
    """Compare as `parity` does, and raise where the two are not the same network.

    >>> import copy, torch, normscope
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    >>> other = copy.deepcopy(model)
    >>> other[1].eps = 1e-3
    >>> normscope.assert_parity(model, other, torch.randn(8, 3))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: norm '1' differs: eps 1e-05 -> 0.001...

    Raises:
        AssertionError: with the first norm that differs, and why.
    """
    found = parity(a, b, inputs, **options)
    if not found.ok:
        raise AssertionError(summary(found))
    return found


def summary(found: Parity) -> str:
    """Say in one line what differs first."""
    first = found.first
    if first is not None:
        why = ", ".join(_phrase(reason) for reason in first.reasons) or "for no known reason"
        return f"norm {first.name!r} differs: {why}"
    if found.extra:
        return f"norms that only one side has: {', '.join(found.extra[:5])}"
    if found.reasons:
        return "all norms are the same; " + ", ".join(_phrase(r) for r in found.reasons)
    worst = max(found.modes, key=lambda mode: mode.outputs)
    if worst.ok:
        return "the two are the same network"
    return f"all norms are the same, the outputs differ by {worst.outputs:.2g} in {worst.mode}()"


def _phrase(reason: Reason) -> str:
    values = f" {reason.first} -> {reason.second}" if reason.first or reason.second else ""
    return f"{reason.code}{values}{f' ({reason.detail})' if reason.detail else ''}"


def _modes(modes: Iterable[str] | None, first: Form, second: Form) -> list[Mode]:
    if modes is None:
        both = first.trains and second.trains and bool(first.normalising)
        both &= set(first.normalising) == set(second.normalising)  # a folded copy is for eval()
        return ["eval", "train"] if both else ["eval"]
    chosen = [modes] if isinstance(modes, str) else list(modes)
    known: list[Mode] = [mode for mode in MODES if mode in chosen]
    if len(known) != len(set(chosen)) or not known:
        raise InputError(f"modes is {chosen}; it can be 'eval', 'train', or both")
    if "train" in known and not (first.trains and second.trains):
        raise InputError("a program or an ONNX graph has no train(); compare it in eval() only")
    return known


def _joined(eval_pair: NormPair, train_pair: NormPair) -> NormPair:
    """What eval() found, else what train() did."""
    if eval_pair.status in ("differs", "missing") or train_pair.status in ("same", "carried"):
        return eval_pair
    return train_pair if train_pair.status == "differs" else eval_pair


class _Comparison:
    """Both forms in one mode."""

    def __init__(
        self,
        first: Form,
        second: Form,
        given: Inputs,
        other: Inputs,
        mode: Mode,
        accepted: frozenset[str],
    ) -> None:
        self._mode, self._accepted = mode, accepted
        # what one side calls a norm is watched under the same name on the other
        mine = [n for n in second.normalising if n not in first.normalising and n in first.modules]
        theirs = [
            n for n in first.normalising if n not in second.normalising and n in second.modules
        ]
        runs = [first.run(given, mode, mine), second.run(other, mode, theirs)]
        self.forwards = [1 + (run.watched is not None) for run in runs]
        sketches = (given.sketch(), other.sketch())
        sides = [(first, runs[0], given, mine), (second, runs[1], other, theirs)]
        # norms are looked for from the side that has more of them: the other may be the folded one
        self.turned = len(runs[1].of("norm")) > len(runs[0].of("norm"))
        if self.turned:
            sides.reverse()
            sketches = (sketches[1], sketches[0])
        self._batches = sketches
        (form, self.a, self._given, self._also), (other_form, self.b, *_) = sides
        self._forms = (form, other_form)
        self._aligned, extra = aligned(self.a, self.b)
        self.extra = tuple(site.label for site in extra)
        self._coarse = max(_eps(self.a), _eps(self.b))
        self._noise: Run | None = None
        self._found: list[NormPair] | None = None

    def allowed(self, site: Site, side: str = "after") -> float:
        """What rounding explains in a site's input or output."""
        noisy = self._noisy()
        twin = next((s for s in noisy.sites if s.order == site.order), None)
        if twin is None or twin.label != site.label:
            return SAFETY * FLOOR * self._coarse
        moved = gap(getattr(site, side), getattr(twin, side))
        return SAFETY * max(moved * self._coarser(), self._coarse)

    def _noisy(self) -> Run:
        if self._noise is None:
            self._noise = self._forms[0].run(self._given, self._mode, self._also, noise=True)
            self.forwards[int(self.turned)] += 1
        return self._noise

    def _coarser(self) -> float:
        return self._coarse / max(_eps(self.a), 1e-300)

    def _rounds(self, value: float, site: Site, side: str = "after") -> tuple[bool, float]:
        """Whether a difference is rounding, and how much that explains."""
        floor = FLOOR * self._coarse
        if value <= floor:
            return True, floor
        allowed = self.allowed(site, side)
        return value <= allowed, allowed

    def result(self) -> ModeParity:
        """The outputs."""
        a, b = self.a.outputs, self.b.outputs
        worst = _outputs_gap(a, b)
        allowed = FLOOR * self._coarse
        if worst > allowed and len(a) == len(b):
            noisy = self._noisy().outputs
            reference = a if self.a.watched is None else self.a.watched
            moved = _outputs_gap(reference, noisy)
            allowed = SAFETY * max(moved * self._coarser(), self._coarse)
        statistics = NAN
        shared = self.a.statistics.keys() & self.b.statistics.keys()
        if shared:
            statistics = max(
                largest_gap(self.a.statistics[k], self.b.statistics[k]) for k in shared
            )
        return ModeParity(mode=self._mode, outputs=worst, allowed=allowed, statistics=statistics)

    def pairs(self) -> list[NormPair]:
        """Every norm, in the order of execution."""
        if self._found is None:
            self._found = []
            differed = False
            for pair in self._aligned:
                found = self._pair(pair, differed)
                differed |= found.status in ("differs", "missing")
                self._found.append(_turned(found) if self.turned else found)
        return self._found

    def rest(self) -> list[Reason]:
        """Where no norm differs and the outputs do: what else there is."""
        reasons = []
        for run in (self.a, self.b):
            if run.watched is None:
                continue
            own = _outputs_gap(run.watched, run.outputs)
            moved = _outputs_gap(self.a.watched or self.a.outputs, self._noisy().outputs)
            if own > FLOOR * self._coarse and own > SAFETY * max(moved, self._coarse):
                which = self._side(run)
                reasons.append(Reason(code="compiled_code", detail=which, amount=own))
        result = self.result()
        if reasons or result.ok:
            return reasons
        if self.b.quantised != self.a.quantised:
            quantised = self.b if self.b.quantised else self.a
            which = self._side(quantised)
            return [Reason(code="quantised", detail=which, amount=result.outputs)]
        return tail_reasons(self.a, self.b, result.outputs)

    def _side(self, run: Run) -> str:
        return "first" if (run is self.a) != self.turned else "second"

    def _pair(self, pair: Aligned, differed: bool) -> NormPair:
        if pair.second is None or pair.second.kind != "norm":
            return self._fused(pair, differed)
        a, b = pair.first, pair.second
        d_in, d_out = gap(a.before, b.before), gap(a.after, b.after)
        in_same, _ = self._rounds(d_in, a, "before")
        out_same, allowed = self._rounds(d_out, a)
        both_train = all(form.trains for form in self._forms)
        others = [p.first for p in self._aligned if p.first is not a]
        reasons = own_reasons(a, b, others, momentum=both_train)
        if reasons and self._mode == "train":  # eval() said what the numbers say
            reasons = [r for r in reasons if r.code == "training"]
        if self.b.quantised != self.a.quantised and not out_same and in_same and not reasons:
            reasons = [Reason(code="quantised", amount=d_out)]
        layer = weights_reason(*pair.before) if a.channels == b.channels else None
        if layer is not None:
            reasons = [layer, *reasons] if not in_same else [*reasons, layer]
        if not reasons and not in_same and not differed:
            reasons = [input_reason(self.a, self.b, pair, self._batches, d_in)]
        if not reasons and in_same and not out_same:
            if self._mode == "train":
                reasons = [Reason(code="batch_statistics", amount=d_out)]
            else:
                found = affine_reason(a, b.after, allowed)
                reasons = [found or Reason(code="computed", amount=d_out)]
        reasons = [r for r in reasons if r.code not in self._accepted]
        status = "differs" if reasons else "carried" if not (in_same and out_same) else "same"
        return self._record(pair, b, status, d_in, d_out, allowed, reasons)

    def _fused(self, pair: Aligned, differed: bool) -> NormPair:
        """A norm that the second has no more: its map must be in a layer beside it."""
        a = pair.first
        seen = [s for s in (pair.second, pair.before[1]) if s is not None]
        gaps = {id(s): min(gap(x, s.after) for x in (a.after, a.activated) if x) for s in seen}
        closest = min(seen, key=lambda s: gaps[id(s)], default=None)
        d_out = gaps[id(closest)] if closest is not None else NAN
        behind_a, behind_b = pair.behind
        d_in = _between(*pair.before, side="before")
        if closest is not None:
            same, allowed = self._rounds(d_out, a)
            if same:
                exact = None if self.b.quantised else weights_of_fold(a, *pair.before)
                reasons = [r for r in (exact,) if r and r.code not in self._accepted]
                status = "differs" if reasons else "fused"
                return self._record(pair, closest, status, d_in, d_out, allowed, reasons)
        if behind_a is not None and behind_b is not None:
            d_behind = gap(behind_a.after, behind_b.after)
            same, allowed = self._rounds(d_behind, behind_a)
            if same:
                return self._record(pair, behind_b, "fused", d_in, d_behind, allowed, [])
        allowed = self.allowed(a)
        if self._same_later(a):
            return self._record(pair, closest, "fused", d_in, d_out, allowed, [])
        ahead = pair.before[0]
        in_same = ahead is None or d_in != d_in or self._rounds(d_in, ahead, "before")[0]
        if differed and not in_same:
            return self._record(pair, closest, "carried", d_in, d_out, allowed, [])
        reasons = []
        if self.b.quantised != self.a.quantised:
            reasons = [Reason(code="quantised", amount=d_out)]
        elif not in_same:
            reasons = [input_reason(self.a, self.b, pair, self._batches, d_in)]
        elif closest is None or self._rounds(gap(a.before, closest.after), a, "before")[0]:
            # nothing was done here: it is in the layer behind, or nowhere
            untouched = behind_b is None or weights_reason(*pair.behind) is None
            reasons = [Reason(code="missing" if untouched else "fused_wrong", amount=d_out)]
        else:
            found = affine_reason(a, closest.after, allowed)
            reasons = [found or Reason(code="fused_wrong", amount=d_out)]
        if a.before.dtype != (closest or a).after.dtype:
            kinds = [str(s.dtype).removeprefix("torch.") for s in (a.before, (closest or a).after)]
            reasons = [Reason(code="dtype", first=kinds[0], second=kinds[1]), *reasons]
        reasons = [r for r in reasons if r.code not in self._accepted]
        missing = any(r.code == "missing" for r in reasons)
        status = "missing" if missing else "differs" if reasons else "carried"
        return self._record(pair, closest, status, d_in, d_out, allowed, reasons)

    def _same_later(self, a: Site) -> bool:
        """Whether what comes next in both is given the same: the map is somewhere before it."""
        lines = [(x, y) for x, y in linear_pairs(self.a, self.b) if y is not None]
        norms = [(p.first, p.second) for p in self._aligned if p.second and p.second.kind == "norm"]
        behind = [(x, y) for x, y in (*lines, *norms) if x.order > a.order]
        if not behind:
            return len(self.b.sites) > 0 and self.result().ok
        mine, other = min(behind, key=lambda both: both[0].order)
        return self._rounds(gap(mine.before, other.before), mine, "before")[0]

    def _record(
        self,
        pair: Aligned,
        other: Site | None,
        status: Any,
        d_in: float,
        d_out: float,
        allowed: float,
        reasons: list[Reason],
    ) -> NormPair:
        return NormPair(
            name=pair.first.label,
            other="" if other is None else other.label,
            layers=(pair.first.layer, "" if other is None else other.layer),
            channels=pair.first.channels,
            status=status,
            inputs=d_in,
            outputs=d_out,
            allowed=allowed,
            reasons=tuple(reasons),
        )


def _turned(pair: NormPair) -> NormPair:
    """The pair as seen from the other side."""
    reasons = tuple(replace(r, first=r.second, second=r.first) for r in pair.reasons)
    return replace(pair, layers=(pair.layers[1], pair.layers[0]), reasons=reasons)


def _between(a: Site | None, b: Site | None, side: str) -> float:
    return NAN if a is None or b is None else gap(getattr(a, side), getattr(b, side))


def _outputs_gap(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    if len(a) != len(b):
        return float("inf")
    return max((largest_gap(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _eps(run: Run) -> float:
    """Of the coarsest dtype that a run computed in."""
    kinds = {s.after.dtype for s in run.sites} | {y.dtype for y in run.outputs}
    return max(torch.finfo(kind).eps for kind in kinds if kind.is_floating_point)
