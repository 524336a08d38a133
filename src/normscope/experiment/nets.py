"""Small networks that differ only in their normalisation."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.errors import InputError
from normscope.experiment import ranks
from normscope.experiment.data import Data, Given
from normscope.layers.conditional import current_condition

NETS = ("mlp", "cnn")
WIDTH, DEPTH = 64, 3  # of the mlp
CHANNELS, STRIDES = (16, 32, 64), (1, 2, 2)  # of the cnn


Make = Callable[[int, int, int], nn.Module]  # rank, channels, conditions -> layer


class Norm(NamedTuple):
    """A normalisation that a network can be built with."""

    make: Make  # rank 1 is (N, C), 2 is (N, C, H, W)
    given: Given | None = None  # what each sample's condition is, if the network is handed one
    separate: bool = False  # one whole network per condition, each trained on its own samples
    affine_only: bool = False  # the weights stay as they were drawn; gamma and beta learn

    @property
    def leaks(self) -> bool:
        """Whether the network gets the label as input."""
        return self.given == "label"


def _layer(name: str, **options: Any) -> Make:
    """Make layers of one family, such as BatchNorm1d and BatchNorm2d."""

    def make(rank: int, channels: int, conditions: int) -> nn.Module:
        sizes = (channels, conditions) if name == "ConditionalBatchNorm" else (channels,)
        module: nn.Module = getattr(layers, f"{name}{rank}d")(*sizes, **options)
        return module

    return make


NORMS = {
    "batch": Norm(_layer("BatchNorm")),
    "none": Norm(lambda *_: nn.Identity()),
    "noaffine": Norm(_layer("BatchNorm", affine=False)),
    "affine_only": Norm(_layer("BatchNorm"), affine_only=True),
    "per_class": Norm(_layer("ConditionalBatchNorm", missing="pooled"), "label"),
    "conditional": Norm(_layer("ConditionalBatchNorm"), "domain"),
    "shared": Norm(_layer("ConditionalBatchNorm", stats="shared"), "domain"),
    "separate": Norm(_layer("BatchNorm"), "domain", separate=True),
    "ghost": Norm(_layer("GhostBatchNorm", ghost_size=16)),
    "mode": Norm(_layer("ModeNorm", num_modes=2)),
    "renorm": Norm(_layer("BatchRenorm")),
    "layer": Norm(lambda _, channels, __: nn.GroupNorm(1, channels)),
}


def standing_for(norms: Sequence[str]) -> str:
    """Choose the norm whose network represents a run: with layers, if possible without labels."""
    able = [norm for norm in norms if norm != "none"]
    return min(able, key=lambda norm: NORMS[norm].leaks) if able else norms[0]


def check_names(net: str, norm: str) -> None:
    """Raise InputError unless there are such a net and such a norm."""
    if net not in NETS:
        raise InputError(f"there is no net {net!r}; there are {', '.join(NETS)}")
    if norm not in NORMS:
        raise InputError(f"there is no norm {norm!r}; there are {', '.join(NORMS)}")


@dataclass(frozen=True)
class ModelConfig:
    """All that decides a network's modules; enough to build it again for saved weights.

    Every hidden layer is `linear{i}`, `norm{i}`, `relu{i}`; without normalisation `norm{i}` is an
    identity, so that places correspond. The linear weights depend on the seed alone. What does
    not learn has `requires_grad=False`. Raises InputError for an unknown net or norm, tables for
    the cnn, domains needed but absent, and a frozen head where the other weights learn.
    """

    net: str  # mlp (3 hidden layers of 64) or cnn (3 convolutions, pooled)
    norm: str  # a key of NORMS
    shape: tuple[int, ...]  # of one sample, (C,) or (C, H, W)
    classes: int  # K
    domains: int  # D, 0 where the data have none
    freeze_head: bool = False  # under affine_only: the output layer does not learn either

    def __post_init__(self) -> None:
        check_names(self.net, self.norm)
        if self.freeze_head and not NORMS[self.norm].affine_only:
            raise InputError(f"the head is frozen under affine_only alone, not under {self.norm}")
        if self.net == "cnn" and len(self.shape) != 3:
            raise InputError("the net cnn needs images (N, C, H, W); these are tables, take mlp")
        if NORMS[self.norm].given == "domain" and self.domains < 2:
            raise InputError(
                f"the norm {self.norm} needs domains; name some, as in "
                "--domains clean,contrast,invert,noise"
            )

    @classmethod
    def of(cls, net: str, norm: str, data: Data, *, freeze_head: bool = False) -> "ModelConfig":
        """Configure a network for `data`; only affine_only heeds `freeze_head`."""
        check_names(net, norm)
        frozen = freeze_head and NORMS[norm].affine_only
        return cls(net, norm, data.shape, len(data.classes), len(data.domains), frozen)

    def build(self, seed: int) -> nn.Module:
        """Build the network with fresh weights; the same for the same seed under every norm."""
        if NORMS[self.norm].separate:
            return Separate([self._build_one(seed) for _ in range(self.domains)])
        return self._build_one(seed)

    def _build_one(self, seed: int) -> nn.Module:
        norm = NORMS[self.norm]
        conditions = self.classes if norm.given == "label" else self.domains
        rank = 1 if self.net == "mlp" else 2
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        if rank == 1:
            modules["flatten"] = nn.Flatten()
        # all weights are drawn before the first norm, whose own start may draw as well
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps, head = self._maps()
            for i, linear in enumerate(maps, start=1):
                modules[f"linear{i}"] = linear
                modules[f"norm{i}"] = norm.make(rank, len(linear.weight), conditions)
                modules[f"relu{i}"] = nn.ReLU()
        if rank == 2:
            modules |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
        if norm.affine_only:
            for linear in [*maps, head] if self.freeze_head else maps:
                linear.requires_grad_(requires_grad=False)
        return nn.Sequential(modules | {"head": head})

    def _maps(self) -> tuple[list[nn.Linear | nn.Conv2d], nn.Linear]:
        """Build the linear maps before each norm and the last one (He et al. 2015)."""
        maps: list[nn.Linear | nn.Conv2d]
        if self.net == "mlp":
            widths = [int(torch.Size(self.shape).numel())] + [WIDTH] * DEPTH
            maps = [nn.Linear(*pair) for pair in pairwise(widths)]
        else:
            widths = [self.shape[0], *CHANNELS]
            maps = [
                nn.Conv2d(*pair, 3, stride, padding=1)
                for pair, stride in zip(pairwise(widths), STRIDES, strict=True)
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

    The condition is read from `normscope.condition`; without one forward raises InputError.
    """

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, K) logits."""
        ids = current_condition()
        if ids is None:
            raise InputError("no condition: call the model inside `with normscope.condition(ids)`")
        belongs = ids == torch.arange(len(self.nets), device=ids.device).unsqueeze(1)
        present = belongs.any(1)
        if self.training:  # layers that normalise over ranks wait for those without samples
            present = ranks.anywhere(present)
        if not bool(present.any()):
            raise InputError(f"no sample has a condition in 0..{len(self.nets) - 1}")
        chosen = [i for i, is_present in enumerate(present.tolist()) if is_present]
        rows = [belongs[i].nonzero()[:, 0] for i in chosen]
        part = torch.cat([self.nets[i](x[mine]) for i, mine in zip(chosen, rows, strict=True)])
        y: Tensor = part.new_zeros(len(x), part.shape[1]).index_copy(0, torch.cat(rows), part)
        return y


def build(net: str, norm: str, data: Data, seed: int) -> nn.Module:
    """Build a network for `data`; raises InputError as `ModelConfig`."""
    return ModelConfig.of(net, norm, data).build(seed)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules at the places of normalisation, identities included, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2].startswith("norm")
    }
