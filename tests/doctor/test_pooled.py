"""Small batches are put together where a model in eval() answers them alike, and only there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.doctor import attribution, diagnose, held_out, pooled, repair
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal
from tests.doctor.patients import healthy, in_training, norms

CALLS: list[int] = []  # samples of every forward; outside of the model, which is taken back


class Counted(nn.Module):
    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.net, self.kind = healthy(), kind

    def forward(self, x: Tensor) -> Any:
        CALLS.append(len(x))
        if self.kind == "noise":
            x = x + 0.01 * torch.randn_like(x)
        if self.kind == "company":
            x = x - x.mean()
        y = self.net(x)
        return y[:, : 2 + int(10 * x.sum()) % 5] if self.kind == "width" else y


def pairs(number: int = 60) -> list[Any]:
    return in_training(2)[:number]


def sick() -> nn.Module:
    model = Counted().eval()
    norms(model)[0].running_mean += norms(model)[0].running_var.sqrt()
    return model


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "WORTH", 10**9)


def test_what_is_found_is_what_single_batches_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnose(sick(), pairs())
    done = repair(sick(), found, pairs())
    without(monkeypatch)
    slow = diagnose(sick(), pairs())
    assert found.codes == slow.codes
    assert found.gap == slow.gap
    for cause, other in zip(found.causes, slow.causes, strict=True):
        assert (cause.name, cause.layers) == (other.name, other.layers)
        assert cause.closes == pytest.approx(other.closes, abs=1e-4)
    again = repair(sick(), slow, pairs())
    assert done.record.kept == again.record.kept
    assert done.record.after.loss == pytest.approx(again.record.after.loss, abs=1e-5)


def test_forwards_do_not_grow_with_overrides_and_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is run in both modes; what comes after is run on joined ones."""
    CALLS.clear()
    found = diagnose(sick(), pairs())
    assert len(CALLS) < 2.5 * 60
    CALLS.clear()
    repair(sick(), found, pairs())
    few = len(CALLS)
    without(monkeypatch)
    CALLS.clear()
    repair(sick(), found, pairs())
    assert few < 0.75 * len(CALLS)


@pytest.mark.parametrize(
    ("kind", "joins"),
    [("", True), ("noise", False), ("company", False), ("forward", False), ("width", False)],
)
def test_only_where_company_and_chance_change_nothing(kind: str, joins: bool) -> None:
    model, batches = Counted(kind).eval(), pairs(40)
    forward = (lambda m, b: m(b[0])) if kind == "forward" else None
    loader = Loader(batches, model, forward=forward)
    read = list(loader.read())
    pool = pooled.pooled(model, loader, {}, read, Goal())
    assert [b.size for b in pool.batches] == ([20] * 4 if joins else [2] * 40)
    if joins:
        whole, other = pool.batches[1], batches[10:20]
        assert pool.numbers[1] == list(range(10, 20))
        assert torch.equal(whole.args[0], torch.cat([x for x, _ in other]))
        assert whole.labels is not None
        assert torch.equal(whole.labels, torch.cat([y for _, y in other]))


def test_a_goal_is_asked_for_batches_as_they_came() -> None:
    model, batches = sick(), pairs(20)
    sizes = []

    def metric(output: Tensor, batch: Any) -> float:
        sizes.append(len(output))
        return float((output.argmax(1) == batch[1]).double().mean())

    found = diagnose(model, batches, metric=metric)
    repair(model, found, batches, metric=metric)
    assert set(sizes) == {2}
    assert attribution.pooled is held_out.pooled is pooled.pooled


def test_large_inputs_are_not_put_together() -> None:
    """Memory does not grow: at most ROOM values at a time."""
    batch = (torch.randn(2, pooled.ROOM // 8), torch.zeros(2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(pooled.ROOM // 8, 2, bias=False)).eval()
    loader = Loader([batch] * 16, model)
    pool = pooled.pooled(model, loader, {}, list(loader.read()), Goal())
    assert [b.size for b in pool.batches] == [8, 8, 8, 8]
