"""From the statistics of a layer to its record."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from normscope.lens import measures
from normscope.lens.measures import Directions, ImageScatter
from normscope.lens.stage_measures import MEASURES
from normscope.lens.statistics import JOINT, Stage, TrackedLayer, joint_channels
from normscope.lens.sweep import BINS, REACH
from normscope.moments import drift
from normscope.records import Array, Layer, Numbers, StageMeasures, StageName

AFFINE: tuple[StageName, ...] = ("input", "normalised", "scaled_shifted")
HALF = 1e-4  # values that round by more than this are of half precision
KEPT = 64  # up to so many histograms a record keeps them all
ENDS = 16  # of more, those of so many channels at either end of the ranking


class _Reading:
    """One stage, with what several measures of it need.

    Attributes:
        stage: its statistics.
        eta2: (C,), NaN for channels that do not vary, and of one class alone.
        mean: (C,), of all values.
        pixel: (C,) bool, channels that vary from value to value.
        image: bool, channels of the joint measures that vary from image to image.
        scatter: of the image features.
        directions: of those channels.
        rounding: see `measures.rounding_share`.
        noise: rounding of a value over the deviation of its channel, in the worst channel.
        var: (C,), of all values.
    """

    def __init__(
        self, stage: Stage, precision: float, like: "_Reading | None" = None, *, compared: bool
    ) -> None:
        eta2, values = measures.correlation_ratio(stage.count, stage.mean, stage.within)
        self.compared, self.mean = compared, values.mean
        self.stage, self.scatter, self.var = stage, ImageScatter.of(stage), values.var(correction=0)
        image_var = self.scatter.total.diagonal()
        self.pixel = measures.live_channels(values.mean, self.var, precision)
        joint = joint_channels(len(values.mean))
        size = (self.var + values.mean**2).sqrt()  # each value of an image is rounded by its own
        self.image = measures.live_channels(size[joint], image_var, precision)
        self.eta2 = eta2.masked_fill(~self.pixel | (not compared), torch.nan)
        # a scaled copy has the same: its channels are brought to variance 1 anyway
        same = like is not None and torch.equal(like.image, self.image)
        self.directions: Directions = (
            like.directions if like and same else Directions.of(self.scatter, self.image)
        )
        used = joint[self.image]
        deviation = self.var[self.pixel].sqrt()
        self.noise = (
            precision * float((size[self.pixel] / deviation).max()) if len(deviation) else 0.0
        )
        self.rounding = measures.rounding_share(
            values.mean[used], self.var[used], image_var[self.image], precision
        )

    def measured(self, name: StageName, cut: float) -> StageMeasures:
        """Take all measures; none of image features where those are all the same."""
        rank = self.directions.rank(cut)
        seen = bool(self.image.any()) and self.compared
        return StageMeasures(
            name=name,
            eta2=_numbers(self.eta2) if self.compared else (),
            eta2_mean=float(self.eta2.nanmean()),
            lda_fraction=self.directions.lda_fraction(cut),
            nearest_mean_accuracy=measures.nearest_mean_accuracy(self.scatter, self.stage.sample)
            if seen
            else math.nan,
            condition=measures.condition_number(self.scatter, self.image, rank),
            rank=rank,
            separation=measures.data_separation(self.scatter) if seen else math.nan,
            cdnv=measures.cdnv(self.scatter) if seen else math.nan,
            condition_eta2=self._condition_eta2(),
            more={name: of(self.scatter, self.directions) for name, of in MEASURES.items()},
        )

    def _condition_eta2(self) -> float:
        """Average the between-condition share over channels; NaN for fewer than two conditions."""
        conditions = self.stage.conditions
        if int((conditions.count > 0).sum()) < 2:
            return math.nan
        shares = measures.eta2(conditions).masked_fill(~self.pixel, torch.nan)
        return float(shares.nanmean())

    def of_channels(self, image: Tensor) -> Directions:
        """Compute the directions of some channels only."""
        if torch.equal(image, self.image):
            return self.directions
        return Directions.of(self.scatter, image)


def stages_of(layer: TrackedLayer) -> dict[StageName, Stage]:
    """Return all stages in order.

    z of one map per channel is that map of the input, exactly; z of a map per sample is y without
    gamma and beta.
    """
    measured, own = layer.stages, layer.map
    z = measured.get("normalised")
    if z is None and layer.maps == "per_sample":
        z = measured["scaled_shifted"].mapped(own.beta, own.inverse_gamma)
    elif z is None:
        z = measured["input"].mapped(own.mean, own.rstd)
    stages: dict[StageName, Stage] = {"input": measured["input"], "normalised": z}
    stages["scaled_shifted"] = measured["scaled_shifted"]
    if "activated" in measured:
        stages["activated"] = measured["activated"]
    return stages


def layer_record(name: str, layer: TrackedLayer, *, compared: bool) -> Layer:
    """Compute every measure of one layer; those between classes where there are two to compare.

    The three stages of one affine map share one rank cut, that of the one which rounds most, so
    that a direction counts at all of them or at none.
    """
    readings: dict[StageName, _Reading] = {}
    for stage_name, stage in stages_of(layer).items():
        derived = stage_name == "normalised" and layer.maps == "one"
        like = readings["input"] if derived else None
        readings[stage_name] = _Reading(stage, layer.precision, like, compared=compared)
    affine = measures.rank_cut(max(readings[n].rounding for n in AFFINE))
    cuts = {
        n: affine if n in AFFINE and layer.maps != "per_sample" else measures.rank_cut(r.rounding)
        for n, r in readings.items()
    }
    stages = tuple(r.measured(n, cuts[n]) for n, r in readings.items())
    own, source = layer.map, layer.stages["input"]
    count = source.count.unsqueeze(1)
    active = layer.active / count  # NaN without images
    tau = measures.gate(own.gamma, own.beta)
    if not layer.one_threshold:
        tau = torch.full_like(tau, torch.nan)
    blocks = measures.channel_blocks(layer.active)
    bits = torch.cat([measures.gate_information(part, source.count) for part in blocks])
    read = readings["input"]  # eps: a channel that is dead in both has not moved
    stored = own.mean, own.var.clamp(min=0) + own.eps
    away = drift(read.mean, read.var.clamp(min=0) + own.eps, *stored)
    away = away if layer.maps != "per_sample" else torch.full_like(away, torch.nan)
    scores = bits if layer.activation is not None else readings["input"].eta2
    kept = _kept((scores if compared else away)[layer.channels])
    seen = source.count > 0
    return Layer(
        name=name,
        norm=layer.norm,
        activation=layer.activation,
        channels=len(own.gamma),
        positions=layer.positions,
        eps=own.eps,
        gamma=_numbers(own.gamma),
        beta=_numbers(own.beta),
        running_mean=_numbers(own.mean),
        running_var=_numbers(own.var),
        stages=stages,
        class_mean=_table(source.mean.masked_fill(~seen.unsqueeze(1), torch.nan)),
        class_var=_table(source.m2 / count),
        bin_edges=_numbers(EDGES),
        histogram=layer.histogram[:, kept].numpy(),
        histogram_channels=tuple(layer.channels[kept].tolist()),
        gate=_numbers(tau),
        firing=_table(active),
        invariance=_invariance(readings, affine) if layer.maps == "one" and compared else math.nan,
        drift=_numbers(away),
        **(_between(layer, bits, tau) if compared else {}),
        signal=measures.measured_signal(
            layer.centred,
            source.count,
            source.mean[:, layer.channels],
            readings["input"].var[layer.channels],
        )
        if bool(layer.centred.any())
        else math.nan,
        rounding=max(readings[n].noise for n in AFFINE),
        notes=_notes(layer, readings),
        images=layer.images,
        maps=layer.maps,
        eta2_change=stages[2].eta2_mean - stages[0].eta2_mean,
        lda_change=stages[2].lda_fraction - stages[0].lda_fraction,
        sampled=len(source.sample.labels),
        pre_activation=_pre_activation(layer, compared=compared),
        input_activation=layer.input_activation,
    )


EDGES = torch.linspace(-REACH, REACH, BINS + 1, dtype=torch.float64)


def _between(layer: TrackedLayer, bits: Tensor, tau: Tensor) -> dict[str, Any]:
    """Take what gates and histograms tell about the class; NaN for channels without histogram."""
    every = torch.full((3, len(bits)), torch.nan, dtype=torch.float64)
    at = layer.channels
    best, edge = measures.best_cut(layer.histogram)
    # a threshold between two edges may be better than either
    better = (bits[at] > best) & ~tau[at].isnan()
    every[0, at] = measures.class_information(layer.histogram)
    every[1, at] = torch.maximum(bits[at], best)
    every[2, at] = torch.where(better, tau[at], EDGES[edge])
    information, best_information, best_gate = map(_numbers, every)
    count = layer.stages["input"].count
    seen = count > 0
    active, count = layer.active[seen], count[seen]
    rates = active / count.unsqueeze(1)
    return {
        "firing_spread": float((rates.max(0).values - rates.min(0).values).mean()),
        "firing_chance": measures.chance_spread(active, layer.rate_square, count, layer.images),
        "information": information,
        "gate_information": _numbers(bits),
        "best_information": best_information,
        "best_gate": best_gate,
    }


def _pre_activation(layer: TrackedLayer, *, compared: bool) -> StageMeasures | None:
    """Measure what the activation before the layer was given, if it saw as much as the layer."""
    stage = layer.stages.get("pre_activation")
    if stage is None or not torch.equal(stage.count, layer.stages["input"].count):
        return None
    reading = _Reading(stage, layer.precision, compared=compared)
    return reading.measured("pre_activation", measures.rank_cut(reading.rounding))


def _kept(scores: Tensor) -> Tensor:
    """Choose the histograms that are worth keeping, in their order: all, or the two ends."""
    if len(scores) <= KEPT:
        return torch.arange(len(scores))
    known = scores.nan_to_num(nan=-1.0)
    order = known.argsort(descending=True, stable=True)
    order = order[known[order] >= 0] if bool((known >= 0).any()) else order
    ends: Tensor = torch.cat([order[:ENDS], order[-ENDS:]]).unique()
    return ends


def _invariance(readings: dict[StageName, _Reading], cut: float) -> float:
    """Return the largest difference of eta2 and J over channels alive at all three stages."""
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


def _notes(layer: TrackedLayer, readings: dict[StageName, _Reading]) -> tuple[str, ...]:
    source = readings["input"]
    compared = source.compared
    conditions = {
        "lens.note.mixed": layer.maps == "per_condition",
        "lens.note.gamma_zero": bool((layer.map.gamma == 0).any()),
        "lens.note.constant": not bool(source.pixel.all()),
        "lens.note.same_means": bool(source.image.any())
        and not bool(readings["normalised"].image.any()),
        "lens.note.few_images": compared and layer.images <= int(source.image.sum()),
        "lens.note.sampled": compared and layer.images > layer.sample,
        "lens.note.joint_channels": len(layer.map.gamma) > JOINT,
        "lens.note.histograms": len(layer.channels) < len(layer.map.gamma),
        "lens.note.positions": layer.counted < layer.positions,
        "lens.note.half": layer.precision > HALF,
    }
    return tuple(key for key, holds in conditions.items() if holds)


def _numbers(values: Tensor) -> Numbers:
    return tuple(values.tolist())


def _table(values: Tensor) -> Array:
    return values.float().numpy()
