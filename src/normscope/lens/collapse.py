"""The neural-collapse set, on the features that the head of a network reads.

Source: Papyan, Han, Donoho 2020, "Prevalence of neural collapse during the terminal phase of deep
learning training", PNAS 117(40).
"""

import torch
from torch import Tensor, nn

from normscope.lens import measures
from normscope.lens.images import Sample
from normscope.lens.measures import ImageScatter
from normscope.records import Collapse


def collapse(
    layer: str, scatter: ImageScatter, sample: Sample, head: tuple[Tensor, Tensor] | None
) -> Collapse | None:
    """Measure how far the last layer's features collapsed; None with fewer than two classes.

    With M the K class means less their (unweighted) mean:

        NC1  tr(S_W S_B^+) / K, with S_B weighted by the share of each class, and unweighted
        NC2  std/mean of |M_k|;  mean |cos(M_a, M_b) + 1/(K-1)|;
             || MM^T / |MM^T|_F - (I - 11^T/K) / sqrt(K-1) ||_F
        NC3  the same distance for W M^T
        NC4  share of images whose highest logit is their nearest class mean

    NC3 and NC4 are NaN without a linear head W, b of K rows over these features. Of more classes
    than `measures.PAIRED`, NC2 and NC3 take evenly spaced ones.
    """
    mean = scatter.class_mean
    classes = len(mean)
    if classes < 2:
        return None
    offsets = mean - mean.mean(0)
    chosen = measures.paired_classes(classes)
    few, count = offsets[chosen], len(chosen)
    lengths = few.norm(dim=1)
    unit = few / lengths.clamp(min=1e-300).unsqueeze(1)
    apart = (unit @ unit.T + 1 / (count - 1)).abs()
    duality = agreement = float("nan")
    if head is not None and head[0].shape == mean.shape and bool(scatter.present.all()):
        weight, bias = (t.double() for t in head)
        duality = _from_simplex(weight[chosen] @ few.T)
        features = sample.features.double()
        nearest = torch.cdist(features, mean).argmin(1)
        agreement = float(((features @ weight.T + bias).argmax(1) == nearest).double().mean())
    return Collapse(
        layer=layer,
        within=measures.data_separation(scatter) / classes,
        within_unweighted=measures.trace_quotient(scatter.within, offsets / classes**0.5) / classes,
        norms=float(lengths.std(correction=0) / lengths.mean()),
        angles=float((apart.sum() - apart.trace()) / (count * (count - 1))),
        simplex=_from_simplex(few @ few.T),
        duality=duality,
        agreement=agreement,
    )


def find_head(model: nn.Module, classes: int, channels: int) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the last linear layer, if it maps so many channels to so many classes."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear or tuple(linear[-1].weight.shape) != (classes, channels):
        return None
    weight = linear[-1].weight.detach().double().cpu()
    bias: Tensor | None = linear[-1].bias  # None where it was left out
    return weight, weight.new_zeros(classes) if bias is None else bias.detach().double().cpu()


def _from_simplex(gram: Tensor) -> float:
    """Return the distance of a (K, K) matrix, scaled to length 1, from that of a simplex."""
    classes = len(gram)
    simplex = torch.eye(classes, dtype=gram.dtype) - 1 / classes
    return float((gram / gram.norm() - simplex / (classes - 1) ** 0.5).norm())
