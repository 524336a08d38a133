"""How the batches are made: their size, their composition, their padding."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.nn.modules.batchnorm import _BatchNorm

from normscope.doctor.checks.base import Case, Check, Skip
from normscope.doctor.evidence import Look
from normscope.records import Finding


def effective(size: float, look: Look | None) -> float:
    """m_eff = N P / (1 + (P-1) ICC): independent values per channel in a batch of N images.

    P positions; ICC is the share of a channel's variance that lies between images, the mean over
    channels.
    """
    if look is None or look.positions < 2 or look.between is None or look.within is None:
        return size
    total = look.within.clamp(min=1e-12)
    # the share that chance puts between images is taken out
    raw = float((look.between / total)[look.within > 1e-12].mean())
    p = look.positions
    icc = max((raw - 1 / p) / (1 - 1 / p), 0.0)
    return size * p / (1 + (p - 1) * icc)


@dataclass
class BatchSize(Check):
    """Batches too small to normalise with.

    The statistics of m values stray by 1/sqrt(m); a share 1/m of the signal between samples is
    normalised away. Images count with their positions as far as these are independent. Weights
    trained so have adapted to the noise: measuring the statistics again does not rescue them.
    Use larger or synchronised batches, GroupNorm or BatchRenorm, and drop a last batch of one.
    """

    code = "NS007"
    family = "batches"
    needs = "data"
    source = "Wu and He 2018, 'Group normalization': errors rise below 16 per batch"
    warn: float = 16.0
    fail: float = 1.0

    def find(self, case: Case) -> Iterator[Finding]:
        assert case.data is not None, "needed"
        sizes = sorted(case.data.sizes)
        usual = sizes[len(sizes) // 2]
        looks = {s.name: case.data.looks.get(s.name) for s in case.layers}
        if not looks:
            raise Skip("doctor.skip.none")
        smallest = min(looks, key=lambda name: effective(usual, looks[name]))
        m = effective(usual, looks[smallest])
        if m < self.warn:
            grave = m <= self.fail + 1e-9 or m < 4
            yield self.finding(
                smallest, "error" if grave else "warning", m, self.warn, size=usual, kind="small",
            )  # fmt: skip
        elif sizes[0] == 1:
            positions = min((k.positions for k in looks.values() if k), default=1)
            if positions == 1:
                yield self.finding("", "warning", 1.0, self.warn, size=1, kind="last")


@dataclass
class BatchComposition(Check):
    """Batches whose samples belong together.

    Where batch-mates share the class more often than chance, the batch mean holds the class, and
    normalising takes it away: of the class signal (1-r)(1-1/m) is left. The same where a class
    always stands at the same place of a batch, or with frames of one video. Shuffle, mix classes
    in every batch, or synchronise ranks that see different ones.
    """

    code = "NS008"
    family = "batches"
    needs = "data"
    source = "share of signal (1-r)(1-1/m), derived and measured on digits"
    warn: float = 0.1
    fail: float = 0.3

    def find(self, case: Case) -> Iterator[Finding]:
        assert case.data is not None, "needed"
        labels = case.data.labels
        if not labels.counts:
            raise Skip("doctor.skip.labels")
        if len(labels.counts) < 2:
            raise Skip("doctor.skip.one_class")
        r, place = labels.excess(), labels.fixed_places()
        if r != r and place != place:
            raise Skip("doctor.skip.one_batch")
        for value, kind in ((r, "mates"), (place, "places")):
            grade = self.graded(value)
            if grade is not None and not (kind == "places" and r > self.warn):
                severity, threshold = grade
                m = sorted(case.data.sizes)[len(case.data.sizes) // 2]
                yield self.finding(
                    "", severity, value, threshold, kind=kind, left=(1 - value) * (1 - 1 / m),
                )  # fmt: skip


@dataclass
class Padding(Check):
    """Padding that counts as data.

    Sequences are filled up to one length; the filling enters mean and variance, more so in
    batches with one long sequence. Counted are positions at the end of an input (N, C, L) that
    repeat in every channel. Give the layer the mask: normscope.BatchNorm1d(...)(x, mask=mask).
    """

    code = "NS020"
    family = "batches"
    needs = "data"
    source = "share of positions that enter the moments"
    warn: float = 0.05

    def find(self, case: Case) -> Iterator[Finding]:
        assert case.data is not None, "needed"
        looks = [(s.name, case.data.looks.get(s.name)) for s in case.layers]
        for name, look in looks:
            if look is not None and look.padded > self.warn:
                yield self.finding(
                    name, "warning", look.padded, self.warn,
                    confidence="medium",
                )  # fmt: skip
                return


@dataclass
class Leak(Check):
    """An output that depends on who else is in the batch.

    In eval() a sample must come out the same alone and in company. Half of a batch is run again
    without the other half; if outputs change, some layer still normalises by the batch: one
    without running statistics, or one that ignores eval().
    """

    code = "NS026"
    family = "batches"
    needs = "data"
    source = "rounding alone is far below"
    warn: float = 1e-3
    fail: float = 1e-3

    def find(self, case: Case) -> Iterator[Finding]:
        assert case.data is not None, "needed"
        assert case.model is not None, "needed"
        if case.data.leak != case.data.leak:
            raise Skip("doctor.skip.outputs" if case.data.sizes[0] > 1 else "doctor.skip.single")
        if case.data.leak > self.fail:
            without = [
                name
                for name, m in case.model.named_modules()
                if isinstance(m, _BatchNorm) and m.running_mean is None
            ]
            yield self.finding(
                without[0] if without else "", "error", case.data.leak, self.fail,
                change=case.data.leak,
            )  # fmt: skip
