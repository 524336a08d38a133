"""One suite over the family: each layer equals a loop of torch.nn.BatchNorm over its groups."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import normscope
from normscope.errors import InputError

RANKS = {1: (9, 3), 2: (9, 3, 2, 2), 3: (9, 3, 2, 1, 2)}
PLAIN = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
# groups of the nine samples: ragged, one empty, one singleton, shuffled
IDS = torch.tensor([3, 0, 2, 0, 2, 2, 0, 2, 2])


def ours(name: str, rank: int, *args: Any, **kwargs: Any) -> Any:
    return getattr(normscope, f"{name}{rank}d")(*args, **kwargs).double()


def sample(rank: int) -> Tensor:
    return torch.randn(RANKS[rank], dtype=torch.double, requires_grad=True)


def loop(
    x: Tensor, chunks: list[Tensor], weight: Tensor, bias: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Every chunk of sample numbers through torch's own batch norm, by itself."""
    y = torch.zeros_like(x)
    for chunk in chunks:
        if mask is None:
            y[chunk] = nn.functional.batch_norm(x[chunk], None, None, weight, bias, True)
        else:
            inside = mask[chunk]
            values = x[chunk].movedim(1, -1)[inside]
            z = torch.zeros_like(x[chunk].movedim(1, -1))
            z[inside] = nn.functional.batch_norm(values, None, None, weight, bias, True)
            y[chunk] = z.movedim(-1, 1)
    return y


def assert_same_derivatives(
    f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    y, z = f(x), g(x)
    torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-12)
    dy = torch.randn_like(y)
    (first,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (other,) = torch.autograd.grad(z, x, dy, create_graph=True)
    torch.testing.assert_close(first, other, rtol=1e-9, atol=1e-11)
    dd = torch.randn_like(first)
    torch.testing.assert_close(
        torch.autograd.grad(first, x, dd)[0],
        torch.autograd.grad(other, x, dd)[0],
        rtol=1e-8,
        atol=1e-10,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_ghost_equals_a_loop_over_chunks(rank: int, masked: bool) -> None:
    layer = ours("GhostBatchNorm", rank, 3, 4, momentum=1.0)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    x = sample(rank)
    mask = None
    if masked and rank > 1:
        mask = torch.rand(RANKS[rank][0], *RANKS[rank][2:]) < 0.8
    chunks = [torch.arange(0, 4), torch.arange(4, 9)]  # what remains joins the last chunk
    assert_same_derivatives(
        lambda x: layer(x, mask=mask),
        lambda x: loop(x, chunks, layer.weight, layer.bias, mask),
        x,
    )
    # one update per batch, from all chunks together
    whole = x.movedim(1, -1) if mask is None else x.movedim(1, -1)[mask]
    torch.testing.assert_close(layer.running_mean, whole.reshape(-1, 3).mean(0))
    torch.testing.assert_close(layer.running_var, whole.reshape(-1, 3).var(0, correction=1))
    plain = PLAIN[rank](3).double()
    plain.load_state_dict(layer.state_dict())
    one = x[:1].detach()
    torch.testing.assert_close(layer.eval()(one), plain.eval()(one))


def test_ghost_takes_any_batch_and_counts_it_once() -> None:
    layer = ours("GhostBatchNorm", 1, 3, 16)
    for n in range(2, 100):
        layer(torch.randn(n, 3).double())
    assert int(layer.num_batches_tracked) == 98
    one_each = ours("GhostBatchNorm", 1, 3, 1)
    assert one_each(torch.randn(5, 3).double()).isfinite().all()
    with pytest.raises(InputError, match="ghost_size is 0"):
        normscope.GhostBatchNorm1d(3, 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conditional_equals_a_loop_over_conditions(rank: int, masked: bool) -> None:
    layer = ours("ConditionalBatchNorm", rank, 3, 4, affine="none", track_running_stats=False)
    x = sample(rank)
    mask = None
    if masked and rank > 1:
        mask = torch.rand(RANKS[rank][0], *RANKS[rank][2:]) < 0.8
    chunks = [(k == IDS).nonzero().squeeze(1) for k in (0, 2)]

    def both(x: Tensor) -> Tensor:
        y = loop(x, chunks, torch.ones(3).double(), torch.zeros(3).double(), mask)
        if rank > 1:  # a singleton of several positions
            single = (IDS == 3).nonzero().squeeze(1)
            one, zero = torch.ones(3).double(), torch.zeros(3).double()
            y = y + loop(x, [single], one, zero, mask)
        return y

    assert_same_derivatives(lambda x: layer(x, IDS, mask), both, x)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_layer_with_everything_masked_in_equals_no_mask(rank: int) -> None:
    x = sample(rank)
    everything = torch.ones(RANKS[rank][0], dtype=torch.bool)
    layers = {
        "batch": ours("BatchNorm", rank, 3),
        "ghost": ours("GhostBatchNorm", rank, 3, 4),
        "renorm": ours("BatchRenorm", rank, 3, ramp=0),
        "mode": ours("ModeNorm", rank, 3, 2),
        "conditional": ours("ConditionalBatchNorm", rank, 3, 4),
    }
    for layer in layers.values():
        twin = copy.deepcopy(layer)
        more = (
            (IDS,) if isinstance(layer, normscope.layers.conditional._ConditionalBatchNorm) else ()
        )
        torch.testing.assert_close(twin(x, *more, mask=everything), layer(x, *more))
        for key, value in layer.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[key], value)


@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm", "ModeNorm", "ConditionalBatchNorm"])
def test_padding_is_no_data(name: str) -> None:
    """The same sequences, padded: values, statistics and gradients as without the padding."""
    args: dict[str, tuple[int, ...]] = {"ModeNorm": (3, 2), "ConditionalBatchNorm": (3, 2)}
    layer = ours(name, 1, *args.get(name, (3,)))
    twin = copy.deepcopy(layer)
    short = torch.randn(4, 3, 5, dtype=torch.double, requires_grad=True)
    padded = torch.full((4, 3, 8), torch.nan, dtype=torch.double)
    padded[:, :, :5] = short.detach()
    padded.requires_grad_()
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :5] = True
    more = (torch.tensor([0, 1, 1, 0]),) if name == "ConditionalBatchNorm" else ()
    y, z = layer(short, *more), twin(padded, *more, mask=mask)
    torch.testing.assert_close(z[:, :, :5], y)
    assert (z[:, :, 5:] == 0).all()
    dy = torch.randn_like(z)
    (dx,) = torch.autograd.grad(y, short, dy[:, :, :5])
    (dz,) = torch.autograd.grad(z, padded, dy)
    torch.testing.assert_close(dz[:, :, :5], dx)
    assert (dz[:, :, 5:] == 0).all()
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], value)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_mode_norm_with_one_mode_is_batch_norm(rank: int) -> None:
    layer, plain = ours("ModeNorm", rank, 3, 1), PLAIN[rank](3).double()
    x = sample(rank)
    assert_same_derivatives(layer, plain, x)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(layer.state_dict()[name][0], plain.state_dict()[name])
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))


