"""`parity`: two forms of one network on the same inputs, norm by norm."""

from collections.abc import Iterable
from typing import Any

import torch

from normscope.equivalence.comparison import Comparison
from normscope.equivalence.forms import Form, Inputs, Mode, form_of
from normscope.equivalence.passports import compare_to_passport
from normscope.errors import InputError
from normscope.records import Mismatch, NormPair, Parity, Passport, Reason

MODES: tuple[Mode, ...] = ("eval", "train")


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

    How far rounding drives the network is measured, not assumed: where the two are not equal, one
    form runs once more with every linear layer and norm moved by one rounding error up or down.
    Differences of up to 16 times what that makes are rounding. Neither side runs more than three
    times in a mode; compiled code that is wrong runs a fourth time where the other side is folded.
    Both come back as they were.

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
            folded copy is for inference). In eval() a layer that alone was left in train() stays
            so.
        ignore: codes of reasons that may differ, as "momentum" or "dtype".
        passports: of the two checkpoints, to say which side it is that changed; of modules only.
        names: shown in the record.

    Raises:
        InputError: something that cannot be run, inputs without a tensor, an unknown mode.
        ModelError: a side fails on the inputs.
        FileError, MissingExtraError: a file that cannot be read, or not without an extra.
    """
    forms = form_of(a), form_of(b)
    given = Inputs.of(inputs)
    batches = given, given if inputs_b is None else Inputs.of(inputs_b)
    accepted = frozenset(ignore)
    compared: list[Comparison] = []
    for mode in _modes(modes, *forms):
        rested = 1 - compared[-1].noisy_side if compared else 0
        compared.append(Comparison(forms, batches, mode, accepted, rested))
    pairs = [comparison.pairs() for comparison in compared]
    reasons: list[Reason] = []
    for comparison, found in zip(compared, pairs, strict=True):
        if not reasons and all(pair.status in ("same", "fused") for pair in found):
            reasons = [r for r in comparison.rest() if r.code not in accepted]
    return Parity(
        names=names,
        forms=(forms[0].kind, forms[1].kind),
        modes=tuple(comparison.result() for comparison in compared),
        norms=tuple(map(_joined, pairs[0], pairs[-1])),
        extra=compared[0].extra,
        reasons=tuple(reasons[:8]),
        passports=tuple(map(_held_against, (a, b), passports)),
        forwards=(sum(c.forwards[0] for c in compared), sum(c.forwards[1] for c in compared)),
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
    norms = [set(form.norms or ()) for form in (first, second)]
    if modes is None:
        # a folded copy is for eval()
        return [*MODES] if norms[0] and norms[0] == norms[1] else ["eval"]
    chosen = [modes] if isinstance(modes, str) else list(modes)
    known: list[Mode] = [mode for mode in MODES if mode in chosen]
    if len(known) != len(set(chosen)) or not known:
        raise InputError(f"modes is {chosen}; it can be 'eval', 'train', or both")
    if "train" in known and None in (first.norms, second.norms):
        raise InputError("a program or an ONNX graph has no train(); compare it in eval() only")
    return known


def _joined(first: NormPair, second: NormPair) -> NormPair:
    """Take what eval() found, else what train() did."""
    found = first.status in ("differs", "missing")
    return second if second.status == "differs" and not found else first
