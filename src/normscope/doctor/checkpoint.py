"""A checkpoint without its model: as much of a model as its batch norms are."""

from collections.abc import Mapping

from torch import Tensor, nn

from normscope.doctor.state import EPS, MOMENTUM, of_checkpoint


def skeleton(
    state: Mapping[str, Tensor], momentum: float = MOMENTUM, eps: float = EPS
) -> nn.Module:
    """Build modules that hold the batch norms of a checkpoint alone, under the same names.

    Statistics by condition are left out.

    Args:
        state: named tensors.
        momentum: of training, which a checkpoint does not say.
        eps: likewise.

    Raises:
        ModelError: as `state.of_checkpoint`.
    """
    root = nn.Module()
    for layer in of_checkpoint(state):
        if layer.mean.dim() != 1:
            continue
        prefix = next(p for p in (f"{layer.name}.", "") if f"{p}running_mean" in state)
        norm = nn.BatchNorm1d(len(layer.mean), eps, momentum, affine=False)
        norm.running_mean = state[f"{prefix}running_mean"].clone()
        norm.running_var = state[f"{prefix}running_var"].clone()
        tracked = state.get(f"{prefix}num_batches_tracked")
        norm.num_batches_tracked = None if tracked is None else tracked.clone()
        for name in ("weight", "bias"):
            value = state.get(f"{prefix}{name}")
            fits = value is not None and value.shape == norm.running_mean.shape
            if fits and value is not None and value.is_floating_point():
                setattr(norm, name, nn.Parameter(value.clone()))
        parent, (*path, last) = root, layer.name.split(".")
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, norm)
    return root.eval()


def merged(state: Mapping[str, Tensor], fixed: nn.Module) -> dict[str, Tensor]:
    """Return the checkpoint with the tensors of a skeleton in their places."""
    own = fixed.state_dict()
    return {
        name: own.get(name, own.get(f"BatchNorm.{name}", value)) for name, value in state.items()
    }
