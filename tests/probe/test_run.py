"""What a norm normalises with in a run, against the same layer in train() or with other buffers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope import probe
from normscope.probe import run as run_module
from normscope.probe.batches import Loader
from normscope.probe.run import NormRun, dropouts

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
CONDITIONS = torch.arange(24) % 2


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def outcome(model: nn.Module, batch: Any, **how: Any) -> tuple[Tensor, NormRun]:
    layers = {norm.name: norm.module for norm in probe.find_norms(model)}
    run, loader = NormRun(layers, **how), Loader([batch], model)
    with probe.preserved(model), run.active():
        (output,) = [run.run(loader, model, read) for read in loader.read()]
    return output, run


def conditional(ids: Tensor) -> tuple[nn.Module, Any]:
    return normscope.ConditionalBatchNorm1d(3, 2).eval(), {"input": X, "condition": ids}


LAYERS: dict[str, Any] = {
    "plain": lambda: (nn.BatchNorm1d(3).eval(), X),
    "own": lambda: (normscope.BatchNorm1d(3).eval(), X),
    "fused": lambda: (normscope.BatchNorm1d(3, act="relu").eval(), X),
    "by condition": lambda: conditional(CONDITIONS),
    "frozen": lambda: (normscope.FrozenBatchNorm1d(3).eval(), X),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_normalises_by_the_batch_and_stays_as_it_was(name: str) -> None:
    model, batch = LAYERS[name]()
    before = state(model)
    output, run = outcome(model, batch, by_batch={type(model).__name__})
    assert state(model) == before
    groups = [CONDITIONS.eq(k) for k in (0, 1)] if name == "by condition" else [slice(None)]
    expected = torch.empty_like(X)
    for rows in groups:
        expected[rows] = (X[rows] - X[rows].mean(0)) / (X[rows].var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(output, expected.relu() if name == "fused" else expected)
    ((stream,),) = run.streams.values()
    assert (stream.samples, stream.batches) == (24, 1)


def test_a_condition_with_one_sample_keeps_the_statistics_that_it_has() -> None:
    ids = torch.zeros(24, dtype=torch.long)
    ids[7] = 1
    model, batch = conditional(ids)
    output, _ = outcome(model, batch, by_batch={type(model).__name__})
    torch.testing.assert_close(output[7], X[7] / (1 + 1e-5) ** 0.5)
    others = X[ids == 0]
    torch.testing.assert_close(output[ids == 0].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert others.mean() > 3


def test_chosen_statistics_stand_for_the_stored_ones_in_one_run() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    chosen = (torch.full((3,), 5.0), torch.full((3,), 4.0))
    output, run = outcome(model, X, stored={"0": chosen}, measured={"1"})
    torch.testing.assert_close(output, (X - 5) / (4 + 1e-5) ** 0.5 / (1 + 1e-5) ** 0.5)
    assert set(run.streams) == {"1"}
    assert run.order == ["0", "1"]
    assert model[0].running_mean.tolist() == [0, 0, 0]


def test_a_forward_ends_behind_the_last_layer_that_is_asked_for() -> None:
    class Tail(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("not to be run")

    model = nn.Sequential(nn.BatchNorm1d(3), Tail()).eval()
    output, run = outcome(model, X, measured={"0"}, last="0")
    assert output is None
    assert run.streams["0"][0].samples == 24


class Draws(nn.Module):
    """Noise of every generator that people use."""

    def forward(self, x: Tensor) -> Tensor:
        numpys = float(np.random.rand())  # noqa: NPY002
        return x + torch.stack(
            [torch.rand(()), torch.tensor(random.random()), torch.tensor(numpys)]
        )


def test_every_run_of_a_batch_draws_the_same_numbers() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Draws()).eval()
    first, second = (outcome(model, X)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert (first - X).std(0).max() < 1e-4 < (first - X).mean(0).std()


def test_dropout_that_drops_nothing_is_none() -> None:
    model = nn.Sequential(nn.Dropout(0.0), nn.Dropout2d(0.1), nn.AlphaDropout(0.5), nn.ReLU())
    assert dropouts(model) == [model[1], model[2]]


def test_what_a_run_measures_is_the_layers_input_as_the_layer_takes_it() -> None:
    layer = normscope.BatchNorm1d(3).eval()
    mask = torch.arange(24) % 3 > 0
    model: Any = nn.Sequential(layer)
    for forward in (lambda x: layer(x, None, mask), lambda x: layer(input=x, mask=mask)):
        model.forward = forward
        _, run = outcome(model, X)
        total = run.streams["0"][0].total()
        assert total.count == 16
        torch.testing.assert_close(total.mean.float(), X[mask].mean(0))
    half = nn.Sequential(nn.BatchNorm1d(3)).half().eval()
    _, run = outcome(half, X)
    torch.testing.assert_close(run.streams["0"][0].total().mean, X.half().double().mean(0))
    wide, far = nn.Sequential(nn.BatchNorm1d(3)).double().eval(), X.double() + 1e6 + 1e-6
    _, run = outcome(wide, far)
    torch.testing.assert_close(run.streams["0"][0].total().mean, far.mean(0), rtol=1e-15, atol=0)
    brain = nn.Sequential(nn.BatchNorm1d(3)).bfloat16().eval()
    _, run = outcome(brain, X)
    torch.testing.assert_close(run.streams["0"][0].total().mean, X.bfloat16().double().mean(0))
    model, batch = conditional(CONDITIONS)
    _, run = outcome(model, batch)
    total = run.streams["ConditionalBatchNorm1d"][0].total()
    torch.testing.assert_close(
        total.mean.float(), torch.stack([X[CONDITIONS.eq(k)].mean(0) for k in (0, 1)])
    )


def test_calls_features_and_order_are_kept_layer_by_layer() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(self.b(2 * self.b(x)))
            return y + 1

    model = Model().eval()
    model.b.forward = model.b.forward  # type: ignore[method-assign]  # of its own
    own = model.b.__dict__["forward"]
    output, run = outcome(model, X)
    assert run.order == ["b", "a"]
    assert run.most_calls == {"b": 2, "a": 1}
    assert [len(run.streams[name]) for name in ("b", "a")] == [2, 1]
    assert run.features is not None
    torch.testing.assert_close(run.features, output - 1)
    assert model.b.__dict__["forward"] is own
    assert "forward" not in model.a.__dict__
    _, none = outcome(model, X, measured=set())
    assert none.streams == {}
    assert none.order == ["b", "a"]


def test_a_batch_of_one_value_normalises_with_what_is_stored() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    output, run = outcome(model, X[:1], by_batch={"0"})
    torch.testing.assert_close(output, X[:1] / (1 + 1e-5) ** 0.5)
    assert run.streams["0"][0].total().count == 1
    chosen = (torch.full((3,), 5.0), torch.full((3,), 4.0))
    output, _ = outcome(model, X[:1], by_batch={"0"}, stored={"0": chosen})
    torch.testing.assert_close(output, (X[:1] - 5) / (4 + 1e-5) ** 0.5)


def test_compiled_code_runs_as_it_was_written_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    @contextmanager
    def uncompiled() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    monkeypatch.setattr(run_module, "uncompiled", uncompiled)
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    outcome(model, X)
    assert entered == ["in", "out"]
