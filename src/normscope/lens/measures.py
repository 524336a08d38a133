"""The measures of the lens: pure functions of what was accumulated, each with its source.

Two families. *Information*: eta2 and the LDA fraction do not change under any map y = a x + b per
channel with a != 0, so batch norm cannot change them. *Geometry*: nearest-class-mean accuracy and
the condition number do change; they are what batch norm improves. Source of the table of
invariances: Fukunaga 1990, "Introduction to statistical pattern recognition", chapter 10.
"""

import torch
from torch import Tensor

from normscope.lens.accumulate import Sample, Scatter
from normscope.moments import Moments

# an eigenvalue of the correlation matrix (their mean is 1) counts from here on; below it float32
# rounding speaks louder than the data. The square of scikit-learn's tol=1e-4 on singular values
RANK_CUT = 1e-8

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


def lda_fraction(scatter: Scatter, live: Tensor) -> tuple[float, int]:
    """J = tr(S_T^+ S_B) / (K - 1) over the live channels, and the rank of S_T used for it.

    The mean squared canonical correlation between features and classes, in [0, 1]: 1 where a
    linear reader separates all classes without error. K counts the classes that have images.
    Every channel is first scaled to variance 1, so that neither J nor the rank depends on scale;
    directions whose eigenvalue is below RANK_CUT are left out. NaN without a live channel.

    Source: Pillai 1955, "Some new test criteria in multivariate analysis" (the trace), divided by
    its largest value.
    """
    classes = int((scatter.count > 0).sum())
    if classes < 2 or not bool(live.any()):
        return float("nan"), 0
    _, s_t, factor = total(scatter)
    scale = s_t.diagonal()[live].rsqrt()
    correlation = s_t[live][:, live] * scale * scale.unsqueeze(1)
    values, vectors = torch.linalg.eigh(correlation)
    kept = values > RANK_CUT
    whitened = (factor[:, live] * scale) @ vectors[:, kept] * values[kept].rsqrt()
    return float((whitened**2).sum() / (classes - 1)), int(kept.sum())


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
