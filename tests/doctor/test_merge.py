"""State dicts of several places as one, by the law of total variance."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.doctor import merge_statistics, recalibrate
from normscope.errors import InputError


def sites() -> list[Tensor]:
    """Data that differ more between the sites than within them."""
    generator = torch.Generator().manual_seed(0)
    sizes, shifts, scales = (40, 7, 90), (-3.0, 0.0, 4.0), (0.5, 1.0, 2.0)
    parts = zip(sizes, shifts, scales, strict=True)
    return [torch.randn(n, 5, generator=generator) * scale + shift for n, shift, scale in parts]


def seen(model: nn.Module, *batches: Tensor) -> dict[str, Any]:
    model = copy.deepcopy(model).train()
    for batch in batches:
        model(batch)
    return model.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_those_of_the_pooled_data(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.BatchNorm1d(5, momentum=None)).to(dtype)
    data = [part.to(dtype) for part in sites()]
    states = [seen(model, part) for part in data]
    before = copy.deepcopy(states)
    merged = merge_statistics(states, [len(part) for part in data])
    pooled = np.concatenate([part.double().numpy() for part in data])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(merged["0.running_mean"], pooled.mean(0), rtol=tolerance)
    np.testing.assert_allclose(merged["0.running_var"], pooled.var(0, ddof=1), rtol=tolerance)
    assert int(merged["0.num_batches_tracked"]) == 3
    assert {key: t.dtype for key, t in merged.items()} == {k: t.dtype for k, t in states[0].items()}
    weights = np.array([len(part) for part in data]) / len(pooled)
    wrong = sum(
        w * s["0.running_var"].double().numpy() for w, s in zip(weights, states, strict=True)
    )
    assert (wrong < 0.5 * pooled.var(0, ddof=1)).all()  # what lies between the sites is missing
    torch.testing.assert_close(states, before, rtol=0, atol=0)
    nn.Sequential(nn.BatchNorm1d(5)).to(dtype).load_state_dict(merged)
    merged["0.weight"].fill_(9)
    torch.testing.assert_close(states, before, rtol=0, atol=0)


def test_parameters_are_averaged_and_one_state_dict_is_itself() -> None:
    one, two = (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)) for _ in range(2))
    for model in (one, two):
        nn.init.normal_(model[1].weight)
    merged = merge_statistics([one.state_dict(), two.state_dict()], [10, 30])
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        torch.testing.assert_close(
            merged[key], 0.25 * one.state_dict()[key] + 0.75 * two.state_dict()[key]
        )
    state = seen(one, torch.randn(9, 5))
    torch.testing.assert_close(merge_statistics([state], [9]), dict(state))


def test_federated_rounds() -> None:
    """Sites train apart and are averaged; the server's statistics are those of all data."""
    torch.manual_seed(0)
    data = [(x, (x[:, :1] * x[:, 1:2] > x.mean() ** 2).float()) for x in sites()]
    counts = [len(x) for x, _ in data]
    norm = nn.BatchNorm1d(8, momentum=None)
    server = nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 1))
    for _ in range(5):
        states = []
        for x, y in data:
            site = copy.deepcopy(server).train()
            site[1].reset_running_stats()
            optimizer = torch.optim.SGD(site.parameters(), 0.01)
            for rows in torch.randperm(len(x)).chunk(2):
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(site(x[rows]), y[rows]).backward()
                optimizer.step()
            states.append(site.state_dict())
        server.load_state_dict(merge_statistics(states, counts))
    wrong = sum(n * s["1.running_var"] for n, s in zip(counts, states, strict=True)) / sum(counts)
    exact = copy.deepcopy(server)
    recalibrate(exact, [x for x, _ in data], propagate="sequential")
    torch.testing.assert_close(server[1].running_var, exact[1].running_var, rtol=0.1, atol=0)
    assert (wrong < 0.8 * exact[1].running_var).float().mean() > 0.5


