"""The measures of the lens: pure functions of what was accumulated, each with its source.

Two families. *Information*: eta2, the LDA fraction and the mutual information of channel and class
do not change under any map y = a x + b per channel with a != 0, so batch norm cannot change them.
*Geometry*: nearest-class-mean accuracy, data separation D, CDNV and the condition number do
change; they are what batch norm improves. Source of the table of invariances: Fukunaga 1990,
"Introduction to statistical pattern recognition", chapter 10.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.lens.tally import Sample, Scatter
from normscope.moments import Moments

# an eigenvalue of the correlation matrix (their mean is 1) counts from here on: the square of
# scikit-learn's tol=1e-4 on singular values
RANK_CUT = 1e-8
ABOVE_ROUNDING = 1e5  # and only this far above the variance of the rounding of the values

BETWEEN_CUT = 1e-6  # singular values of the class means count from this share of the largest
BLOCK = 1 << 21  # counts handled at once

# a channel whose deviation is below this many roundings of its mean holds no values but rounding
ROUNDINGS = 4


def live_channels(mean: Tensor, var: Tensor, precision: float) -> Tensor:
    """(C,) bool: channels that vary by more than the rounding of their mean."""
    return var > (ROUNDINGS * precision * mean) ** 2


def total(scatter: Scatter) -> tuple[Tensor, Tensor, Tensor]:
    """Grand mean (C,), S_T and the factor M with S_B = M^T M, both per image.

    S_T = S_W + S_B,   S_B = sum_k p_k (mean_k - mean)(mean_k - mean)^T
    """
    images = scatter.count.sum().clamp(min=1)
    share = (scatter.count / images).unsqueeze(1)
    mean = (share * scatter.mean).sum(0)
    factor = share.sqrt() * (scatter.mean - mean)
    return mean, scatter.within / images + factor.T @ factor, factor


def eta2(moments: Moments) -> Tensor:
    """Correlation ratio per channel: the between-class share of the variance, (C,) in [0, 1].

        eta2 = sum_k n_k (mean_k - mean)^2 / sum (x - mean)^2

    NaN where a channel has no variance. ANOVA's F is eta2 / (1 - eta2) * (N - K) / (K - 1).

    Source: Pearson 1905, "On the general theory of skew correlation".
    """
    pooled = moments.pool()
    between = (moments.count.unsqueeze(1) * (moments.mean - pooled.mean) ** 2).sum(0)
    return between / pooled.m2


@dataclass(frozen=True, eq=False)
class Directions:
    """Principal directions of image features whose live channels are scaled to variance 1.

    The scaling makes all of this independent of the scale of the channels.

    Attributes:
        values: (c,), ascending eigenvalues of the correlation matrix; their mean is 1.
        offsets: (K, c), class means along the directions, times the root of the class share.
        classes: how many classes have images.
    """

    values: Tensor
    offsets: Tensor
    classes: int

    @classmethod
    def of(cls, scatter: Scatter, live: Tensor) -> "Directions":
        """From the live channels, (C,) bool, of a scatter."""
        _, s_t, factor = total(scatter)
        scale = s_t.diagonal()[live].rsqrt()
        correlation = s_t[live][:, live] * scale * scale.unsqueeze(1)
        values, vectors = torch.linalg.eigh(correlation)
        offsets = (factor[:, live] * scale) @ vectors
        return cls(values, offsets, int((scatter.count > 0).sum()))

    def rank(self, cut: float) -> int:
        """How many eigenvalues lie above `cut`."""
        return int((self.values > cut).sum())

    def lda_fraction(self, cut: float) -> float:
        """J = tr(S_T^+ S_B) / (K - 1) over the directions above `cut`; NaN where there is none.

        The mean squared canonical correlation between features and classes, in [0, 1]: 1 where a
        linear reader separates all classes without error. K counts the classes with images.

        Source: Pillai 1955, "Some new test criteria in multivariate analysis" (the trace),
        divided by its largest value.
        """
        kept = self.values > cut
        if self.classes < 2 or not bool(kept.any()):
            return float("nan")
        whitened = self.offsets[:, kept] * self.values[kept].rsqrt()
        return float((whitened**2).sum() / (self.classes - 1))


def rank_cut(rounding: float) -> float:
    """The smallest eigenvalue that counts where `rounding` is the share of `rounding_share`."""
    return max(RANK_CUT, ABOVE_ROUNDING * rounding)


def rounding_share(pixel: Moments, var: Tensor, precision: float) -> float:
    """Variance of the rounding of a value over the variance between images; median of channels.

    About precision^2 in a trained network; large where the images hardly differ, and then small
    directions are noise that every stage rounds anew.

    Args:
        pixel: moments of all values per channel, (), (C,), (C,).
        var: (C,), variance of the image features.
        precision: relative rounding of one value.
    """
    square = pixel.var(correction=0) + pixel.mean**2
    return float((precision**2 * square / var).median()) if len(var) else 0.0


def condition_number(scatter: Scatter, live: Tensor, rank: int) -> float:
    """Largest over smallest eigenvalue of S_T among its `rank` largest; NaN at rank 0.

    What gradient descent feels: LeCun, Kanter, Solla 1991, "Eigenvalues of covariance matrices".
    """
    if rank == 0:
        return float("nan")
    _, s_t, _ = total(scatter)
    values = torch.linalg.eigvalsh(s_t[live][:, live])
    return float(values[-1] / values[-rank])


def nearest_mean_accuracy(scatter: Scatter, sample: Sample) -> float:
    """Share of the sampled images that lie nearest (Euclidean) to the mean of their own class.

    The means are those of all images; exact where no more than SAMPLE images were seen.

    Source: Papyan, Han, Donoho 2020, "Prevalence of neural collapse", NC4.
    """
    present = scatter.count > 0
    centre = scatter.mean[present].mean(0)  # distances near the origin round less
    features = sample.features.double() - centre
    nearest = torch.cdist(
        features, scatter.mean[present] - centre, compute_mode="donot_use_mm_for_euclid_dist"
    ).argmin(1)
    own = (present.cumsum(0) - 1)[sample.labels]
    return float((nearest == own).double().mean())


def data_separation(scatter: Scatter) -> float:
    """D = tr(S_W S_B^+), smaller where the classes stand further apart; NaN for one class.

    Not invariant: S_B has rank K - 1, and its pseudo-inverse follows no affine map.

    Source: He and Su 2023, "A law of data separation in deep learning", PNAS 120(36).
    """
    images = scatter.count.sum().clamp(min=1)
    _, _, factor = total(scatter)
    return trace_quotient(scatter.within / images, factor)


def trace_quotient(within: Tensor, factor: Tensor) -> float:
    """tr(S_W S_B^+) with S_B = factor^T factor."""
    _, lengths, directions = torch.linalg.svd(factor, full_matrices=False)
    kept = lengths > BETWEEN_CUT * lengths.max()
    if not bool(kept.any()):
        return float("nan")
    along = directions[kept]
    spread = torch.einsum("kc,cd,kd->k", along, within, along)
    return float((spread / lengths[kept] ** 2).sum())


def cdnv(scatter: Scatter) -> float:
    """Class-distance normalised variance, mean over pairs of classes; NaN for one class.

        (v_a + v_b) / (2 distance(mean_a, mean_b)^2),   v_k = tr Sigma_k

    Source: Galanti, Gyorgy, Hutter 2022, "On the role of neural collapse in transfer learning".
    """
    present = scatter.count > 0
    if int(present.sum()) < 2:
        return float("nan")
    spread = scatter.classes.m2[present].sum(1) / scatter.count[present]
    mean = scatter.mean[present]
    distance = torch.cdist(mean, mean, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    a, b = torch.triu_indices(len(mean), len(mean), 1)
    return float(((spread[a] + spread[b]) / (2 * distance[a, b])).mean())


def class_information(histogram: Tensor) -> Tensor:
    """Mutual information of class and bin, bits per channel, (C,), from counts (K, C, B).

        I = sum_kb p(k, b) log2( p(k, b) / (p(k) p(b)) )

    The plug-in estimate: with n values in B bins it is too large by about (K-1)(B-1) / (2 n ln 2).

    Source: Shannon 1948; the bias: Miller 1955, "Note on the bias of information estimates".
    """
    return torch.cat([_information(part) for part in _channel_blocks(histogram)])


def _information(counts: Tensor) -> Tensor:
    joint = counts.double() / counts.sum((0, 2), keepdim=True).clamp(min=1)
    entropies = [-(p * p.clamp(min=1e-300).log2()) for p in (joint, joint.sum(2), joint.sum(0))]
    return entropies[1].sum(0) + entropies[2].sum(1) - entropies[0].sum((0, 2))


def gate_information(fired: Tensor, count: Tensor) -> Tensor:
    """Mutual information of class and [y > 0], bits per channel.

        I = H(sum_k p_k f_k) - sum_k p_k H(f_k),   f_k = fired_k / n_k,   p_k = n_k / n

    Args:
        fired: (K, ...), values above the gate per class.
        count: (K,), values per class.
    """
    n = count.double().reshape(-1, *[1] * (fired.dim() - 1))
    share = fired / n.clamp(min=1)
    weight = n / n.sum().clamp(min=1)
    known = _entropy((weight * share).sum(0)) - (weight * _entropy(share)).sum(0)
    return known.clamp(min=0)  # not below, by rounding


def best_cut(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """The best single threshold on z: its information in bits (C,), and its place as a bin edge.

    The largest gate information over the B - 1 inner edges of the histogram (K, C, B); edge b
    lies between bins b - 1 and b. Source: Fayyad and Irani 1993, "Multi-interval discretization".
    """
    bits, edges = [], []
    for part in _channel_blocks(histogram):
        above = part.flip(2).cumsum(2).flip(2)[:, :, 1:]
        found = gate_information(above, part[:, 0].sum(1)).max(1)
        bits.append(found.values)
        edges.append(found.indices + 1)
    return torch.cat(bits), torch.cat(edges)


def _channel_blocks(histogram: Tensor) -> Iterator[Tensor]:
    """The histogram in blocks of channels, so that float64 copies stay small."""
    classes, channels, bins = histogram.shape
    step = max(1, BLOCK // (classes * bins))
    for start in range(0, channels, step):
        yield histogram[:, start : start + step]


def _entropy(p: Tensor) -> Tensor:
    """Of a yes with probability p, in bits."""
    p = p.double()
    nats: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return nats / math.log(2)


def excess(counts: Tensor, equal: int, pairs: int) -> float:
    """r, by how much more often two images of one batch share their class than chance has it.

        r = (q - sum p_k^2) / (1 - sum p_k^2),   q = equal / pairs

    0 for shuffled batches of a large set, 1 for batches of one class; NaN without pairs.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    chance = float((share**2).sum())
    if pairs == 0 or chance >= 1:
        return float("nan")
    return (equal / pairs - chance) / (1 - chance)


