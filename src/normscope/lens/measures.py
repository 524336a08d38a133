"""The measures of the lens: pure functions of what was accumulated, each with its source.

Two families. *Information*: eta2, the LDA fraction and the mutual information of channel and class
do not change under any map y = a x + b per channel with a != 0, so batch norm cannot change them.
*Geometry*: nearest-class-mean accuracy, data separation D, CDNV and the condition number do
change; they are what batch norm improves. Source of the table of invariances: Fukunaga 1990,
"Introduction to statistical pattern recognition", chapter 10.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.lens.images import Sample
from normscope.lens.statistics import Stage, joint_channels
from normscope.moments import Moments

# an eigenvalue of the correlation matrix (their mean is 1) counts from here on: the square of
# scikit-learn's tol=1e-4 on singular values
RANK_CUT = 1e-8
ABOVE_ROUNDING = 1e5  # and only this far above the variance of the rounding of the values

BETWEEN_CUT = 1e-6  # singular values of the class means count from this share of the largest
BLOCK = 1 << 19  # counts handled at once
PAIRED = 2048  # classes of which all pairs are measured

# a channel whose deviation is below this many roundings of its mean holds no values but rounding
ROUNDINGS = 4


def live_channels(mean: Tensor, var: Tensor, precision: float) -> Tensor:
    """Return (C,) bool: channels that vary by more than the rounding of their mean."""
    return var > (ROUNDINGS * precision * mean) ** 2


def correlation_ratio(count: Tensor, mean: Tensor, within: Tensor) -> tuple[Tensor, Moments]:
    """Return the correlation ratio per channel, (C,) in [0, 1], and moments over all classes.

        eta2 = sum_k n_k (mean_k - mean)^2 / sum (x - mean)^2

    NaN where a channel has no variance. ANOVA's F is eta2 / (1 - eta2) * (N - K) / (K - 1).

    Args:
        count: (K,).
        mean: (K, C), class means.
        within: (C,), sum of (x - mean_k)^2.

    Source: Pearson 1905, "On the general theory of skew correlation".
    """
    total = count.sum()
    centre = (count / total.clamp(min=1)) @ mean
    between = count @ (mean - centre) ** 2
    return between / (between + within), Moments(total, centre, between + within)


def eta2(moments: Moments) -> Tensor:
    """Return `correlation_ratio` of moments per class, (K,), (K, C), (K, C)."""
    return correlation_ratio(moments.count, moments.mean, moments.m2.sum(0))[0]


@dataclass(frozen=True, eq=False)
class ImageScatter:
    """Covariances of the image features of a stage, over its joint channels; K with images.

        S_T = S_W + S_B,   S_B = M^T M = sum_k p_k (mean_k - mean)(mean_k - mean)^T

    Attributes:
        mean: (J,), over all images.
        total: (J, J), S_T.
        within: (J, J), S_W.
        factor: (K, J), M.
        class_mean: (K, J).
        spread: (K,), trace of each class's own covariance.
        present: (all classes,) bool, which of them have images.
    """

    mean: Tensor
    total: Tensor
    within: Tensor
    factor: Tensor
    class_mean: Tensor
    spread: Tensor
    present: Tensor

    @classmethod
    def of(cls, stage: Stage) -> "ImageScatter":
        """Compute the scatter from the statistics of a stage."""
        present = stage.count > 0
        count = stage.count[present]
        class_mean = stage.mean[:, joint_channels(stage.mean.shape[1])][present]
        share = count / count.sum().clamp(min=1)
        mean = share @ class_mean
        factor = share.sqrt().unsqueeze(1) * (class_mean - mean)
        within = stage.scatter / count.sum().clamp(min=1)
        spread = stage.traces[0][present] / count
        total = within + factor.T @ factor
        return cls(mean, total, within, factor, class_mean, spread, present)


@dataclass(frozen=True, eq=False)
class Directions:
    """Principal directions of image features whose live channels are scaled to variance 1.

    The scaling makes all of this independent of the scale of the channels.

    Attributes:
        values: (c,), ascending eigenvalues of the correlation matrix; their mean is 1.
        offsets: (K, c), class means along the directions, times the root of the class share.
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, scatter: ImageScatter, live: Tensor) -> "Directions":
        """Decompose the scatter of the live channels, (J,) bool."""
        s_t = scatter.total[live][:, live]
        scale = s_t.diagonal().rsqrt()
        values, vectors = torch.linalg.eigh(s_t * scale * scale.unsqueeze(1))
        return cls(values, (scatter.factor[:, live] * scale) @ vectors)

    def rank(self, cut: float) -> int:
        """Count the eigenvalues above `cut`."""
        return int((self.values > cut).sum())

    def lda_fraction(self, cut: float) -> float:
        """Return J = tr(S_T^+ S_B) / (K - 1) over the directions above `cut`; NaN: there is none.

        The mean squared canonical correlation between features and classes, in [0, 1]: 1 where a
        linear reader separates all classes without error. K counts the classes with images.

        Source: Pillai 1955, "Some new test criteria in multivariate analysis" (the trace),
        divided by its largest value.
        """
        kept = self.values > cut
        classes = len(self.offsets)
        if classes < 2 or not bool(kept.any()):
            return math.nan
        whitened = self.offsets[:, kept] * self.values[kept].rsqrt()
        return float((whitened**2).sum() / (classes - 1))


