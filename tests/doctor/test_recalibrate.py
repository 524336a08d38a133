"""Recalibration against a float64 two-pass, and against what happens when something fails."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope import InputError, ModelError, recalibrate

STATE = ("running_mean", "running_var", "num_batches_tracked")


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(20, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def images(n: int = 40) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(n, 2, 6, 6) * 2 + torch.arange(n).view(-1, 1, 1, 1) / 10


def two_pass(x: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    values = np.moveaxis(x.double().numpy(), 1, 0).reshape(x.shape[1], -1)
    return values.mean(1), values.var(1, ddof=1)


def state(model: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in model.state_dict().items()}


def assert_statistics(layer: nn.Module, x: Tensor, tolerance: float = 1e-6) -> None:
    mean, var = two_pass(x)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(layer.running_var, var, rtol=tolerance)


def outliers() -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(100, 2), torch.randn(2, 2) * 3 + 45]


def sorted_classes() -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(32, 2) + (10 if i % 2 else -10) for i in range(50)]


def beside_update_bn(batches: list[Tensor]) -> tuple[float, float]:
    """How far update_bn is off in mean and in variance, after ours was found right."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    theirs = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(batches, theirs)
    recalibrate(model, batches)
    mean, var = two_pass(torch.cat(batches))
    assert_statistics(model[0], torch.cat(batches))
    off = np.abs(theirs[0].running_mean.numpy() - mean).max() / np.abs(mean).max()
    return off, (var / theirs[0].running_var.numpy()).max()


def test_a_small_outlier_batch_counts_by_its_size_where_update_bn_is_20_means_off() -> None:
    mean, _ = beside_update_bn(outliers())
    assert mean > 20


def test_what_lies_between_batches_counts_where_update_bn_loses_100_fold_variance() -> None:
    _, var = beside_update_bn(sorted_classes())
    assert var > 100


@pytest.mark.parametrize("sizes", [[40], [7, 33], [1] * 40, [20, 0, 20]])
def test_sequential_statistics_are_those_of_eval_whatever_the_batches(sizes: list[int]) -> None:
    model, x = deep(), images()
    recalibrate(model, list(x.split(sizes)), propagate="sequential")
    model.eval()
    with torch.no_grad():
        for name, layer in model.named_children():
            if hasattr(layer, "running_mean"):
                assert_statistics(layer, model[: int(name)](x), 1e-5)


def test_one_pass_is_what_training_normalises_with() -> None:
    model, x = deep(), images()
    plain = copy.deepcopy(model).train()
    plain[3].eval()
    entries: dict[str, list[Tensor]] = {}
    for name, layer in plain.named_children():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: entries.setdefault(name, []).append(args[0].detach())
        )
    for part in x.split(10):
        plain(part)
    recalibrate(model, x.split(10))
    for name in ("1", "5", "9"):
        assert_statistics(model[int(name)], torch.cat(entries[name]), 1e-5)


class Broken:
    def __init__(self, good: int) -> None:
        self.good = good

    def __iter__(self) -> Iterator[Tensor]:
        yield from images().split(10)[: self.good]
        raise OSError("disk gone")


@pytest.mark.parametrize("propagate", ["batch", "sequential"])
def test_an_exception_in_the_middle_leaves_the_model_byte_equal(propagate: str) -> None:
    model = deep().train()
    model[5].eval()
    modes = [m.training for m in model.modules()]
    before, hooks = state(model), [len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(InputError, match="failed after 2 batches: OSError: disk gone; nothing was"):
        recalibrate(model, Broken(2), propagate=propagate)
    with pytest.raises(ModelError, match="layer 0 .* failed on batch 1"):
        recalibrate(model, [images(), torch.randn(3, 9, 6, 6)], propagate=propagate)
    assert state(model) == before
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_what_overflows_while_it_is_written_is_taken_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).half())
    before = state(model)

    def forward(model: nn.Module, x: Tensor) -> object:
        model[0](x)
        return model[1]((1e3 * x).half())

    with pytest.raises(ModelError, match=r"does not fit into torch\.float16; hold .* float32"):
        recalibrate(model, [torch.randn(50, 2) * 10], forward=forward)
    assert state(model) == before


def test_undo_gives_every_byte_back() -> None:
    model = deep()
    before = state(model)
    done = recalibrate(model, images().split(10))
    assert state(model) != before
    assert done.undo() is model
    assert state(model) == before


def test_only_chosen_layers_change_and_frozen_ones_are_left() -> None:
    model = deep().train()
    model[1].eval()
    done = recalibrate(model, images().split(10))
    assert [layer.name for layer in done.layers] == ["5", "9"]
    assert "only=" in done.left["1"]
    before = copy.deepcopy(model[5].state_dict())
    done = recalibrate(model, images(20).split(10), only=["1"])
    assert [layer.name for layer in done.layers] == ["1"]
    assert all(torch.equal(before[k], v) for k, v in model[5].state_dict().items())
    with pytest.raises(InputError, match="no normalisation layer is called 'x'; there is 1, 5, 9"):
        recalibrate(model, images().split(10), only=["x"])


