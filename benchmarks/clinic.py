"""Sick models made from healthy ones, the doctor's verdict, and repairs beside those of peers.

Prints a Markdown table. Every model is trained on bundled data; held-out samples that judge a
repair and the test samples of the table are two halves of the test part. Peers are
`torch.optim.swa_utils.update_bn` and precise batch norm restated from its description (Wu and
Johnson 2021): momentum 1 in train(), means over batches of E[x] and E[x^2] weighted by their size.

    python benchmarks/clinic.py [--ward first|second] [beginning of a name ...]

The doctor's rules were chosen while looking at the first ward. The second has other networks,
splits, seeds, batch sizes and doses, and chose nothing.
"""

import argparse
import copy
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import first_ward
import second_ward
import torch
from first_ward import Batches, Patient, fragments, in_order, norms
from torch import nn
from torch.optim.swa_utils import update_bn

from normscope import condition
from normscope.doctor import diagnose, repair
from normscope.experiment.data import Data

Ward = dict[str, Callable[[], Patient]]
WARDS: dict[str, Ward] = {"first": first_ward.PATIENTS, "second": second_ward.PATIENTS}


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """On the second half of the test part, eight at a time, as the model is handed over."""
    if model.training:
        model = copy.deepcopy(model).eval()
    right = total = 0
    rows = slice(1, None, 2)
    ids = data.test_domain if data.test_domain is not None else torch.zeros(len(data.test_x)).long()
    table = zip(
        data.test_x[rows].split(8), data.test_y[rows].split(8), ids[rows].split(8), strict=True
    )
    for x, y, domain in table:
        with condition(domain):
            found = copy.deepcopy(model)(x) if any(n.training for n in norms(model)) else model(x)
        right += int((found.argmax(1) == y).sum())
        total += len(y)
    return right / total


@torch.no_grad()
def precise_bn(model: nn.Module, batches: Batches) -> None:
    """Population statistics of layers in train(), by E[x^2] - E[x]^2 weighted by batch size."""
    model.train()
    found = norms(model)
    kept = [n.momentum for n in found]
    sums = [[torch.zeros_like(n.running_mean) for _ in range(2)] for n in found if tracks(n)]
    total = 0
    for norm in found:
        norm.momentum = 1.0
    for x, *_ in batches:
        model(x)
        total += len(x)
        for norm, (mean, square) in zip(filter(tracks, found), sums, strict=True):
            mean += len(x) * norm.running_mean
            square += len(x) * (norm.running_var + norm.running_mean**2)
    for norm, (mean, square) in zip(filter(tracks, found), sums, strict=True):
        norm.running_mean = mean / total
        norm.running_var = square / total - (mean / total) ** 2
    for norm, momentum in zip(found, kept, strict=True):
        norm.momentum = momentum
    model.eval()


def tracks(norm: Any) -> bool:
    return norm.running_mean is not None


def peer(model: nn.Module, batches: Batches, data: Data, how: Callable[..., Any]) -> float:
    """Accuracy after a peer's repair; NaN where it fails."""
    model = copy.deepcopy(model)
    try:
        how(model, batches)
        return accuracy(model.eval(), data)
    except Exception:
        return math.nan


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def main() -> None:
    """Every patient: diagnosed, repaired, measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ward", choices=WARDS, default="first")
    parser.add_argument("names", nargs="*", help="beginnings of names; default all")
    given = parser.parse_args()
    wanted = tuple(given.names)
    keep = fragments()
    print("| patient | first findings | named | top cause | kept | before | after | "
          "update_bn | precise BN | s |")  # fmt: skip
    print("|" + " --- |" * 10)
    named = total = false = lost = behind = beyond = 0
    for name, make in WARDS[given.ward].items():
        if wanted and not name.startswith(wanted):
            continue
        torch.manual_seed(1)
        patient = make()
        data, batches = patient.data, patient.batches or in_order(patient.data, 64)
        before = accuracy(patient.model, data)
        start = perf_counter()
        found = diagnose(patient.model, batches)
        columns = [c for c in (data.test_x, data.test_y, data.test_domain) if c is not None]
        judges = [tuple(part) for part in zip(*(c[::2].split(256) for c in columns), strict=True)]
        sick = copy.deepcopy(patient.model)
        done = repair(patient.model, found, batches, held_out=judges)
        seconds = perf_counter() - start
        after = accuracy(patient.model, data)
        updated = peer(sick, batches, data, lambda m, b: update_bn(b, m))
        precise = peer(sick, batches, data, precise_bn)
        first = found.codes[: 1 + len(patient.codes)]
        right = [any(c in first[:2] for c in codes) for codes in patient.codes]
        grave = any(f.severity == "error" for f in found.findings)
        if patient.codes:
            named, total = named + sum(right), total + len(right)
            verdict = "yes" if all(right) else "NO"
        else:
            false += grave
            verdict = "FALSE ALARM" if grave else "healthy"
        lost += after < before
        best = max((p for p in (updated, precise) if not math.isnan(p)), default=0.0)
        behind += best > after
        beyond += round((best - after) * len(data.test_x[1::2])) > 1
        cause = f"{found.causes[0].name} {found.causes[0].closes:.0%}" if found.causes else "-"
        kept = ", ".join(done.record.kept) or "-"
        figures = map(percent, (before, after, updated, precise))
        cells = (name, ", ".join(found.codes[:3]), verdict, cause, kept, *figures, f"{seconds:.1f}")
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nNamed first or second: {named} of {total} illnesses.")
    print(f"Errors on healthy models: {false}. Accuracy lost after a repair: {lost}.")
    print(f"A peer ahead: {behind}, by more than one sample: {beyond}.")
    del keep


if __name__ == "__main__":
    main()