def rank_cut(rounding: float) -> float:
    """Return the smallest eigenvalue that counts, given the share of `rounding_share`."""
    return max(RANK_CUT, ABOVE_ROUNDING * rounding)


def rounding_share(mean: Tensor, var: Tensor, image_var: Tensor, precision: float) -> float:
    """Return the variance of a value's rounding over that between images; median of channels.

    About precision^2 in a trained network; large where the images hardly differ, and then small
    directions are noise that every stage rounds anew.

    Args:
        mean: (C,), of all values.
        var: (C,), of all values.
        image_var: (C,), variance of the image features.
        precision: relative rounding of one value.
    """
    square = precision**2 * (var + mean**2)
    return float((square / image_var).median()) if len(var) else 0.0


def condition_number(scatter: ImageScatter, live: Tensor, rank: int) -> float:
    """Return the largest over smallest eigenvalue of S_T among its `rank` largest; NaN at rank 0.

    What gradient descent feels: LeCun, Kanter, Solla 1991, "Eigenvalues of covariance matrices".
    """
    if rank == 0:
        return math.nan
    values = torch.linalg.eigvalsh(scatter.total[live][:, live])
    return float(values[-1] / values[-rank])


def nearest_mean_accuracy(scatter: ImageScatter, sample: Sample) -> float:
    """Share of the sampled images that lie nearest (Euclidean) to the mean of their own class.

    The means are those of all images; exact where no more than SAMPLE images were seen.

    Source: Papyan, Han, Donoho 2020, "Prevalence of neural collapse", NC4.
    """
    nearest = _square_distances(sample.features.double(), scatter.class_mean).argmin(1)
    own = (scatter.present.cumsum(0) - 1)[sample.labels]
    return float((nearest == own).double().mean())


def data_separation(scatter: ImageScatter) -> float:
    """Return D = tr(S_W S_B^+), smaller where classes stand further apart; NaN for one class.

    Not invariant: S_B has rank K - 1, and its pseudo-inverse follows no affine map.

    Source: He and Su 2023, "A law of data separation in deep learning", PNAS 120(36).
    """
    return trace_quotient(scatter.within, scatter.factor)


def trace_quotient(within: Tensor, factor: Tensor) -> float:
    """Return tr(S_W S_B^+) with S_B = factor^T factor."""
    _, lengths, directions = torch.linalg.svd(factor, full_matrices=False)
    kept = lengths > BETWEEN_CUT * lengths.max()
    if not bool(kept.any()):
        return math.nan
    along = directions[kept]
    spread = ((along @ within) * along).sum(1)
    return float((spread / lengths[kept] ** 2).sum())


