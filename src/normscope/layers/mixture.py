"""Soft groups: every sample belongs to several groups, by weights that sum to one."""

import torch
from torch import Tensor

from normscope.functional import moments
from normscope.kernels import reference
from normscope.kernels.problem import Affine, Epilogue, Problem, Statistics
from normscope.moments import Moments


def own_moments(x: Tensor, mask: Tensor | None) -> Moments:
    """Return each sample's moments: count (N,), mean and m2 (N, C); carries gradients."""
    samples = torch.arange(x.shape[0], device=x.device)
    return moments(x, samples, num_groups=x.shape[0], mask=mask)


def weighted_moments(own: Moments, share: Tensor) -> Moments:
    """Return the moments of K soft groups, (K,) and (K, C).

        n_k = sum_n w_nk,  mean_k = sum_n w_nk mean_n / n_k,
        m2_k = sum_n share_nk (m2_n + count_n (mean_n - mean_k)^2),   w_nk = share_nk count_n

    Args:
        own: of each sample.
        share: (N, K), not negative, rows that sum to one.
    """
    share = share.to(own.mean.dtype)
    weight = share * own.count.unsqueeze(1)
    count = weight.sum(0)
    safe = count.clamp(min=torch.finfo(count.dtype).tiny).unsqueeze(1)
    # about the mean of all, so that the squares below do not cancel
    center = weight.sum(1) @ own.mean / count.sum().clamp(min=1)
    off = own.mean - center
    mean = weight.T @ off / safe
    between = weight.T @ (off * off) - count.unsqueeze(1) * mean * mean
    return Moments(count, mean + center, share.T @ own.m2 + between.clamp(min=0))


def mixed(
    x: Tensor,
    own: Moments,
    share: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Return y = sum_k share_nk ((x - mean_k) rstd_k weight_k + bias_k), one pass for every K.

    A mixture of affine maps is one affine map per sample and channel. Tables are (K, C).
    """
    share = share.to(own.mean.dtype)
    scale = rstd * weight
    center = own.mean.detach().mean(0)
    slope = share @ scale  # (N, C)
    offset = (own.mean - center) * slope - share @ ((mean - center) * scale) + share @ bias.double()
    samples = torch.arange(x.shape[0], device=x.device)
    problem = Problem(x, samples, x.shape[0], mask)
    statistics, affine = Statistics(own.mean, slope), Affine(None, offset)
    return reference.normalize(problem, statistics, Epilogue(affine))
