"""Give each sample's own statistics a weight at inference, and take it back."""

from collections.abc import Iterable

from torch import nn

from normscope.conversion import Conversion, convert
from normscope.layers.own import checked_weight


def own_weight(model: nn.Module, layers: str | Iterable[str], w: float) -> Conversion:
    """Let batch norms mix each sample's own statistics, with weight w, into the running ones.

        mean_n = w m_n + (1 - w) running_mean
        var_n = w v_n + (1 - w) running_var + w (1 - w) (m_n - running_mean)^2

    For models that were trained with small batches, in which each sample was a good part of its
    own statistics. No data and no training are needed to do it, held-out data to choose w. The
    layers become `EvalNorm*d` in place: parameters, buffers, hooks and optimizers stay, training
    stays batch norm, and w is saved in the state_dict. See `normscope.layers.EvalNorm1d`.

    >>> changed = doctor.own_weight(model, ["encoder.*"], 0.1)
    >>> changed.revert()  # the layers of before

    Args:
        model: any module with batch norms of torch or normscope; it is changed.
        layers: patterns of layer names, as "encoder.*"; empty: all batch norms.
        w: from 0, which is batch norm to the bit, to 1, which is instance norm.

    Raises:
        InputError: w outside [0, 1], or a pattern that fits nothing.
        ModelError: a layer that cannot be changed, or no layer is there; nothing was changed.

    Source: Singh and Shrivastava 2019, "EvalNorm: estimating batch normalization statistics for
    evaluation"; Summers and Dinneen 2020, "Four things everyone should know to improve batch
    normalization".
    """
    patterns = [layers] if isinstance(layers, str) else layers
    return convert(model, "evalnorm", only=patterns, own_weight=checked_weight(w))