def cdnv(scatter: ImageScatter) -> float:
    """Return class-distance normalised variance, mean over pairs of classes; NaN for one class.

        (v_a + v_b) / (2 distance(mean_a, mean_b)^2),   v_k = tr Sigma_k

    Of more than PAIRED classes, evenly spaced ones.

    Source: Galanti, Gyorgy, Hutter 2022, "On the role of neural collapse in transfer learning".
    """
    chosen = paired_classes(len(scatter.spread))
    if len(chosen) < 2:
        return math.nan
    near = 1 / _square_distances(scatter.class_mean[chosen], scatter.class_mean[chosen])
    near.fill_diagonal_(0)
    return float(scatter.spread[chosen] @ near.sum(1)) / (len(chosen) * (len(chosen) - 1))


def class_separation(scatter: ImageScatter) -> Tensor:
    """Return each class's distance from the nearest other, (all classes,); NaN without images.

    min_b distance(mean_a, mean_b) / sqrt((v_a + v_b) / 2)
    """
    apart = torch.full((len(scatter.present),), torch.nan, dtype=torch.float64)
    nearest = []
    step = max(1, BLOCK // max(1, len(scatter.spread)))
    for first in range(0, len(scatter.spread), step):
        rows = slice(first, first + step)
        distance = _square_distances(scatter.class_mean[rows], scatter.class_mean)
        distance.diagonal(first).fill_(torch.inf)
        spread = (scatter.spread[rows].unsqueeze(1) + scatter.spread) / 2
        nearest.append((distance / spread).min(1).values.sqrt())
    apart[scatter.present] = torch.cat(nearest)
    return apart


def paired_classes(classes: int) -> Tensor:
    """Choose the classes of which all pairs are measured: all, or PAIRED evenly spaced ones."""
    if classes <= PAIRED:
        return torch.arange(classes)
    return torch.linspace(0, classes - 1, PAIRED, dtype=torch.float64).round().long()


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute (A, B) distances; centred, so that the products cancel few digits."""
    centre = b.mean(0)
    a, b = a - centre, b - centre
    product = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return (product + a.square().sum(1, keepdim=True)).clamp(min=0)


def class_information(histogram: Tensor) -> Tensor:
    """Return the mutual information of class and bin, bits, (C,), from counts (K, C, B).

        I = sum_kb p(k, b) log2( p(k, b) / (p(k) p(b)) )

    The plug-in estimate: with n values in B bins it is too large by about (K-1)(B-1) / (2 n ln 2).

    Source: Shannon 1948; the bias: Miller 1955, "Note on the bias of information estimates".
    """
    return torch.cat([_information(part) for part in channel_blocks(histogram)])


def _information(counts: Tensor) -> Tensor:
    joint = counts.double() / counts.sum((0, 2), keepdim=True).clamp(min=1)
    entropies = [-(p * p.clamp(min=1e-300).log2()) for p in (joint, joint.sum(2), joint.sum(0))]
    return entropies[1].sum(0) + entropies[2].sum(1) - entropies[0].sum((0, 2))


def gate_information(active: Tensor, count: Tensor) -> Tensor:
    """Return the mutual information of class and [y > 0], bits per channel.

        I = H(sum_k p_k f_k) - sum_k p_k H(f_k),   f_k = active_k / n_k,   p_k = n_k / n

    Args:
        active: (K, ...), values above the threshold per class.
        count: (K,), values per class.
    """
    n = count.double().reshape(-1, *[1] * (active.dim() - 1))
    share = active / n.clamp(min=1)
    weight = n / n.sum().clamp(min=1)
    known = _entropy((weight * share).sum(0)) - (weight * _entropy(share)).sum(0)
    return known.clamp(min=0)  # not below, by rounding


def best_cut(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Find the best single threshold on z: its information in bits (C,), and its bin edge.

    The largest gate information over the B - 1 inner edges of the histogram (K, C, B); edge b
    lies between bins b - 1 and b. Source: Fayyad and Irani 1993, "Multi-interval discretization".
    """
    bits, edges = [], []
    for part in channel_blocks(histogram):
        above = part.flip(2).cumsum(2).flip(2)[:, :, 1:]
        found = gate_information(above, part[:, 0].sum(1)).max(1)
        bits.append(found.values)
        edges.append(found.indices + 1)
    return torch.cat(bits), torch.cat(edges)


def channel_blocks(table: Tensor) -> Sequence[Tensor]:
    """Split (K, C, ...) into blocks of channels, so that float64 copies stay small."""
    each = table.numel() // max(1, table.shape[1])
    blocks: Sequence[Tensor] = table.split(max(1, BLOCK // max(1, each)), 1)
    return blocks


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy of a yes with probability p, in bits."""
    p = p.double()
    nats: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return nats / math.log(2)


def excess(counts: Tensor, equal: int, pairs: int) -> float:
    """Return r, by how much more often two images of one batch share their class than by chance.

        r = (q - sum p_k^2) / (1 - sum p_k^2),   q = equal / pairs

    0 for shuffled batches of a large set, 1 for batches of one class; NaN without pairs.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    chance = float((share**2).sum())
    if pairs == 0 or chance >= 1:
        return math.nan
    return (equal / pairs - chance) / (1 - chance)


def predicted_signal(r: float, images: int, batches: int) -> float:
    """Return (1 - r)(1 - 1/m), the share of class signal that centred batches of m leave.

    Batches of several sizes: 1/m is batches / images, exactly. The class means of a channel, less
    the overall mean, keep this share in training mode; from labels alone.
    """
    return (1 - r) * (1 - batches / images) if images else math.nan


def measured_signal(centred: Tensor, count: Tensor, mean: Tensor, var: Tensor) -> float:
    """Measure what `predicted_signal` predicts, from features of which each batch's mean was taken.

        sum_ck p_k c_kc d_kc / v_c  over  sum_ck p_k d_kc^2 / v_c

    with d the class means less the overall mean, c the same of the centred features, v the
    variance; NaN where the classes have the same means.

    Args:
        centred: (K, C), sums per class of the values less the mean of their batch.
        count: (K,), values per class.
        mean: (K, C), class means.
        var: (C,), of all values.
    """
    share = count / count.sum().clamp(min=1)
    offset = mean - share @ mean
    left = centred / count.clamp(min=1).unsqueeze(1)
    inverse = torch.where(var > 0, 1 / var, 0.0)
    whole = float(share @ (offset**2 * inverse).sum(1))
    return float(share @ (left * offset * inverse).sum(1)) / whole if whole else math.nan


def chance_spread(active: Tensor, rate_square: Tensor, count: Tensor, images: int) -> float:
    """Return by how much activation rates of K equal classes would differ; mean of channels.

    The expected range of K means of n_k rates each, with the deviation of the images' rates
    within classes: 2 Phi^-1((K - 3/8) / (K + 1/4)) sqrt(var mean(1 / n_k)). NaN where no class
    has two images. Source: Blom 1958, "Statistical estimates and transformed beta-variables".

    Args:
        active: (K, C), values above 0; classes with images only.
        rate_square: (C,), sum over values of the squared rate of their image.
        count: (K,), values.
        images: how many.
    """
    by_class = count * (images / count.sum())
    free = images - len(by_class)
    if free < 1:
        return math.nan
    between = count @ (active / count.unsqueeze(1)) ** 2
    var = ((rate_square - between) * (images / count.sum() / free)).clamp(min=0)
    top = torch.tensor((len(count) - 0.375) / (len(count) + 0.25), dtype=torch.float64)
    ranges = 2 * torch.special.ndtri(top) * (var * (1 / by_class).mean()).sqrt()
    return float(ranges.mean())


def gate(gamma: Tensor, beta: Tensor) -> Tensor:
    """Return the gate (C,), -beta / gamma: y > 0 where z > gate (<, gamma < 0); NaN at gamma 0."""
    return torch.where(gamma != 0, -beta / gamma, torch.nan)