def test_mode_norm_with_hard_shares_is_conditional_batch_norm() -> None:
    layer = ours("ModeNorm", 2, 2, 2)
    x = torch.randn(6, 2, 3, 3, dtype=torch.double)
    ids = torch.tensor([0, 1, 1, 0, 1, 0])
    x[:, 0] += 100.0 * (2 * ids - 1).view(-1, 1, 1)
    with torch.no_grad():  # the gate looks at the first channel only
        layer.gate.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        layer.gate.bias.zero_()
    other = ours("ConditionalBatchNorm", 2, 2, 2)
    torch.testing.assert_close(layer(x), other(x, ids), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.running_var, other.running_var)
    torch.testing.assert_close(layer.memberships(x).argmax(1), ids)


def test_mode_norm_follows_its_definition_and_its_gate_learns() -> None:
    layer = ours("ModeNorm", 2, 3, 4)
    x = torch.randn(7, 3, 2, 2, dtype=torch.double, requires_grad=True)
    share = layer.memberships(x).detach()
    y = layer(x)
    want = torch.zeros_like(y)
    for k in range(4):
        w = share[:, k].view(-1, 1, 1, 1)
        n = w.sum() * 4
        mean = (w * x).sum((0, 2, 3), keepdim=True) / n
        var = (w * (x - mean) ** 2).sum((0, 2, 3), keepdim=True) / n
        want = want + w * (x - mean) / (var + 1e-5).sqrt()
    torch.testing.assert_close(y, want)
    assert gradcheck(layer, (x,))
    assert gradgradcheck(layer, (x,))
    (y * torch.randn_like(y)).sum().backward()
    assert layer.gate.weight.grad.abs().max() > 0
    assert set(layer.state_dict()) == {
        "weight", "bias", "gate.weight", "gate.bias",
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_renorm_without_limits_trains_on_what_eval_computes() -> None:
    layer = ours("BatchRenorm", 1, 3, r_max=1e6, d_max=1e6, ramp=0)
    nn.init.normal_(layer.running_mean), nn.init.uniform_(layer.running_var, 0.5, 2)
    twin = copy.deepcopy(layer)
    x = sample(1)
    torch.testing.assert_close(layer(x), twin.eval()(x))


def test_renorm_warms_up_as_batch_norm_and_then_opens_its_limits() -> None:
    layer = ours("BatchRenorm", 1, 3, warm_up=2, ramp=4, r_max=3, d_max=5)
    plain = nn.BatchNorm1d(3).double()
    seen = []
    for step in range(8):
        x = sample(1)
        seen.append([float(limit) for limit in layer.limits()])
        y, z = layer(x), plain(x)
        if step <= 2:
            torch.testing.assert_close(y, z)
    assert seen == [[1, 0], [1, 0], [1, 0], [1.5, 1.25], [2, 2.5], [2.5, 3.75], [3, 5], [3, 5]]
    torch.testing.assert_close(layer.running_var, plain.running_var)
    for bad in ({"r_max": 0.5}, {"d_max": -1}, {"warm_up": -1}, {"track_running_stats": False}):
        with pytest.raises(ValueError, match="r_max is at least 1|must track"):
            normscope.BatchRenorm1d(3, **bad)


def test_renorm_gradient_takes_the_corrections_as_constants() -> None:
    layer = ours("BatchRenorm", 1, 3, ramp=0)
    nn.init.normal_(layer.weight), nn.init.uniform_(layer.running_var, 0.5, 2)
    x = sample(1)
    batch_std = (x.detach().var(0, correction=0) + 1e-5).sqrt()
    running_std = (layer.running_var + 1e-5).sqrt()
    r = (batch_std / running_std).clamp(1 / 3, 3)
    d = ((x.detach().mean(0) - layer.running_mean) / running_std).clamp(-5, 5)
    y, dy = layer(x), torch.randn(9, 3).double()
    want = nn.functional.batch_norm(x, None, None, None, None, True) * r + d
    want = want * layer.weight + layer.bias
    torch.testing.assert_close(y, want)
    parameters = [x, layer.weight, layer.bias]
    torch.testing.assert_close(
        torch.autograd.grad(y, parameters, dy), torch.autograd.grad(want, parameters, dy)
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_frozen_is_eval_for_ever(rank: int) -> None:
    plain = PLAIN[rank](3).double()
    for _ in range(3):
        plain(sample(rank))
    nn.init.normal_(plain.weight)
    layer = ours("FrozenBatchNorm", rank, 3)
    layer.load_state_dict(plain.state_dict())
    before = copy.deepcopy(layer.state_dict())
    x = sample(rank)
    y, z = layer.train()(x), plain.eval()(x)
    torch.testing.assert_close(y, z)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(z, x, dy))
    assert list(layer.parameters()) == []
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key], value)
    assert list(before) == list(plain.state_dict())