def predicted_signal(r: float, images: int, batches: int) -> float:
    """(1 - r)(1 - 1/m), the share of the class signal that batches of m leave when each is centred.

    Batches of several sizes: 1/m is batches / images, exactly. The class means of a channel, less
    the overall mean, keep this share in training mode; from labels alone.
    """
    return (1 - r) * (1 - batches / images) if images else float("nan")


def measured_signal(centred: Tensor, moments: Moments) -> float:
    """What `predicted_signal` predicts, from features of which each batch's mean was taken.

        sum_ck p_k c_kc d_kc / v_c  over  sum_ck p_k d_kc^2 / v_c

    with d the class means less the overall mean, c the same of the centred features, v the
    variance; NaN where the classes have the same means.

    Args:
        centred: (K, C), sums per class of the features less the mean of their batch.
        moments: of the features, per image: (K,), (K, C), (K, C).
    """
    pooled = moments.pool()
    share = (moments.count / moments.count.sum().clamp(min=1)).unsqueeze(1)
    offset = moments.mean - pooled.mean
    left = centred / moments.count.clamp(min=1).unsqueeze(1)
    live = pooled.m2 > 0
    inverse = torch.where(live, 1 / pooled.m2, 0.0)
    whole = float((share * offset**2 * inverse).sum())
    return float((share * left * offset * inverse).sum()) / whole if whole else float("nan")


def gate(gamma: Tensor, beta: Tensor) -> Tensor:
    """Gate (C,), -beta / gamma: y > 0 where z > gate (z < gate where gamma < 0); NaN at gamma 0."""
    return torch.where(gamma != 0, -beta / gamma, torch.nan)
