"""Put small batches together where a model in eval() answers every sample alike in any company.

A forward of two samples costs about as much as one of a hundred, so what is run under many
overrides, or judged after every remedy, would cost in the number of batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from normscope import probe
from normscope.errors import NormscopeError
from normscope.probe.batches import Loader
from normscope.probe.compare import NONE, Answer, Comparison, Goal
from normscope.probe.grammar import Batch, tensors
from normscope.probe.run import NormRun

LARGE = 128  # samples of batches that are put together, a QUARTER of all at most
QUARTER = 4  # so that a part of them can be run alone
ROOM = 2**18  # values of their inputs, so that memory does not grow much
WORTH = 4  # times fewer batches, from which it is worth while
ALIKE = 1e-4  # relative difference of outputs: rounding


@dataclass(frozen=True, eq=False)
class Pool:
    """Batches, and the numbers of those that each is made of."""

    batches: Sequence[Batch]
    numbers: Sequence[Sequence[int]]

    def join(self, answers: Sequence[Answer]) -> list[Answer]:
        """Put the answers to the batches as they came together, as the batches were."""
        return [
            answers[group[0]] if len(group) == 1 else joined([answers[i] for i in group])
            for group in self.numbers
        ]


def pooled(
    model: nn.Module,
    loader: Loader,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    goal: Goal,
    *known: Sequence[Answer],
) -> Pool:
    """Join neighbours, where a model in eval() answers them together as it does one by one.

    Not where it draws noise, looks at the whole batch or takes what cannot be joined; and never
    where `forward`, a loss or a metric is given, which are for batches as they came. `known` are
    answers in eval(), made here where there are none, and others that are to be joined too.
    """
    alone = Pool(batches, [[i] for i in range(len(batches))])
    groups = _neighbours(batches)
    if loader.forward is not None or goal.given or WORTH * len(groups) > len(batches):
        return alone
    run = NormRun(layers, measured=set())
    try:
        with probe.preserved(model), run.active():
            own, *others = known or [[run.answer(loader, model, b, goal) for b in batches]]
            whole = [
                loader.together([batches[i] for i in group], torch.arange(samples))
                for group in groups
                for samples in [sum(batches[i].size for i in group)]
            ]
            pool = Pool([batch for batch in whole if batch is not None], groups)
            ran = [run.answer(loader, model, batch, goal) for batch in pool.batches]
        parts = pool.join(own)
        alike = len(ran) == len(groups) and Comparison.of(parts, ran).relative < ALIKE
        forms = [
            [_form(answer) for answer in some] for some in (ran, parts, *map(pool.join, others))
        ]
    except (NormscopeError, RuntimeError):  # such batches cannot be mixed
        return alone
    return pool if alike and all(form == forms[0] for form in forms) else alone


def _form(answer: Answer) -> list[torch.Size]:
    return [getattr(answer, f.name).shape for f in fields(Answer) if f.name != "metric"]


def _neighbours(batches: Sequence[Batch]) -> list[list[int]]:
    """Group the numbers of neighbours, as many as LARGE and ROOM allow."""
    groups: list[list[int]] = []
    most = min(LARGE, sum(batch.size for batch in batches) // QUARTER)
    samples = values = LARGE + ROOM
    for number, batch in enumerate(batches):
        size = sum(tensor.numel() for tensor in tensors((batch.args, batch.kwargs)))
        if samples + batch.size > most or values + size > ROOM:
            groups.append([])
            samples = values = 0
        groups[-1].append(number)
        samples, values = samples + batch.size, values + size
    return groups


def joined(parts: Sequence[Answer]) -> Answer:
    """Join the answers to parts of one batch."""
    rows = ("values", "features", "losses", "right", "choices")
    sums = ("predicted", "truth", "targets")
    tables: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in rows}
    for name in sums:  # empty where no sample of a part has a label
        some = [value for p in parts if len(value := getattr(p, name))]
        tables[name] = torch.stack(some).sum(0) if some else NONE
    return Answer(**tables, metric=sum(p.metric for p in parts) / len(parts))
