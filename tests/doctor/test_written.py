"""What recalibration writes and tells, layer by layer, and which layers it leaves."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope import InputError, ModelError, recalibrate
from normscope.doctor import adapt, certainty
from normscope.doctor.adapt import Adaptation, Certainty
from normscope.doctor.recalibrate import (
    Recalibrated,
    _agree,
    _joined,
    _population,
    _shared_order,
    chosen,
)
from normscope.functional import moments
from normscope.moments import Moments
from normscope.probe.stream import MomentStream

DRAW = torch.Generator().manual_seed(0)
X = 2 * torch.randn(40, 2, generator=DRAW) + 5


def test_what_is_told_of_a_layer() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2))
    done = recalibrate(model, X.split(8))
    (layer,) = done.layers
    assert (layer.name, layer.calls, layer.count, layer.absent) == ("0", 1, 40, ())
    mean, std = X.double().mean(0), X.double().std(0)
    moved = ((mean**2 + (std - 1) ** 2).sqrt() / std).max()
    assert layer.moved == pytest.approx(float(moved), rel=1e-5)
    assert (done.batches, done.left) == (5, {})
    assert int(model[0].num_batches_tracked) == 5
    assert recalibrate(model, X.split(8)).layers[0].moved == pytest.approx(0, abs=1e-6)
    assert int(model[0].num_batches_tracked) == 10
    model[0].momentum = None
    recalibrate(model, X.split(8))
    assert int(model[0].num_batches_tracked) == 5, "of an average, those that it is of"


def test_two_standard_errors_of_both_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    parts = [x.double() for x in X[:, :1].split(10)]
    (layer,) = recalibrate(model, [x.float() for x in parts]).layers
    whole = torch.cat(parts)
    mean, var = whole.mean(), whole.var(correction=0)
    of_means = torch.stack([x.mean() - mean for x in parts]) / 4
    of_vars = torch.stack([(x - mean).square().mean() - var for x in parts]) / 4
    mean_error, var_error = ((4 / 3 * v.square().sum()).sqrt() for v in (of_means, of_vars))
    std = var.sqrt()
    error = 2 * (mean_error**2 + (var_error / (2 * std)) ** 2).sqrt() / std
    assert layer.error == pytest.approx(float(error), rel=1e-4)
    for size, enough in ((0.1, True), (0.11, False)):
        assert Recalibrated("a", 1, 1, 0.0, size).enough is enough


def test_a_layer_of_several_calls_counts_its_batches_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.norm(x))
            return y

    model = Twice()
    (layer,) = recalibrate(model, X.split(8)).layers
    assert (layer.calls, layer.count) == (2, 80)
    assert model.norm.num_batches_tracked == 5


def test_two_values_are_enough_for_statistics_and_one_is_not() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2)).eval()
    (layer,) = recalibrate(model, [X[:2]]).layers
    assert (layer.count, layer.absent) == (2, ())
    torch.testing.assert_close(model[0].running_mean, X[:2].mean(0))
    torch.testing.assert_close(model[0].running_var, X[:2].var(0))
    by_group: Any = normscope.ConditionalBatchNorm1d(2, 3).eval()
    ids = torch.tensor([0, 0, 1])
    (layer,) = recalibrate(by_group, [{"input": X[:3], "condition": ids}]).layers
    assert (layer.count, layer.absent) == (2, (1, 2)), "of one value there is no variance"
    torch.testing.assert_close(by_group.running_mean[0], X[:2].mean(0))
    assert not by_group.running_mean[1:].any()
    assert by_group.num_batches_tracked.tolist() == [1, 0, 0]
    with pytest.raises(InputError, match="layer 0 saw one value per channel"):
        recalibrate(model, [X[:1]])


@pytest.mark.parametrize("scale", [[1e3, 1e3], [1.0, 1e3], [1e3, 1.0]])
def test_one_channel_that_overflows_is_enough(scale: list[float]) -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(2).half()).eval()
    forward = lambda model, x: model((x * torch.tensor(scale)).half())
    with pytest.raises(ModelError, match=r"a running_var does not fit into torch\.float16"):
        recalibrate(model, [X], forward=forward)
    assert not model[0].running_mean.any()


def test_every_rank_says_whether_it_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["normscope.doctor.recalibrate"]
    group: Any = "two ranks"
    for ok, other, fails in (
        (True, True, False), (True, False, True), (False, True, False), (False, False, False),
    ):  # fmt: skip
        monkeypatch.setattr(module, "gathered", lambda own, _, other=other: [own, other])
        if fails:
            with pytest.raises(ModelError, match="another rank failed; nothing was changed"):
                _agree(group, ok=ok)
        else:
            _agree(group, ok=ok)
        _agree(None, ok=ok)
    answers = iter([[True, True], [[], ["b", "a"], ["c"]], [True, True], [[], []]])
    monkeypatch.setattr(module, "gathered", lambda own, _: next(answers))
    assert _shared_order([], group) == ["b", "a"], "of the first rank that has data"
    assert _shared_order([], group) == []
    assert _shared_order(["x"], None) == ["x"]


def test_ranks_share_one_stream_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has 30 samples in 3 batches, and of the second layer alone."""
    module = sys.modules["normscope.doctor.recalibrate"]
    group: Any = "two ranks"
    answers = lambda own, _: [own, True if own is True else (30, 3)]
    monkeypatch.setattr(module, "gathered", answers)
    reduced: list[Any] = []

    def all_reduce(own: Moments, of: Any) -> Moments:
        reduced.append(of)
        return own

    monkeypatch.setattr(Moments, "all_reduce", all_reduce)
    layers: Any = {"0": nn.BatchNorm1d(2), "1": nn.BatchNorm1d(3), "gone": nn.BatchNorm1d(2)}
    calls = [MomentStream(), MomentStream()]
    for stream, x in zip(calls, (X[:10], X[10:25]), strict=True):
        stream.add(moments(x)[0], len(x))
    joined = _joined(layers, {"0": calls}, ["1", "0"], group)
    assert list(joined) == ["1", "0"]
    (one,), (other,) = joined["0"], joined["1"]
    assert (one.samples, one.batches) == (25 + 30, 2 + 3)
    torch.testing.assert_close(one.total().mean, X[:25].double().mean(0))
    assert (other.samples, other.batches, len(other.blocks)) == (30, 3, 1)
    assert other.blocks[0].mean.shape == (3,)
    assert not other.blocks[0].count.any()
    assert reduced == [group] * 2
    alone = _joined(layers, {"0": calls, "gone": calls}, ["1", "0"], None)
    assert list(alone) == ["0"]
    assert alone["0"] is calls