def test_each_condition_gets_its_own_and_absent_ones_stay() -> None:
    layer = normscope.ConditionalBatchNorm1d(2, 3)
    model = nn.Sequential(layer)
    x, ids = torch.randn(30, 2) + 5, torch.arange(30) % 2
    batches = [(x[i : i + 7], ids[i : i + 7], ids[i : i + 7]) for i in range(0, 30, 7)]
    done = recalibrate(model, batches)
    for k in (0, 1):
        mean, var = two_pass(x[ids == k])
        np.testing.assert_allclose(layer.running_mean[k], mean, rtol=1e-6)
        np.testing.assert_allclose(layer.running_var[k], var, rtol=1e-6)
    assert layer.running_var[2].tolist() == [1, 1]
    assert layer.num_batches_tracked.tolist() == [5, 5, 0]
    assert done.layers[0].absent == (2,)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x) + self.norm(3 * x + 1)
        return y


@pytest.mark.parametrize("propagate", ["batch", "sequential"])
def test_a_reused_layer_gets_all_its_calls(propagate: str) -> None:
    model, x = Twice(), torch.randn(30, 2)
    done = recalibrate(model, x.split(8), propagate=propagate)
    assert done.layers[0].calls == 2
    assert_statistics(model.norm, torch.cat([x, 3 * x + 1]))


def test_any_structure_of_batches() -> None:
    x = torch.randn(30, 2)
    for batches in (
        [x[:9], x[9:]],
        [(x[:9],), (x[9:],)],
        ([x[:9], torch.zeros(9)], [x[9:], torch.zeros(21)]),
        iter([{"input": x[:9]}, {"input": x[9:]}]),
    ):
        model = nn.BatchNorm1d(2)
        recalibrate(model, batches)
        assert_statistics(model, x)
    model = nn.BatchNorm1d(2)
    recalibrate(model, [{"a": {"b": x}}], forward=lambda model, batch: model(batch["a"]["b"]))
    assert_statistics(model, x)


def test_what_cannot_be_measured_is_one_sentence() -> None:
    with pytest.raises(InputError, match="gave no sample"):
        recalibrate(nn.BatchNorm1d(2), [])
    with pytest.raises(InputError, match="saw one value per channel"):
        recalibrate(nn.BatchNorm1d(2), [torch.ones(1, 2)])
    with pytest.raises(ModelError, match="no layer with running statistics"):
        recalibrate(nn.Linear(2, 2), [torch.ones(1, 2)])
    with pytest.raises(InputError, match="propagate is 'both'"):
        recalibrate(nn.BatchNorm1d(2), [torch.ones(4, 2)], propagate="both")
    with pytest.raises(InputError, match="hold NaN or infinity"):
        recalibrate(nn.BatchNorm1d(2), [torch.full((4, 2), torch.nan)])


def test_standard_errors_tell_whether_the_data_are_enough() -> None:
    model, seen = nn.BatchNorm1d(1), []
    for seed in range(200):
        torch.manual_seed(seed)
        x = torch.randn(16 * 20, 1)
        done = recalibrate(model, x.split(16))
        seen.append([model.running_mean.item(), done.layers[0].error])
    means, errors = np.array(seen).T
    # two standard errors of the statistics; the mean alone has 2 / sqrt(n), the std adds half
    expected = 2 * np.sqrt(1.5 / 320)
    assert errors.mean() == pytest.approx(expected, rel=0.1)
    assert means.std() == pytest.approx(1 / np.sqrt(320), rel=0.15)
    assert not done.enough
    assert recalibrate(model, torch.randn(3000, 1).split(16)).enough
    # images of one value each: their pixels are no independent data
    still = torch.randn(20, 1, 1, 1).expand(20, 1, 32, 32)
    assert not recalibrate(nn.BatchNorm2d(1), still.split(4)).enough


def test_a_stream_keeps_no_more_blocks_than_it_may() -> None:
    from normscope.functional import moments
    from normscope.moments import Moments
    from normscope.probe.stream import BLOCKS, MomentStream

    stream, x = MomentStream(), torch.randn(3001, 2).double()
    for part in x.split(2):
        m = moments(part)
        stream.add(Moments(m.count[0], m.mean[0], m.m2[0]), 2)
    assert len(stream.blocks) <= 2 * BLOCKS
    total = stream.total()
    np.testing.assert_allclose(total.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.var(1), x.numpy().var(0, ddof=1), rtol=1e-12)


def test_a_layer_that_no_forward_runs_is_left_and_told() -> None:
    class Unused(Twice):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.BatchNorm1d(2)

    model = Unused()
    done = recalibrate(model, torch.randn(30, 2).split(8))
    assert [layer.name for layer in done.layers] == ["norm"]
    assert done.left == {"spare": "no forward runs it"}
    assert model.spare.running_mean.tolist() == [0, 0]


@pytest.mark.parametrize(("propagate", "passes"), [("batch", 1), ("sequential", 4)])
def test_every_batch_is_told_with_its_number(propagate: str, passes: int) -> None:
    heard: list[int] = []
    recalibrate(deep(), images().split(10), propagate=propagate, on_progress=heard.append)
    assert heard == list(range(1, 4 * passes + 1))


def test_four_layers_that_were_left_are_told_and_how_many_more() -> None:
    for number, more in ((4, False), (5, True)):
        model = nn.Sequential(nn.BatchNorm1d(2), *(nn.GroupNorm(1, 2) for _ in range(number)))
        said = repr(recalibrate(model, torch.randn(30, 2).split(8)))
        assert said.count("left as it was: ") == 4
        assert ("and 1 more" in said) is more
