"""What a pass takes: images that are sampled, channels that have histograms, bytes."""

from torch import Tensor

from normscope.lens.statistics import joint_channels
from normscope.lens.sweep import BINS
from normscope.probe import Norm

SAMPLE = 2048  # images whose features are kept for nearest-class-mean accuracy, at most
SAMPLE_BYTES = 24 << 20  # that these features may take, over all layers
HISTOGRAM_BYTES = 64 << 20  # that the histograms of all layers may take
FEWEST = 4  # channels of a layer that have a histogram, at least
STAGES = 3  # that are measured of a layer: input, scaled and shifted, activated

Channels = dict[str, int]  # of each layer that is followed, by name


def layer_channels(norms: list[Norm]) -> Channels:
    """Count the channels of each layer that is followed; 0 where only its input tells."""
    found = {}
    for norm in norms:
        if norm.skipped is None:
            tables = (getattr(norm.module, name, None) for name in ("running_mean", "weight"))
            table = next((t for t in tables if isinstance(t, Tensor)), None)
            known = getattr(norm.module, "num_features", getattr(norm.module, "num_channels", 0))
            found[norm.name] = int(known) if table is None else table.shape[-1]
    return found


def histogram_channels(channels: Channels, classes: int) -> Channels:
    """Count the channels of each layer that have a histogram: all, if HISTOGRAM_BYTES hold them.

    Of more, the same share of every layer; `statistics.nested_channels` says which.
    """
    share = HISTOGRAM_BYTES / max(1, sum(channels.values()) * classes * BINS * 4)
    if share >= 1:
        return channels
    return {name: min(c, max(FEWEST, int(c * share))) for name, c in channels.items()}


def sample_size(channels: Channels) -> int:
    """Return how many images may be sampled."""
    each = sum(len(joint_channels(c)) for c in channels.values()) * STAGES * 4
    return max(16, min(SAMPLE, SAMPLE_BYTES // max(1, each)))


def bytes_needed(channels: Channels, classes: int) -> int:
    """Add up what layers of so many channels take, if an activation follows each."""
    values = sum(channels.values())
    kept = sum(histogram_channels(channels, classes).values())
    joint = [len(joint_channels(c)) for c in channels.values()]
    # means per stage and the variance of the input, float64; activations, int32; histograms
    by_class = values * ((STAGES + 1) * 8 + 4) + kept * (BINS * 4 + 8)
    images = sum(joint) * STAGES * 4 * sample_size(channels)
    return classes * by_class + sum(j * j for j in joint) * STAGES * 8 + images
