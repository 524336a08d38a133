"""Judge a model on held-out batches, before and after a repair."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from normscope import probe
from normscope.doctor.evidence import norms_by_name
from normscope.doctor.pooled import Pool, joined, pooled
from normscope.probe.batches import Loader, Part
from normscope.probe.compare import SURE, Answer, Comparison, Goal, advantage
from normscope.probe.grammar import Batch
from normscope.probe.run import NormRun
from normscope.records import Score

SAMPLES = 2048  # that judge, at most; they stay in memory
ALONE = 4  # samples at a time, where a layer normalises by the batch although in eval()
NOTHING = Score(accuracy=math.nan, loss=math.nan, gap=math.nan, samples=0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a model does on the held-out batches, in eval().

    Attributes:
        score: of all together.
        compared: with train(), as the model was before any repair; None without data.
        answers: batch by batch.
    """

    score: Score = NOTHING
    compared: Comparison | None = None
    answers: Sequence[Answer] = ()


@dataclass
class HeldOut:
    """The batches that judge, and what train() made of them before any repair.

    Attributes:
        loader: what repairs may read, in its `part`; None without data.
        part: "first" where held-out batches come from the same loader.
        batches: those that judge.
    """

    goal: Goal
    loader: Loader | None = None
    part: Part = "all"
    batches: Sequence[Batch] = ()
    reference: list[Answer] = field(default_factory=list)
    _pool: Pool = field(default_factory=lambda: Pool((), ()))
    _reader: Loader | None = None

    @classmethod
    def of(
        cls, model: nn.Module, loader: Loader | None, apart: Loader | None, goal: Goal
    ) -> "HeldOut":
        """Read the judging batches, given or held out by `loader`; run train() on them once.

        Raises:
            InputError, ModelError: as `Loader`.
        """
        judges = loader if apart is None else apart
        if judges is None:
            return cls(goal)
        part: Part = "held_out" if apart is None else "all"
        batches: list[Batch] = []
        for batch in judges.read(part):
            batches.append(batch)
            if sum(b.size for b in batches) >= SAMPLES:
                break
        made = cls(goal, loader, "first" if apart is None else "all", batches)
        made._reader = judges
        layers = norms_by_name(model)
        run = NormRun(layers, by_batch=set(layers), measured=set())
        with probe.preserved(model), run.active():
            for batch in batches:
                made.reference.append(run.answer(judges, model, batch, goal))
        made._pool = pooled(model, judges, layers, batches, goal)
        return made

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Run the model in eval(); layers that were left in train() stay so, in small batches."""
        if self._reader is None:
            return Evaluation()
        layers = norms_by_name(model)
        left = [m for m in layers.values() if m.training and not model.training]
        run = NormRun(layers, measured=set())
        batches = self.batches if left else self._pool.batches
        with probe.preserved(model), run.active():
            for layer in left:
                layer.training = True
            answers = [self._answer(model, run, b, ALONE if left else b.size) for b in batches]
        answers = self._pool.join(answers) if left else answers
        compared = Comparison.of(self._pool.join(self.reference), answers, given=self.goal.given)
        counts = compared.known
        score = Score(
            accuracy=compared.accuracies[1],
            loss=compared.other.loss if counts else math.nan,
            gap=compared.relative,
            samples=sum(batch.size for batch in self.batches),
            metric=compared.other.metric,
        )
        return Evaluation(score, compared, answers)

    def _answer(self, model: nn.Module, run: NormRun, batch: Batch, size: int) -> Answer:
        assert self._reader is not None, "asked before"
        pieces = [batch]
        if size < batch.size:
            rows = [self._reader.rows(batch, part) for part in torch.arange(batch.size).split(size)]
            pieces = [piece for piece in rows if piece is not None] or [batch]
        ran = [(run.run(self._reader, model, piece), piece, run.features) for piece in pieces]
        found = [self.goal.answer(*one) for one in ran]
        if len({answer.values.shape[1:] for answer in found}) > 1:
            # few labels may fit an output that the whole batch's do not: they say nothing here
            found = [self.goal.answer(o, replace(p, labels=None), f) for o, p, f in ran]
        return found[0] if len(found) == 1 else joined(found)


def gain(before: Evaluation, after: Evaluation) -> float:
    """Compute by how many standard errors the second is better, pair by pair; NaN if not known."""
    old, new = before.compared, after.compared
    if old is None or new is None or not (old.known or new.known):
        return math.nan
    return advantage(old.other, new.other)


def helps(before: Evaluation, after: Evaluation) -> bool:
    """Return whether held-out batches are served better.

    Where labels, a loss or a metric say what is good: better by SURE standard errors; or better
    at all, and the gap between train() and eval() falls by 5 %; or accuracy rises by more than
    one sample and half a point, or nothing changes, and the gap falls by half. Where nothing says
    what is good: the gap falls by 5 %.
    """
    old, new = before.score, after.score
    if not old.samples:
        return False
    sure = gain(before, after)
    closes = new.gap < 0.95 * old.gap
    if math.isnan(sure):
        return closes
    if sure > SURE or (sure > 0 and closes):
        return True
    rises = new.accuracy > old.accuracy + max(0.005, 1.5 / old.samples)
    return (rises or sure == 0) and new.gap < 0.5 * old.gap


def harms(before: Evaluation, after: Evaluation) -> bool:
    """Return whether held-out batches are served worse, beyond chance."""
    sure = gain(before, after)
    return after.score.gap > 1.05 * before.score.gap if math.isnan(sure) else sure < -SURE


def same(before: Evaluation, after: Evaluation) -> bool:
    """Return whether every output is what it was, up to rounding."""
    if not before.answers:
        return False
    return Comparison.of(before.answers, after.answers).relative < 1e-3
