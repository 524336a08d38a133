"""The measures of the lens: pure functions of what was accumulated, each with its source.

Two families. *Information*: eta2 and the LDA fraction do not change under any map y = a x + b per
channel with a != 0, so batch norm cannot change them. *Geometry*: nearest-class-mean accuracy and
the condition number do change; they are what batch norm improves. Source of the table of
invariances: Fukunaga 1990, "Introduction to statistical pattern recognition", chapter 10.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.lens.accumulate import Sample, Scatter
from normscope.moments import Moments

# an eigenvalue of the correlation matrix (their mean is 1) counts from here on: the square of
# scikit-learn's tol=1e-4 on singular values
RANK_CUT = 1e-8
ABOVE_ROUNDING = 1e5  # and only this far above the variance of the rounding of the values

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


def gate(gamma: Tensor, beta: Tensor) -> Tensor:
    """Gate (C,), -beta / gamma: y > 0 where z > gate (z < gate where gamma < 0); NaN at gamma 0."""
    return torch.where(gamma != 0, -beta / gamma, torch.nan)
