"""Peers: other implementations, each as two calls, forward and backward of its result.

Plain layers are batch norm and ReLU; where there are groups, batch norm alone.
"""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope
from normscope.bench.cases import tensors
from normscope.bench.models import step
from normscope.records.bench import Setting

EPS = 1e-5
DEPTH = 20  # layers of the network


class Peer(NamedTuple):
    """A training step: `backward(forward())`; `statistics()` are mean and biased variance."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    in_torch: bool = True  # whether torch's allocator knows what it allocates


class AbsentError(Exception):
    """Raised for a peer that cannot run here, with the reason."""


Module = Callable[[Tensor], Tensor]


def names(setting: Setting, *, quick: bool = False) -> list[str]:
    """List the peers that take part."""
    if setting.part in ("models", "sweep", "inference"):
        return ["normscope", "torch"]
    if setting.part == "network":
        return ["normscope", "normscope_recompute", "torch", "torch_inplace"]
    if setting.part == "groups":
        loops = ["mask_loop", "chunk_loop", "reshape", "compiled_groups"]
        return ["normscope", "normscope_one", "torch", *loops]
    return ["normscope", "torch", "torch_inplace", "compiled", *([] if quick else ["flax"])]


def build(name: str, setting: Setting) -> Peer:
    """Return a peer with tensors of its own.

    Raises:
        AbsentError: what it needs is not installed.
    """
    if setting.model:
        return Peer(*step(setting, fused=name == "normscope"))
    x, dy = tensors(setting)
    if name == "flax":
        return _flax(setting, x, dy)
    call = _network(name, setting) if setting.part == "network" else _module(name, setting)

    if not setting.training:
        return _inference(call, x.detach())

    def forward() -> Tensor:
        x.grad = None
        return call(x)

    return Peer(forward, lambda y: y.backward(dy))


def _inference(call: Any, x: Tensor) -> Peer:
    call.eval()

    def forward() -> Tensor:
        with torch.no_grad():
            return call(x)  # type: ignore[no-any-return]

    return Peer(forward, lambda y: None)


def _module(name: str, setting: Setting) -> Module:
    c, k, n = setting.shape[1], setting.groups, setting.shape[0]
    grouped = setting.part == "groups"
    if name == "normscope_one" or (name == "normscope" and not grouped):
        return cast(Module, layer(normscope, setting, act=None if grouped else "relu"))
    if name == "normscope":
        rank = _rank(setting)
        kind = getattr(normscope, f"ConditionalBatchNorm{rank}d")
        conditional = kind(c, k, affine="shared", dtype=table_dtype(setting))
        ids = torch.arange(n) % k
        return lambda x: conditional(x, ids)
    if name == "mask_loop":
        return mask_loop(_several(setting), torch.arange(n) % k)
    if name == "chunk_loop":
        return chunk_loop(_several(setting))
    if name == "reshape":
        return reshaped(setting)
    if name == "compiled_groups":
        return torch.compile(vectorised(setting), dynamic=False)
    plain: Any = layer(nn, setting)
    if grouped:
        return cast(Module, plain)
    whole = nn.Sequential(plain, nn.ReLU(inplace=name == "torch_inplace"))
    return torch.compile(whole, dynamic=False) if name == "compiled" else whole


def layer(source: Any, setting: Setting, **given: Any) -> Any:
    """Return `BatchNorm1d` or `BatchNorm2d` of torch or normscope."""
    kind = getattr(source, f"BatchNorm{_rank(setting)}d")
    return kind(setting.shape[1], eps=EPS, dtype=table_dtype(setting), **given)


def table_dtype(setting: Setting) -> torch.dtype:
    """Return the dtype of scale and shift: float32 for a 16-bit x, as in mixed precision."""
    return torch.float64 if setting.dtype == "float64" else torch.float32


def _rank(setting: Setting) -> int:
    return 1 if len(setting.shape) < 4 else 2


def _several(setting: Setting) -> nn.ModuleList:
    return nn.ModuleList(layer(nn, setting) for _ in range(setting.groups))


def mask_loop(layers: nn.ModuleList, ids: Tensor) -> Module:
    """Pass every group through a layer of its own, picked out and put back by a mask."""

    def forward(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        for k, one in enumerate(layers):
            here = ids == k
            y[here] = one(x[here])
        return y

    return forward


def chunk_loop(layers: nn.ModuleList) -> Module:
    """Sort samples by group and put every chunk through a layer of its own."""
    return lambda x: torch.cat(
        [one(part) for one, part in zip(layers, x.chunk(len(layers)), strict=True)]
    )


def reshaped(setting: Setting) -> Module:
    """Take groups as channels of one batch norm, as MoCo's shuffled one does; equal sizes only.

    Scale and shift are repeated for every group.
    """
    k, (n, c, *rest) = setting.groups, setting.shape
    weight = nn.Parameter(torch.ones(c, dtype=table_dtype(setting)))
    bias = nn.Parameter(torch.zeros(c, dtype=table_dtype(setting)))
    mean, var = torch.zeros(k * c), torch.ones(k * c)

    def forward(x: Tensor) -> Tensor:
        as_channels = x.reshape(n // k, k * c, *rest)
        affine = weight.repeat(k), bias.repeat(k)
        y = F.batch_norm(as_channels, mean, var, *affine, training=True, eps=EPS)
        return y.view(x.shape)

    return forward


def vectorised(setting: Setting) -> Module:
    """Normalise groups without a loop: sums per sample, added up by group, picked per sample."""
    k, (n, c, *rest) = setting.groups, setting.shape
    ids = torch.arange(n) % k
    weight, bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
    count = n // k
    for size in rest:
        count *= size
    axes = tuple(range(2, 2 + len(rest)))
    wide = (n, c, *[1] * len(rest))

    def by_group(values: Tensor) -> Tensor:
        total = torch.zeros(k, c, dtype=values.dtype).index_add(0, ids, values.sum(axes))
        return (total / count)[ids].view(wide)

    def forward(x: Tensor) -> Tensor:
        off = x - by_group(x)
        xhat = off * torch.rsqrt(by_group(off * off) + EPS)
        return xhat * weight.view(wide[1:]) + bias.view(wide[1:])

    return forward


def _network(name: str, setting: Setting) -> Module:
    """Build convolution, batch norm and ReLU, twenty times."""
    c = setting.shape[1]
    parts: list[nn.Module] = []
    for _ in range(DEPTH):
        parts.append(nn.Conv2d(c, c, 3, padding=1, bias=False))
        if name.startswith("normscope"):
            parts.append(layer(normscope, setting, act="relu"))
        else:
            parts += [layer(nn, setting), nn.ReLU(inplace=name == "torch_inplace")]
    model = nn.Sequential(*parts)
    if setting.layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(x: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        with normscope.recompute() if name == "normscope_recompute" else nullcontext():
            return model(x)  # type: ignore[no-any-return]

    return forward


def _flax(setting: Setting, x: Tensor, dy: Tensor) -> Peer:
    """Build Flax's batch norm and ReLU under jax.jit, on as many threads as JAX takes."""
    if find_spec("flax") is None or find_spec("jax") is None:
        raise AbsentError("flax is not installed")
    if setting.dtype == "float64" or setting.threads != torch.get_num_threads():
        raise AbsentError("jax computes in float32 unless told otherwise, on threads of its own")
    import jax
    from flax import linen

    axis = -1 if setting.layout == "channels_last" else 1
    dtype = jax.numpy.dtype(setting.dtype)  # of the result; scale and shift stay float32
    norm = linen.BatchNorm(use_running_average=False, axis=axis, epsilon=EPS, dtype=dtype)

    def given(t: Tensor) -> Any:
        t = t.detach().movedim(1, -1) if axis == -1 else t.detach()
        return jax.numpy.asarray(t.float().contiguous().numpy()).astype(setting.dtype)

    values, gradient = given(x), given(dy)
    variables = norm.init(jax.random.PRNGKey(0), values)

    def function(params: Any, inputs: Any) -> Any:
        y, state = norm.apply({**variables, "params": params}, inputs, mutable=["batch_stats"])
        return linen.relu(y), state

    with_pullback = jax.jit(lambda p, v: jax.vjp(function, p, v, has_aux=True))
    pull = jax.jit(lambda pullback, g: pullback(g))
    return Peer(
        lambda: jax.block_until_ready(with_pullback(variables["params"], values)),
        lambda found: jax.block_until_ready(pull(found[1], gradient)),
        in_torch=False,
    )
