"""From what was accumulated of a layer to its record."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from normscope.lens import measures
from normscope.lens.accumulation import Followed
from normscope.lens.measures import Directions
from normscope.lens.sweep import BINS, REACH
from normscope.lens.tally import JOINT, Stage, Tally, joint_channels
from normscope.moments import Moments
from normscope.records import Layer, Numbers, StageMeasures, StageName

AFFINE: tuple[StageName, ...] = ("input", "normalised", "scaled_shifted")
HALF = 1e-4  # values that round by more than this are of half precision
HELD = 64  # up to so many channels a record holds every histogram
ENDS = 16  # of more, those of so many channels at either end of the ranking


class _Reading:
    """One stage, with what several measures of it need.

    Attributes:
        stage: what was accumulated.
        eta2: (C,), NaN for channels that do not vary.
        pixel: (C,) bool, channels that vary from value to value.
        image: bool, channels of the joint measures that vary from image to image.
        directions: of those channels.
        rounding: see `measures.rounding_share`.
        noise: rounding of a value over the deviation of its channel, in the worst channel.
    """

    def __init__(self, stage: Stage, precision: float, like: "_Reading | None" = None) -> None:
        values = stage.moments.pool()
        mean, s_t, _ = measures.total(stage.scatter)
        var = s_t.diagonal()
        self.stage = stage
        self.pixel = measures.live_channels(values.mean, values.var(correction=0), precision)
        self.image = measures.live_channels(mean, var, precision)
        self.eta2 = measures.eta2(stage.moments).masked_fill(~self.pixel, torch.nan)
        # a scaled copy has the same: its channels are brought to variance 1 anyway
        same = like is not None and torch.equal(like.image, self.image)
        self.directions: Directions = (
            like.directions if like and same else Directions.of(stage.scatter, self.image)
        )
        used = joint_channels(len(values.mean))[self.image.cpu()]
        joint = Moments(values.count, values.mean[used], values.m2[used])
        deviation = values.var(correction=0)[self.pixel].sqrt()
        size = (deviation**2 + values.mean[self.pixel] ** 2).sqrt()
        self.noise = precision * float((size / deviation).max()) if len(deviation) else 0.0
        self.rounding = measures.rounding_share(joint, var[self.image], precision)

    def measured(self, name: StageName, cut: float) -> StageMeasures:
        """The record of this stage."""
        rank = self.directions.rank(cut)
        scatter = self.stage.scatter
        return StageMeasures(
            name=name,
            eta2=_numbers(self.eta2),
            eta2_mean=float(self.eta2.nanmean()),
            lda_fraction=self.directions.lda_fraction(cut),
            nearest_mean_accuracy=measures.nearest_mean_accuracy(scatter, self.stage.sample),
            condition=measures.condition_number(scatter, self.image, rank),
            rank=rank,
            separation=measures.data_separation(scatter),
            cdnv=measures.cdnv(scatter),
            condition_eta2=self._condition_eta2(),
        )

    def _condition_eta2(self) -> float:
        """Mean over channels of the between-condition share; NaN for fewer than two of them."""
        conditions = self.stage.conditions
        if int((conditions.count > 0).sum()) < 2:
            return math.nan
        shares = measures.eta2(conditions).masked_fill(~self.pixel, torch.nan)
        return float(shares.nanmean())

    def of_channels(self, image: Tensor) -> Directions:
        """The directions of some of the channels; made anew only where they are not all."""
        if torch.equal(image, self.image):
            return self.directions
        return Directions.of(self.stage.scatter, image)


def stages_of(layer: Followed) -> dict[StageName, Stage]:
    """All stages in order. z of one map per channel is that map of the input, exactly."""
    measured, shown = layer.tally.stages, layer.shown
    stages = {"input": measured["input"]}
    stages["normalised"] = measured.get("normalised") or measured["input"].mapped(
        shown.mean, shown.rstd
    )
    return {**stages, **{n: s for n, s in measured.items() if n not in stages}}  # type: ignore[dict-item]


def layer_record(name: str, layer: Followed) -> Layer:
    """Every measure of one layer.

    The three affine stages share one rank cut, that of the one which rounds most, so that a
    direction counts at all of them or at none.
    """
    tally, shown = layer.tally, layer.shown
    readings: dict[StageName, _Reading] = {}
    for stage_name, stage in stages_of(layer).items():
        derived = stage_name not in tally.stages
        like = readings["input"] if derived else None
        readings[stage_name] = _Reading(stage, tally.precision, like)
    affine = measures.rank_cut(max(readings[n].rounding for n in AFFINE))
    cuts = {
        n: affine if n in AFFINE else measures.rank_cut(r.rounding) for n, r in readings.items()
    }
    source = tally.stages["input"].moments
    absent = (source.count == 0).unsqueeze(1)
    tau = measures.gate(shown.gamma, shown.beta)
    if not layer.gated:
        tau = torch.full_like(tau, torch.nan)
    bits = measures.gate_information(tally.fired, source.count)
    best, edge = measures.best_cut(tally.histogram)
    edges = torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)
    # a gate between two edges may be better than either
    better = (bits > best) & ~tau.isnan()
    scores = bits if tally.activation is not None else readings["input"].eta2
    held = _held(scores)
    return Layer(
        name=name,
        norm=layer.norm,
        activation=tally.activation,
        channels=len(shown.mean),
        positions=tally.positions,
        eps=shown.eps,
        gamma=_numbers(shown.gamma),
        beta=_numbers(shown.beta),
        running_mean=_numbers(shown.mean),
        running_var=_numbers(shown.var),
        stages=tuple(r.measured(n, cuts[n]) for n, r in readings.items()),
        class_mean=_table(source.mean.masked_fill(absent, torch.nan)),
        class_var=_table(source.var(correction=0)),
        bin_edges=_numbers(edges),
        histogram=tuple(tuple(map(tuple, rows)) for rows in tally.histogram[:, held].tolist()),
        histogram_channels=tuple(held.tolist()),
        gate=_numbers(tau),
        firing=_table(tally.fired / source.count.unsqueeze(1)),
        invariance=math.nan if layer.mixed else _invariance(readings, affine),
        information=_numbers(measures.class_information(tally.histogram)),
        gate_information=_numbers(bits),
        best_information=_numbers(torch.maximum(bits, best)),
        best_gate=_numbers(torch.where(better, tau, edges[edge])),
        signal=_signal(tally),
        rounding=max(readings[n].noise for n in AFFINE),
        notes=_notes(layer, readings["input"]),
    )


def _held(scores: Tensor) -> Tensor:
    """The channels whose histograms are worth keeping, in their order: all, or the two ends."""
    if len(scores) <= HELD:
        return torch.arange(len(scores))
    known = scores.nan_to_num(nan=-1.0)
    order = known.argsort(descending=True, stable=True)
    order = order[known[order] >= 0] if bool((known >= 0).any()) else order
    ends: Tensor = torch.cat([order[:ENDS], order[-ENDS:]]).unique()
    return ends


def _signal(tally: Tally) -> float:
    """The share of the class signal that is left when every batch is centred by itself."""
    if not bool(tally.centred.any()):
        return math.nan
    return measures.measured_signal(tally.centred, tally.stages["input"].scatter.classes)


def _invariance(readings: dict[StageName, _Reading], cut: float) -> float:
    """Largest difference of eta2 and J over the channels that are alive at all three stages."""
    affine = [readings[name] for name in AFFINE]
    pixel = torch.stack([reading.pixel for reading in affine]).all(0)
    image = torch.stack([reading.image for reading in affine]).all(0)
    if not bool(pixel.any()):
        return math.nan
    eta2 = [reading.eta2[pixel] for reading in affine]
    fraction = [reading.of_channels(image).lda_fraction(cut) for reading in affine]
    differences = [float((b - a).abs().max()) for a, b in pairwise([*eta2, eta2[0]])]
    differences += [abs(b - a) for a, b in pairwise([*fraction, fraction[0]])]
    return max(d for d in differences if not math.isnan(d))


def _notes(layer: Followed, source: _Reading) -> tuple[str, ...]:
    images = int(source.stage.scatter.count.sum())
    tally = layer.tally
    conditions = {
        "lens.note.mixed": layer.mixed,
        "lens.note.gamma_zero": bool((layer.shown.gamma == 0).any()),
        "lens.note.constant": not bool(source.pixel.all()),
        "lens.note.few_images": images <= int(source.image.sum()),
        "lens.note.sampled": images > tally.sample,
        "lens.note.joint_channels": len(layer.shown.mean) > JOINT,
        "lens.note.positions": tally.counted < tally.positions,
        "lens.note.half": tally.precision > HALF,
    }
    return tuple(key for key, holds in conditions.items() if holds)


def _numbers(values: Tensor) -> Numbers:
    return tuple(values.tolist())


def _table(values: Tensor) -> tuple[Numbers, ...]:
    return tuple(map(tuple, values.tolist()))