def test_statistics_by_condition() -> None:
    layer = normscope.ConditionalBatchNorm1d(2, 3, momentum=None).double()
    one, two = torch.randn(40, 2).double(), torch.randn(30, 2).double() * 3 + 5
    states = []
    for x, ids in ((one, torch.arange(40) % 2), (two, torch.ones(30, dtype=torch.long))):
        site = copy.deepcopy(layer)
        site(x, ids)
        states.append(site.state_dict())
    merged = merge_statistics(states, [40, 30])
    apart = states[0]["running_var"][0]
    torch.testing.assert_close(merged["running_var"][0], apart)  # the second never saw it
    both = torch.cat([one[1::2], two])
    torch.testing.assert_close(merged["running_mean"][1], both.mean(0))
    torch.testing.assert_close(merged["running_var"][1], both.var(0))
    assert merged["running_mean"][2].tolist() == [0, 0]  # nobody saw it
    assert merged["num_batches_tracked"].tolist() == [1, 2, 0]


def state(**more: Any) -> dict[str, Any]:
    return nn.BatchNorm1d(3).state_dict() | more


@pytest.mark.parametrize(
    ("states", "counts", "sentence"),
    [
        ([], [], "0 state dicts and 0 counts"),
        ([state(), state()], [5], "2 state dicts and 1 counts; one count for each"),
        ([state(), state()], [5, 0], "count 1 is 0; it must be how many values"),
        ([state(), state()], [5, -2.5], "count 1 is -2.5"),
        ([state(), state()], [float("nan"), 5], "count 0 is nan"),
        ([state(), state()], [float("inf"), 5], "count 0 is inf"),
        ([state(), state()], ["5", 5], "count 0 is '5'"),
        ([{"w": torch.ones(2)}], [5], r"no running statistics \(no running_mean\)"),
        ([state(), state(w=torch.ones(2))], [5, 5], "state dict 1 .* differ in keys: w"),
        ([state(), state(weight=torch.ones(2))], [5, 5], r"weight is \(2,\).* and \(3,\)"),
        ([state(), state(weight=torch.ones(3).double())], [5, 5], "weight is .*float64 .*float32"),
        ([state(), state(bias=torch.full((3,), torch.nan))], [5, 5], "bias in state dict 1 is not"),
        ([state(i=torch.ones(1).int()), state(i=torch.zeros(1).int())], [5, 5], "i holds whole"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_merged(states: Any, counts: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        merge_statistics(states, counts)


def test_whole_numbers_and_other_entries_that_agree_are_kept_as_copies() -> None:
    given = [state(index=torch.tensor([3, 1]), note="a") for _ in range(2)]
    merged = merge_statistics(given, [5, 7])
    assert torch.equal(merged["index"], torch.tensor([3, 1]))
    assert merged["note"] == "a"
    assert list(merged) == list(given[0])
    merged["index"].fill_(9)
    assert given[0]["index"].tolist() == [3, 1]


def test_an_entry_that_is_no_tensor_does_not_end_the_checks() -> None:
    first, second = ({"note": "a"} | state(weight=torch.ones(n)) for n in (3, 2))
    with pytest.raises(InputError, match=r"weight is \(2,\).* and \(3,\)"):
        merge_statistics([first, second], [5, 5])


def test_of_many_keys_that_differ_three_are_told() -> None:
    one = nn.BatchNorm1d(2).state_dict()
    two = {**one, **{f"more.{i}": torch.zeros(1) for i in range(5)}}
    with pytest.raises(InputError, match="state dict 1 and the first differ in keys") as problem:
        merge_statistics([one, two], [5, 5])
    assert [f"more.{i}" in str(problem.value) for i in range(5)] == [True] * 3 + [False] * 2


def test_counts_of_millions_are_exact() -> None:
    one, two = nn.BatchNorm1d(1).double().state_dict(), nn.BatchNorm1d(1).double().state_dict()
    one["running_mean"] = torch.ones(1).double()
    merged = merge_statistics([one, two], [2**24 + 1, 2**24 - 1])
    assert float(merged["running_mean"]) == pytest.approx(0.5 + 2**-25, abs=1e-12)