def test_inferred_condition_is_right_and_calibrated() -> None:
    """Two overlapping domains: the posterior against the truth, and against its own certainty."""
    generator = torch.Generator().manual_seed(5)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(0, 2, (n,), generator=generator)
        # the same noise in all channels: taking them as independent is over-confident
        noise = torch.randn(n, 1, generator=generator).expand(n, 8) + 0.3 * torch.randn(
            n, 8, generator=generator
        )
        return (noise + 1.5 * ids.unsqueeze(1)).double(), ids

    layer = ours("ConditionalBatchNorm", 1, 8, 2, missing="infer")
    for _ in range(300):
        layer(*draw(64))
    layer.eval()
    x, ids = draw(4000)
    posterior = layer.posterior(x)
    torch.testing.assert_close(posterior.sum(1), torch.ones(4000).double())
    sure, guess = posterior.max(1)
    right = (guess == ids).double()
    assert right.mean() > 0.74
    assert abs(float(sure.mean() - right.mean())) < 0.03  # as sure as it is right
    layer.temperature.fill_(1)
    assert float(layer.posterior(x).max(1).values.mean() - right.mean()) > 0.1
    assert layer(x).shape == x.shape


def test_inferred_condition_of_distant_domains_equals_the_known_one() -> None:
    layer = ours("ConditionalBatchNorm", 2, 3, 2, missing="infer")
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    ids = torch.tensor([0, 1, 1, 0, 1, 0])
    for _ in range(100):
        x = torch.randn(6, 3, 2, 2, dtype=torch.double) + 50 * ids.view(-1, 1, 1, 1)
        layer(x, ids)
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x, ids), rtol=1e-6, atol=1e-6)
    plain = nn.BatchNorm2d(3).double()
    layer.load_state_dict(plain.state_dict())  # knows no temperature