def left() -> Any:
    return nn.ModuleDict({
        "plain": nn.BatchNorm1d(2), "group": nn.GroupNorm(1, 2),
        "untracked": nn.BatchNorm1d(2, track_running_stats=False),
        "frozen": normscope.FrozenBatchNorm1d(2), "mode": normscope.ModeNorm1d(2, 2),
        "instance": nn.InstanceNorm1d(2, track_running_stats=True),
        "still": nn.BatchNorm1d(2).eval(), "linear": nn.Linear(2, 2),
    })  # fmt: skip


def test_why_a_layer_keeps_its_statistics() -> None:
    model = left()
    layers, why = chosen(model)
    assert list(layers) == ["plain"]
    assert why == {
        "group": "it normalises within each sample",
        "untracked": "it has no running statistics per channel",
        "frozen": "it is frozen", "mode": "its groups are soft; train it on",
        "instance": "it normalises within each sample",
        "still": "it is in eval() inside a model in train(): somebody froze it; name it in only=",
    }  # fmt: skip
    assert list(chosen(left().eval())[0]) == ["plain", "still"]
    layers, why = chosen(model, ("still", "gr*"))
    assert list(layers) == ["still"]
    assert why["plain"] == "it was not chosen"
    assert why["group"] == "it normalises within each sample"
    with pytest.raises(ModelError, match="has no layer with running statistics"):
        chosen(nn.Sequential(nn.GroupNorm(1, 2)))


def test_what_recalibration_says_of_itself() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    text = repr(recalibrate(model, X.split(20), propagate="sequential"))
    lines = text.splitlines()
    assert lines[0] == "Recalibration of Sequential: 2 layers measured on 2 batches"
    assert lines[1].startswith("0 moved most, by ")
    assert lines[2] == "more data are needed for 0, 2"
    assert lines[-1] == ".undo() writes the former statistics back"
    assert len(lines) == 4
    many = torch.randn(4000, 2, generator=DRAW)
    assert "more data" not in repr(recalibrate(model, many.split(500)))


# adapt


def classifier() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)).eval()


def test_certainty_is_the_entropy_of_predictions_and_of_their_mean() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, eps=0.0)).eval()
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]).double()
    found = certainty(model, [p[:2].log().float(), p[2:].log().float()])
    entropy = -(p * p.log()).sum(1)
    assert found.entropy == pytest.approx(float(entropy.mean()), rel=1e-5)
    mean = p.mean(0)
    assert found.diversity == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-5)
    dense = p.log().float().T[None].repeat(2, 1, 1)  # (2, K, positions)
    assert certainty(model, [dense]).entropy == pytest.approx(found.entropy, rel=1e-5)


