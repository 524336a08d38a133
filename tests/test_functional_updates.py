"""What a call of `batch_norm` does to running statistics, and what stands in for a small batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normscope.functional import batch_norm, moments, update_running, why
from normscope.moments import Moments, drift

IMPLS = ["auto", "reference"]
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(6, 2, 3, generator=DRAW, dtype=torch.double) * 2 + 1


def buffers(rows: int | None = None, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    shape = (2,) if rows is None else (rows, 2)
    return torch.full(shape, 3.0, dtype=dtype), torch.full(shape, 4.0, dtype=dtype)


def batch(*counts: int) -> Moments:
    """Moments of the first values, so many for each group; the expected values are torch's."""
    parts = [X.transpose(1, 2).flatten(0, 1)[:n] for n in counts]
    zero = torch.zeros(2, dtype=torch.double)
    mean = torch.stack([part.mean(0) if len(part) else zero for part in parts])
    m2 = torch.stack([(part - part.sum(0) / max(len(part), 1)).square().sum(0) for part in parts])
    return Moments(torch.tensor([float(n) for n in counts], dtype=torch.double), mean, m2)


def test_a_group_moves_by_its_share_where_it_has_two_values() -> None:
    mean, var = buffers(3)
    counter = torch.tensor([5, 6, 7])
    values = X.transpose(1, 2).flatten(0, 1)
    skipped = update_running(mean, var, counter, batch(2, 1, 0), 0.25)
    torch.testing.assert_close(mean[0], 0.75 * 3 + 0.25 * values[:2].mean(0))
    torch.testing.assert_close(var[0], 0.75 * 4 + 0.25 * values[:2].var(0, correction=1))
    assert (mean[1:] == 3).all()
    assert (var[1:] == 4).all()
    assert counter.tolist() == [6, 6, 7]
    assert (skipped.item(), skipped.dtype, skipped.shape) == (0, torch.int64, ())


def test_one_set_of_statistics_moves_by_all_groups_together() -> None:
    mean, var = buffers()
    counter = torch.tensor(4)
    whole = moments(X, torch.tensor([0, 0, 0, 1, 1, 0]), 2)
    update_running(mean, var, counter, whole, 0.5)
    torch.testing.assert_close(mean, 1.5 + 0.5 * X.mean((0, 2)))
    torch.testing.assert_close(var, 2 + 0.5 * X.var((0, 2), correction=1))
    assert counter.item() == 5


@pytest.mark.parametrize("shape", [(), (1,)])
def test_without_momentum_they_are_the_average_over_batches(shape: tuple[int, ...]) -> None:
    mean, var = buffers(1)
    counter = torch.zeros(shape, dtype=torch.long)
    seen = []
    for n in (4, 3, 6):
        now = batch(n)
        seen.append((now.mean, now.m2 / (n - 1)))
        update_running(mean, var, counter, now, None)
    torch.testing.assert_close(mean, sum(m for m, _ in seen) / 3)
    torch.testing.assert_close(var, sum(v for _, v in seen) / 3)
    mean, var = buffers(1)
    update_running(mean, var, None, batch(4), None)
    assert (mean == 3).all(), "without a counter there is no share"
    assert (var == 4).all()


@pytest.mark.parametrize(
    ("values", "every", "counted"), [(0, True, 1), (0, False, 0), (1, False, 1)]
)
def test_an_empty_batch_is_counted_as_torch_counts_it_unless_told(
    values: int, every: bool, counted: int
) -> None:
    mean, var = buffers()
    counter = torch.tensor(0)
    update_running(mean, var, counter, batch(values), 0.5, count_empty=every)
    assert counter.item() == counted
    assert (mean == 3).all()
    rows = torch.tensor([0])
    update_running(*buffers(1), rows, batch(values), 0.5, count_empty=every)
    assert rows.item() == 0, "a group counts the batches that move it"
    update_running(*buffers(), counter, batch(0), 0.5)
    assert counter.item() == counted + 1, "counted unless told"