def test_a_main_condition_serves_where_none_is_given() -> None:
    layer = ours("ConditionalBatchNorm", 1, 3, 2, missing=1)
    x = sample(1)
    for _ in range(3):
        layer(sample(1), torch.arange(9) % 2)
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x, torch.ones(9).long()))
    with pytest.raises(InputError, match="missing is 2; a condition is 0"):
        normscope.ConditionalBatchNorm1d(3, 2, missing=2)
    with pytest.raises(InputError, match="it needs stats='?\"?condition"):
        normscope.ConditionalBatchNorm1d(3, 2, missing="infer", stats="shared")


def test_small_conditions_never_fail_and_are_counted() -> None:
    layer = ours("ConditionalBatchNorm", 1, 3, 3, min_count=4)
    for _ in range(5):
        y = layer(sample(1), torch.tensor([0, 0, 0, 0, 0, 0, 0, 2, 2]))
        assert y.isfinite().all()
    assert layer.filled_up.tolist() == [0, 0, 5]
    assert "filled_up" not in layer.state_dict()


EVERY: dict[str, Callable[..., Any]] = {
    "plain": normscope.BatchNorm1d,
    "ghost": lambda n, **k: normscope.GhostBatchNorm1d(n, 2, **k),
    "renorm": normscope.BatchRenorm1d,
    "evalnorm": normscope.EvalNorm1d,
    "mode": lambda n, **k: normscope.ModeNorm1d(n, 2, **k),
    "conditional": lambda n, **k: normscope.ConditionalBatchNorm1d(n, 2, **k),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "settings",
    [
        *({"eps": value} for value in (float("nan"), float("inf"), "1e-5")),
        *({"momentum": value} for value in (float("nan"), "0.1")),
    ],
    ids=str,
)
def test_settings_that_are_no_numbers_are_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(settings))} is "):
        EVERY[name](3, **settings)
    if "eps" in settings:
        with pytest.raises(InputError, match="^eps is "):
            normscope.FrozenBatchNorm1d(3, **settings)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", [name for name in EVERY if name != "plain"])
def test_an_empty_batch_is_no_batch(name: str, momentum: float | None) -> None:
    layer = EVERY[name](3, momentum=momentum)
    more = (torch.zeros(8).long(),) if name == "conditional" else ()
    layer(torch.randn(8, 3), *more)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(torch.empty(0, 3), *(t[:0] for t in more))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_condition_without_statistics_is_said_once() -> None:
    layer = normscope.ConditionalBatchNorm1d(3, 3)
    x, ids = torch.randn(6, 3), torch.tensor([0, 0, 0, 2, 2, 2])
    layer.eval()(x, ids)  # a new layer, of which torch's says nothing either
    layer.train()(x, ids)
    layer.eval()(x, ids)
    with pytest.warns(UserWarning, match="no batch of condition 1 has updated"):
        layer(x, torch.ones(6).long())
    layer(x, torch.ones(6).long())
    layer.load_state_dict(layer.state_dict())
    with pytest.warns(UserWarning, match="no batch of condition 1 has updated"):
        layer(x, torch.tensor([0, 1, 2, 1, 0, 2]))
    layer.train()(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    layer.eval()(x, torch.tensor([0, 1, 2, 1, 0, 2]))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch 2.10 asks for it itself
@pytest.mark.parametrize("name", ["renorm", "filled up"])
def test_compiled_gradients_are_of_the_statistics_before_the_update(name: str) -> None:
    layer: Any = normscope.BatchRenorm1d(3, ramp=1)
    arguments: tuple[Tensor, ...] = ()
    if name == "filled up":
        layer, arguments = normscope.ConditionalBatchNorm1d(3, 4, min_count=8), (IDS,)
    twin = copy.deepcopy(layer)
    # its graphs are cut as those of the default back end
    compiled = torch.compile(twin, backend="aot_eager_decomp_partition")
    for _ in range(2):
        x, dy = torch.randn(9, 3) * 3 + 2, torch.randn(9, 3)
        found = []
        for call, parameters in ((layer, layer.parameters()), (compiled, twin.parameters())):
            given = x.clone().requires_grad_()
            y = call(given, *arguments)
            found.append(torch.autograd.grad(y, [given, *parameters], dy))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
