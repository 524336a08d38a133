"""From what was accumulated of a layer to its record."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from normscope.lens import measures
from normscope.lens.accumulate import BINS, JOINT, REACH, SAMPLE, Stage, Tally, joint_channels
from normscope.lens.channel_map import Part
from normscope.lens.measures import Directions
from normscope.moments import Moments
from normscope.records import Layer, Numbers, StageMeasures, StageName

AFFINE: tuple[StageName, ...] = ("input", "normalised", "scaled_shifted")


class _Reading:
    """One stage, with what several measures of it need.

    Attributes:
        stage: what was accumulated.
        eta2: (C,), NaN for channels that do not vary.
        pixel: (C,) bool, channels that vary from value to value.
        image: bool, channels of the joint measures that vary from image to image.
        directions: of those channels.
        rounding: see `measures.rounding_share`.
    """

    def __init__(self, stage: Stage, precision: float) -> None:
        values = stage.moments.pool()
        mean, s_t, _ = measures.total(stage.scatter)
        var = s_t.diagonal()
        self.stage = stage
        self.pixel = measures.live_channels(values.mean, values.var(correction=0), precision)
        self.image = measures.live_channels(mean, var, precision)
        self.eta2 = measures.eta2(stage.moments).masked_fill(~self.pixel, torch.nan)
        self.directions = Directions.of(stage.scatter, self.image)
        used = joint_channels(len(values.mean))[self.image.cpu()]
        joint = Moments(values.count, values.mean[used], values.m2[used])
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
        )

    def of_channels(self, image: Tensor) -> Directions:
        """The directions of some of the channels; made anew only where they are not all."""
        if torch.equal(image, self.image):
            return self.directions
        return Directions.of(self.stage.scatter, image)


def layer_record(part: Part, tally: Tally) -> Layer:
    """Every measure of one layer.

    The three affine stages share one rank cut, that of the one which rounds most, so that a
    direction counts at all of them or at none.
    """
    readings = {name: _Reading(stage, tally.precision) for name, stage in tally.stages.items()}
    affine = measures.rank_cut(max(readings[name].rounding for name in AFFINE))
    cuts = {
        n: affine if n in AFFINE else measures.rank_cut(r.rounding) for n, r in readings.items()
    }
    source = tally.stages["input"].moments
    absent = (source.count == 0).unsqueeze(1)
    shown = part.shown
    tau = measures.gate(shown.gamma, shown.beta)
    if part.mixed and part.used.gamma.dim() == 2:
        tau = torch.full_like(tau, torch.nan)
    return Layer(
        name=part.name,
        norm=part.norm,
        activation=tally.activation,
        channels=len(shown.mean),
        positions=tally.positions,
        eps=shown.eps,
        gamma=_numbers(shown.gamma),
        beta=_numbers(shown.beta),
        running_mean=_numbers(shown.mean),
        running_var=_numbers(shown.var),
        stages=tuple(r.measured(name, cuts[name]) for name, r in readings.items()),
        class_mean=_table(source.mean.masked_fill(absent, torch.nan)),
        class_var=_table(source.var(correction=0)),
        bin_edges=_numbers(torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)),
        histogram=tuple(tuple(map(tuple, rows)) for rows in tally.histogram.tolist()),
        gate=_numbers(tau),
        firing=_table(tally.fired / source.count.unsqueeze(1)),
        invariance=math.nan if part.mixed else _invariance(readings, affine),
        notes=_notes(part, readings["input"]),
    )


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


def _notes(part: Part, source: _Reading) -> tuple[str, ...]:
    images = int(source.stage.scatter.count.sum())
    conditions = {
        "lens.note.mixed": part.mixed,
        "lens.note.gamma_zero": bool((part.shown.gamma == 0).any()),
        "lens.note.constant": not bool(source.pixel.all()),
        "lens.note.few_images": images <= int(source.image.sum()),
        "lens.note.sampled": images > SAMPLE,
        "lens.note.joint_channels": len(part.shown.mean) > JOINT,
    }
    return tuple(key for key, holds in conditions.items() if holds)


def _numbers(values: Tensor) -> Numbers:
    return tuple(values.tolist())


def _table(values: Tensor) -> tuple[Numbers, ...]:
    return tuple(map(tuple, values.tolist()))
