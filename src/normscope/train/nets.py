"""Small networks that differ in their normalisation only."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.errors import InputError
from normscope.layers.conditional import current_condition
from normscope.train import ranks
from normscope.train.data import Data, Given

WIDTH, DEPTH = 64, 3  # of the mlp
CHANNELS, STRIDES = (16, 32, 64), (1, 2, 2)  # of the cnn

BATCH = {1: layers.BatchNorm1d, 2: layers.BatchNorm2d}
CONDITIONAL = {1: layers.ConditionalBatchNorm1d, 2: layers.ConditionalBatchNorm2d}
GHOST = {1: layers.GhostBatchNorm1d, 2: layers.GhostBatchNorm2d}
MODE = {1: layers.ModeNorm1d, 2: layers.ModeNorm2d}
RENORM = {1: layers.BatchRenorm1d, 2: layers.BatchRenorm2d}


@dataclass(frozen=True)
class Norm:
    """A normalisation that a network can be built with.

    Attributes:
        make: (rank, channels, conditions) -> layer; rank 1 is (N, C), 2 is (N, C, H, W).
        given: what each sample's condition is, where the network is handed one.
        separate: one whole network per condition, each trained on its own samples.
    """

    make: Callable[[int, int, int], nn.Module]
    given: Given | None = None
    separate: bool = False

    @property
    def leaks(self) -> bool:
        """Whether the network is handed the answer."""
        return self.given == "label"


NORMS: dict[str, Norm] = {
    "batch": Norm(lambda rank, c, _: BATCH[rank](c)),
    "none": Norm(lambda *_: nn.Identity()),
    "noaffine": Norm(lambda rank, c, _: BATCH[rank](c, affine=False)),
    "per_class": Norm(lambda rank, c, k: CONDITIONAL[rank](c, k, missing="pooled"), "label"),
    "conditional": Norm(lambda rank, c, k: CONDITIONAL[rank](c, k), "domain"),
    "shared": Norm(lambda rank, c, k: CONDITIONAL[rank](c, k, stats="shared"), "domain"),
    "separate": Norm(lambda rank, c, _: BATCH[rank](c), "domain", separate=True),
    "ghost": Norm(lambda rank, c, _: GHOST[rank](c, ghost_size=16)),
    "mode": Norm(lambda rank, c, _: MODE[rank](c, num_modes=2)),
    "renorm": Norm(lambda rank, c, _: RENORM[rank](c)),
    "layer": Norm(lambda _, c, __: nn.GroupNorm(1, c)),
}
NETS = ("mlp", "cnn")


def check_names(net: str, norm: str) -> None:
    """Whether there are such a net and such a norm.

    Raises:
        InputError: one that there is not.
    """
    if net not in NETS:
        raise InputError(f"there is no net {net!r}; there are {', '.join(NETS)}")
    if norm not in NORMS:
        raise InputError(f"there is no norm {norm!r}; there are {', '.join(NORMS)}")


@dataclass(frozen=True)
class Blueprint:
    """All that decides a network's modules; enough to build it again for saved weights.

    Attributes:
        net: mlp or cnn.
        norm: a key of NORMS.
        shape: of one sample, (C,) or (C, H, W).
        classes: K.
        domains: D, 0 where the data have none.

    Raises:
        InputError: an unknown net or norm, or one that these data do not fit.
    """

    net: str
    norm: str
    shape: tuple[int, ...]
    classes: int
    domains: int

    def __post_init__(self) -> None:
        check_names(self.net, self.norm)
        if self.net == "cnn" and len(self.shape) != 3:
            raise InputError("the net cnn needs images (N, C, H, W); these are tables, take mlp")
        if NORMS[self.norm].given == "domain" and self.domains < 2:
            raise InputError(
                f"the norm {self.norm} needs domains; name some, as in "
                "--domains clean,contrast,invert,noise"
            )

    def build(self, seed: int) -> nn.Module:
        """The network with fresh weights; the same weights for the same seed under every norm."""
        norm = NORMS[self.norm]
        if norm.separate:
            return Separate([self._build_one(norm, seed) for _ in range(self.domains)])
        return self._build_one(norm, seed)

    def _build_one(self, norm: Norm, seed: int) -> nn.Module:
        conditions = self.classes if norm.given == "label" else self.domains
        rank = 1 if self.net == "mlp" else 2
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        # all weights are drawn before the first norm, whose own start may draw as well
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps, head = self._maps()
            for i, linear in enumerate(maps, start=1):
                width = int(linear.weight.shape[0])
                modules[f"linear{i}"] = linear
                modules[f"norm{i}"] = norm.make(rank, width, conditions)
                modules[f"relu{i}"] = nn.ReLU()
        if rank == 2:
            modules["pool"] = nn.AdaptiveAvgPool2d(1)
            modules["flatten"] = nn.Flatten()
        else:
            modules = OrderedDict(flatten=nn.Flatten()) | modules
        return nn.Sequential(modules | {"head": head})

    def _maps(self) -> tuple[list[nn.Linear | nn.Conv2d], nn.Linear]:
        """The linear maps before each norm and the last one, started for ReLU (He et al. 2015)."""
        maps: list[nn.Linear | nn.Conv2d]
        if self.net == "mlp":
            widths = [int(torch.Size(self.shape).numel())] + [WIDTH] * DEPTH
            maps = [nn.Linear(*pair) for pair in pairwise(widths)]
        else:
            widths = [self.shape[0], *CHANNELS]
            maps = [
                nn.Conv2d(a, b, 3, stride, padding=1)
                for a, b, stride in zip(widths, CHANNELS, STRIDES, strict=False)
            ]
        head = nn.Linear(widths[-1], self.classes)
        for linear in maps:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.xavier_normal_(head.weight)
        for linear in (*maps, head):
            assert linear.bias is not None, "made with a bias"
            nn.init.zeros_(linear.bias)
        return maps, head


class Separate(nn.Module):
    """One network per condition; each sample goes through that of its own.

    Args:
        nets: D networks.

    forward(x) reads the condition from `normscope.condition`.

    Raises:
        InputError: no condition is given.
    """

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K) logits."""
        ids = current_condition()
        if ids is None:
            raise InputError("no condition: call the model inside `with normscope.condition(ids)`")
        belongs = ids == torch.arange(len(self.nets), device=ids.device).unsqueeze(1)
        present = belongs.any(1)
        if self.training:  # layers that normalise over ranks wait for those without samples
            present = ranks.anywhere(present)
        y: Tensor | None = None
        for net, is_present, mine in zip(self.nets, present.tolist(), belongs, strict=True):
            if is_present:
                rows = mine.nonzero()[:, 0]
                part = net(x[rows])
                y = part.new_zeros(len(x), part.shape[1]) if y is None else y
                y = y.index_copy(0, rows, part)
        if y is None:
            raise InputError(f"no sample has a condition in 0..{len(self.nets) - 1}")
        return y


def blueprint(net: str, norm: str, data: Data) -> Blueprint:
    """The design of a network for `data`; raises InputError as `Blueprint`."""
    return Blueprint(net, norm, data.shape, len(data.classes), len(data.domains))


def build(net: str, norm: str, data: Data, seed: int) -> nn.Module:
    """A network for `data`: mlp (3 hidden layers of 64) or cnn (3 convolutions, pooled).

    Every hidden layer is `linear{i}`, `norm{i}`, `relu{i}`; without normalisation `norm{i}` is an
    identity, so that places correspond. The linear weights depend on the seed alone.

    Raises:
        InputError: an unknown net or norm, tables for the cnn, domains needed but absent.
    """
    return blueprint(net, norm, data).build(seed)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules at the places of normalisation, identities included, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2].startswith("norm")
    }