def test_channels_that_are_not_finite_are_skipped_and_counted_where_that_is_asked() -> None:
    now = batch(4, 1)
    now.mean[:, 0] = torch.nan
    now.m2[0, 1] = torch.inf
    mean, var = buffers(2)
    assert update_running(mean, var, None, now, 0.5, skip_nonfinite=True).item() == 2
    assert (mean == 3).all()
    assert (var == 4).all()
    now = batch(4, 1)
    now.m2[0, 0] = torch.inf
    assert update_running(mean, var, None, now, 0.5, skip_nonfinite=True).item() == 1
    assert (mean[0] == 3).tolist() == [True, False]
    assert (var[0] == 4).tolist() == [True, False]
    assert update_running(mean, var, None, now, 0.5).item() == 0
    assert var[0].isfinite().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_buffers_keep_their_dtype_and_carry_no_gradient(dtype: torch.dtype) -> None:
    mean, var = buffers(1, dtype)
    now = moments(X.clone().requires_grad_())
    assert now.mean.requires_grad
    update_running(mean, var, None, now, 0.5)
    assert (mean.dtype, var.dtype, mean.requires_grad) == (dtype, dtype, False)
    torch.testing.assert_close(mean[0], (1.5 + 0.5 * X.mean((0, 2))).to(dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_call_in_training_updates_as_torch_does_and_others_do_not(impl: str) -> None:
    ours, theirs = buffers(), buffers()
    counter = torch.tensor(2)
    y = batch_norm(X, *ours, training=True, num_batches_tracked=counter, impl=impl)
    torch.testing.assert_close(y, F.batch_norm(X, *theirs, training=True))
    torch.testing.assert_close(ours, theirs)
    assert counter.item() == 3
    y = batch_norm(X, *ours, num_batches_tracked=counter, impl=impl)
    torch.testing.assert_close(y, F.batch_norm(X, *theirs))
    torch.testing.assert_close(ours, theirs)
    assert counter.item() == 3
    one = ours[0].clone()
    for alone in ((one, None), (None, one)):
        y = batch_norm(X, *alone, training=True, impl=impl)
        torch.testing.assert_close(y, F.batch_norm(X, None, None, training=True))
    assert torch.equal(one, ours[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_who_asks_for_the_moments_gets_them_in_place_of_the_update(impl: str) -> None:
    seen: list[Moments] = []
    mean, var = buffers(2)
    counter = torch.zeros(2, dtype=torch.long)
    groups = torch.tensor([0, 0, 1, 1, 1, 1])
    leaf = X.clone().requires_grad_()
    batch_norm(
        leaf, mean, var, training=True, num_batches_tracked=counter, groups=groups, num_groups=2,
        on_moments=seen.append, impl=impl,
    )  # fmt: skip
    (found,) = seen
    assert found.count.tolist() == [6, 12]
    torch.testing.assert_close(found.mean, torch.stack([p.mean((0, 2)) for p in X.split([2, 4])]))
    want = torch.stack([p.var((0, 2), correction=1) for p in X.split([2, 4])])
    torch.testing.assert_close(found.var(1), want)
    assert not found.mean.requires_grad
    assert (mean == 3).all()
    assert (var == 4).all()
    assert counter.tolist() == [0, 0]
    batch_norm(X, mean, var, groups=groups, num_groups=2, on_moments=seen.append, impl=impl)
    assert len(seen) == 1, "nothing is measured in eval()"


@pytest.mark.parametrize("impl", IMPLS)
def test_one_value_per_channel_is_an_error_where_the_batch_normalises(impl: str) -> None:
    one = X[:1, :, :1]
    for running in ((None, None), buffers()):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            batch_norm(one, *running, training=True, impl=impl)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(one, impl=impl)
    torch.testing.assert_close(
        batch_norm(one, *buffers(), impl=impl), F.batch_norm(one, *buffers())
    )
    assert batch_norm(X[:1, :, :2], training=True, impl=impl).isfinite().all()
    alone = batch_norm(
        one, bias=torch.tensor([0.5, -1.0]).double(), training=True,
        groups=torch.tensor([0]), impl=impl,
    )  # fmt: skip
    assert alone.flatten().tolist() == [0.5, -1.0], "a group of one value comes out as bias"


@pytest.mark.parametrize("impl", IMPLS)
def test_a_group_of_enough_values_is_filled_up_with_none(impl: str) -> None:
    groups = torch.tensor([0, 0, 1, 1, 1, 1])
    x = X[:, :, :1]
    for count, filled in ((2, False), (3, True)):
        y = batch_norm(
            x, *buffers(2), training=True, groups=groups, num_groups=2, min_count=count, impl=impl
        )
        plain = torch.cat([F.batch_norm(p, None, None, training=True) for p in x.split([2, 4])])
        torch.testing.assert_close(y[2:], plain[2:])
        assert torch.allclose(y[:2], plain[:2]) is not filled
    default = batch_norm(x, *buffers(2), training=True, groups=groups, num_groups=2, impl=impl)
    torch.testing.assert_close(default, plain)
    single = batch_norm(
        x[:1], *buffers(1), training=True, groups=torch.tensor([0]), momentum=0.5, impl=impl
    )
    value = x[0, :, 0]
    mid = (value + 3) / 2
    spread = ((value - mid) ** 2 + 4 + (3 - mid) ** 2) / 2
    torch.testing.assert_close(single[0, :, 0], (value - mid) / (spread + 1e-5).sqrt())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_stored_variance_below_zero_counts_as_zero(impl: str) -> None:
    mean, var = buffers()
    var[1] = -5
    y = batch_norm(X, mean, var, eps=0.25, impl=impl)
    torch.testing.assert_close(y[:, 1], (X[:, 1] - 3) / 0.5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_residual_of_another_dtype_promotes_the_sum(impl: str, act: Any, masked: bool) -> None:
    x, residual = X.float(), torch.linspace(-3, 3, X.numel(), dtype=torch.double).view_as(X)
    mask = torch.arange(6) > 1 if masked else None
    mean, var = buffers(dtype=torch.float32)
    y = batch_norm(
        x, mean, var, training=True, residual=residual, act=act, mask=mask, momentum=1.0, impl=impl
    )
    kept = x[2:] if masked else x
    want = torch.zeros_like(residual)
    want[-len(kept) :] = F.batch_norm(kept, None, None, training=True) + residual[-len(kept) :]
    torch.testing.assert_close(y, want.relu() if act else want)
    assert y.dtype is torch.double
    torch.testing.assert_close(mean, kept.mean((0, 2)))
    torch.testing.assert_close(var, kept.var((0, 2), correction=1))


def test_moments_of_groups_and_of_what_a_mask_lets_in() -> None:
    groups, mask = torch.tensor([0, 2, 2, 0, 2, 0]), torch.arange(18).reshape(6, 3) % 4 > 0
    found = moments(X, groups, 3, mask)
    assert (found.mean.dtype, found.mean.shape) == (torch.float64, (3, 2))
    for number in range(3):
        inside = mask & groups.eq(number).unsqueeze(1)
        values = X.transpose(1, 2)[inside]
        assert found.count[number] == len(values)
        want = values.mean(0) if len(values) else torch.zeros(2).double()
        torch.testing.assert_close(found.mean[number], want)
        torch.testing.assert_close(found.m2[number], (values - want).square().sum(0))
    halves = moments(X.half())
    torch.testing.assert_close(halves.mean[0], X.half().double().mean((0, 2)))
    assert not halves.mean.requires_grad
    leaf = X.clone().requires_grad_()
    with torch.no_grad():
        assert not moments(leaf).mean.requires_grad
    with pytest.raises(ValueError, match="num_groups is 2 but groups is None"):
        moments(X, num_groups=2)
    with pytest.raises(ValueError, match=r"group 3 of sample 0 is outside 0\.\.2"):
        moments(X, groups + 3, 3)
    with pytest.raises(ValueError, match=r"mask is \(5,\)"):
        moments(X, mask=torch.ones(5).bool())


def test_which_kernel_serves_is_told_and_an_unknown_one_is_refused() -> None:
    assert "reference" in why(X, "reference")
    assert why(X) == why(X, "auto")
    with pytest.raises(ValueError, match="impl is 'fast'"):
        why(X, "fast")


def test_the_distance_of_two_sets_of_statistics_is_in_standard_deviations() -> None:
    def of(*numbers: float) -> float:
        return drift(*(torch.tensor([n]).double() for n in numbers)).item()

    assert of(5, 4, 1, 4) == 2
    assert of(1, 25, 1, 4) == 1.5
    assert of(4, 36, 0, 9) == pytest.approx((4**2 + 3**2) ** 0.5 / 3)
    assert of(0, 0, 0, 1) == 1
    assert of(1e-6, 0, 0, 0) == pytest.approx(1), "a constant channel counts as 1e-6"
    assert of(0, -1, 0, 1) == torch.inf
    assert of(torch.nan, 1, 0, 1) == torch.inf
    assert of(0, torch.nan, 0, 1) == torch.inf
    assert of(0, 1, 0, -1) == pytest.approx(1e6)


def test_empty_moments_are_where_and_as_wide_as_they_are_asked_for() -> None:
    found = Moments.empty(4, 3)
    assert (found.count.shape, found.mean.shape, found.m2.shape) == ((4,), (4, 3), (4, 3))
    assert all(
        t.dtype is torch.float64 and not t.any() for t in (found.count, found.mean, found.m2)
    )
    assert found.mean.data_ptr() != found.m2.data_ptr()
    assert Moments.empty(2, device="meta").mean.is_meta
    assert Moments.empty(2).count.shape == ()
    pooled = Moments.empty(4, 3).pool()
    assert (pooled.count.item(), pooled.mean.tolist()) == (0, [0, 0, 0])


def test_detached_moments_are_the_same_numbers() -> None:
    found = moments(X.clone().requires_grad_())
    plain = found.detach()
    for name in ("count", "mean", "m2"):
        assert torch.equal(getattr(plain, name), getattr(found, name))
        assert not getattr(plain, name).requires_grad


def test_variance_needs_more_values_than_its_correction() -> None:
    one, two = batch(1), batch(2)
    assert one.var(0).tolist() == [[0, 0]]
    assert one.var(1).isnan().all()
    torch.testing.assert_close(two.var(1), 2 * two.var(0))


class FakeGpu:
    """Takes what the kernel of a GPU is given; its numbers are the reference's."""

    Running = staticmethod(lambda *given: given)
    Call = staticmethod(lambda **given: given)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any]] = []

    def batch_norm(self, problem: Any, epilogue: Any, call: Any) -> Tensor:
        self.calls.append((problem, epilogue, call))
        return torch.zeros(())


def test_a_gpu_is_given_what_one_set_or_several_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: which statistics move, which normalise, how far a group is filled up."""
    gpu = FakeGpu()
    monkeypatch.setattr("normscope.functional.kernel_for", lambda x, impl: gpu)
    counter, weight = torch.zeros(2).long(), torch.ones(2).double()
    groups = torch.tensor([0, 0, 1, 1, 1, 1])
    grouped = {"groups": groups, "num_groups": 2, "num_batches_tracked": counter, "impl": "gpu"}

    def call(*running: Any, **more: Any) -> dict[str, Any]:
        batch_norm(X, *running, **more)
        found: dict[str, Any] = gpu.calls[-1][2]
        return found

    own = buffers(2)
    found = call(
        *own, weight, None, True, 0.3, 0.25, min_count=5, act="relu", residual=X, **grouped
    )
    assert found == {
        "num_groups": 2, "running": (*own, counter, 0.3), "eps": 0.25, "by_batch": True,
        "update": True, "fill": 5, "on_moments": None,
    }  # fmt: skip
    problem, epilogue, _ = gpu.calls[-1]
    assert (problem.groups is groups, problem.num_groups, problem.mask) == (True, 2, None)
    assert (epilogue.act, epilogue.affine.weight is weight) == ("relu", True)
    assert epilogue.residual is X
    facts = lambda found: (found["num_groups"], found["by_batch"], found["update"], found["fill"])
    assert facts(call(*own, training=False, **grouped)) == (2, False, False, None)
    pooled = buffers()
    assert facts(call(*pooled, training=True, **grouped)) == (2, True, True, 2)
    assert facts(call(*pooled, training=False, **grouped)) == (1, False, False, None)
    keep: Any = lambda batch: None
    found = call(*own, training=True, on_moments=keep, **grouped)
    assert (facts(found), found["on_moments"]) == ((2, True, False, 2), keep)
    assert facts(call(*pooled, training=True, impl="gpu")) == (1, True, True, None)
    for running in ((None, None), (pooled[0], None), (None, pooled[1])):
        found = call(*running, training=True, impl="gpu")
        assert found["running"] is None
        assert facts(found) == (1, True, False, None)
    assert call(None, None, training=True, **grouped)["fill"] is None
    assert (pooled[0] == 3).all(), "the kernel moves them"