@pytest.mark.parametrize(("prior", "share"), [(0, 1.0), (40, 0.5), (None, 40 / 56)])
def test_live_statistics_count_by_their_samples(prior: Any, share: float) -> None:
    model = classifier()
    model[0].running_mean.fill_(1), model[0].running_var.fill_(3)
    more = {} if prior is None else {"prior": prior}
    done = adapt(model, X.split(8), **more)
    torch.testing.assert_close(model[0].running_mean, (1 - share) + share * X.mean(0))
    torch.testing.assert_close(model[0].running_var, 3 * (1 - share) + share * X.var(0))
    assert (done.samples, done.collapsed, done.model is model) == (40, False, True)


def test_learning_leaves_gradients_flags_and_modes_as_they_were() -> None:
    model = classifier().train()
    model[1].eval()
    model[1].bias.requires_grad_(False)
    model(X).sum().backward()
    gradient = model[1].weight.grad
    before = gradient.clone()
    weight, gamma = model[1].weight.detach().clone(), model[0].weight.detach().clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    done = adapt(model, X.split(8), learn=True, lr=0.01, steps=2)
    assert not done.collapsed
    assert model[1].weight.grad is gradient
    assert torch.equal(gradient, before)
    assert model[1].bias.grad is None
    assert torch.equal(model[1].weight, weight), "gamma and beta learn alone"
    assert 0 < float((model[0].weight.detach() - gamma).abs().max()) < 0.2
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert [m.training for m in model.modules()] == [True, True, False]
    assert done.after.entropy < certainty(adapt_only(), X.split(8)).entropy
    done.undo()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    bare = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 3)).eval()
    with pytest.raises(ModelError, match="no layer has a scale and shift to learn"):
        adapt(bare, X.split(8), learn=True)


def adapt_only() -> Any:
    model = classifier()
    adapt(model, X.split(8))
    return model


def test_how_sure_an_adapted_model_is_beside_its_source() -> None:
    def of(entropy: float, collapsed: bool = False) -> Adaptation:
        now = Certainty(entropy, 1.0)
        snapshot: Any = None
        return Adaptation(nn.Identity(), 9, Certainty(0.5, 1.25), now, collapsed, snapshot)

    assert of(0.4).unsure(Certainty(0.2, 1)) == 2
    assert of(0.4).promising(Certainty(0.2, 1))
    assert not of(0.41).promising(Certainty(0.2, 1))
    assert of(0.1).unsure(Certainty(0.01, 1)) == 2, "at least 0.05 nats"
    assert repr(of(0.4)).splitlines() == [
        "Adaptation of Identity to 9 live samples",
        "entropy 0.5 -> 0.4, diversity 1.25 -> 1 nats", ".undo() brings the model back",
    ]  # fmt: skip
    assert "learning collapsed and was taken back" in repr(of(0.4, collapsed=True))


def test_of_many_layers_five_are_told_where_a_pattern_fits_none() -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(7)))
    with pytest.raises(normscope.InputError, match=r"called 'x'; there is 0, 1, 2, 3, 4$"):
        chosen(model, ("x",))
    with pytest.raises(normscope.InputError, match="there is none"):
        chosen(nn.Linear(2, 2), ("x",))


def as_dict(x: Tensor, y: Tensor) -> dict[str, Any]:
    return {"deep": {"x": x}, "y": y}


HOW: dict[str, Any] = {
    "forward": lambda model, batch: model(batch["deep"]["x"]),
    "labels": lambda batch: batch["y"],
    "batch_limit": 3,
}
BATCHES = [as_dict(x, torch.arange(8) % 3) for x in X.split(8)]


def test_every_verb_reads_as_it_is_told_and_no_further() -> None:
    live = list(BATCHES)
    assert adapt(classifier(), live, **HOW).samples == 24
    assert recalibrate(classifier(), live, **HOW).batches == 3
    found = normscope.diagnose(classifier(), live, live=live, **HOW)
    assert found.gap is not None
    assert found.gap.samples == 24
    done = normscope.repair(
        classifier(), found, live, held_out=live, remedies=["recalibrate"], **HOW
    )
    assert done.record.before.samples == 24
    inside = normscope.repair(classifier(), found, live, remedies=["recalibrate"], **HOW)
    assert inside.record.before.samples == 8, "of three batches one judges"
    first = normscope.diagnose(classifier(), live, part="first", **HOW)
    assert first.gap is not None
    assert first.gap.samples == 16
    with normscope.doctor.recalibrated(classifier(), live, **HOW) as model:
        assert int(model[0].num_batches_tracked) == 3


def test_a_variance_that_overflows_in_one_channel_is_refused() -> None:
    for mean, m2 in (([1.0, 1], [torch.inf, 1]), ([torch.nan, 1.0], [1.0, 1])):
        seen = MomentStream()
        tables = (torch.tensor(values).double() for values in (mean, m2))
        seen.add(Moments(torch.tensor(5.0).double(), *tables), 5)
        with pytest.raises(ModelError, match="the input of layer a holds NaN or infinity"):
            _population("a", [seen])
