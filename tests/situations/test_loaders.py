"""Loaders as people write them: endless, once only, in workers, of changing sizes, of objects."""

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from normscope.doctor import diagnose, recalibrate, repair
from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    assert_one_sentence,
    assert_stale,
    by_hand,
    digit_batches,
    digits,
    digits_model,
    epoch_ago,
    fingerprint,
    look,
    mended,
    norms,
    random_state,
    refused,
    settled,
    train,
)


def stale() -> nn.Module:
    return epoch_ago(digits_model(), dose=1.5)


class Endless(IterableDataset[Any]):
    """A stream that never ends, as from a simulator."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = digits()
        number = 0
        while True:
            yield x[number % 1280], y[number % 1280]
            number += 1


@pytest.mark.timeout(60)
def test_an_endless_stream() -> None:
    """batch_limit says how many batches are read."""
    model = stale()
    loader = DataLoader(Endless(), 64)
    found = look(model, loader, batch_limit=15)
    assert_stale(found)
    assert found.gap is not None
    assert found.gap.samples <= 15 * 64
    assert_kept(repair(model, found, loader, batch_limit=15))


def test_two_workers() -> None:
    x, y = digits()
    loader = DataLoader(TensorDataset(x[:640], y[:640]), 64, shuffle=True, num_workers=2)
    model = stale()
    found = look(model, loader, select=["NS002", "NS003"])
    assert_stale(found)


def test_looking_and_mending_draw_no_random_number() -> None:
    """A shuffling DataLoader takes its seed from torch's generator; a seeded experiment must go on as before."""
    x, y = digits()
    loader = DataLoader(TensorDataset(x[:640], y[:640]), 64, shuffle=True)
    model = stale()

    before = random_state()
    found = diagnose(model, loader)
    assert random_state() == before, "diagnose draws"
    repair(model, found, loader)
    assert random_state() == before, "repair draws"
    recalibrate(model, loader)
    assert random_state() == before, "recalibrate draws"


def test_an_iterator_that_can_be_read_once() -> None:
    """A generator of batches; each verb gets a fresh one."""
    model = stale()
    best = accuracy(digits_model())
    found = look(model, (batch for batch in digit_batches()))
    assert_stale(found)
    assert_kept(repair(model, found, (batch for batch in digit_batches())))
    assert accuracy(model) > best - 1.5


def test_the_last_batch_has_one_sample() -> None:
    """1,281 samples in batches of 64 with norms over single values: torch refuses such a batch in train()."""
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )
    train(model, digit_batches(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=4)
    model = settled(model, digit_batches())
    loader = DataLoader(TensorDataset(x[:1281], y[:1281]), 64)
    healthy = look(model, loader)
    assert not healthy.fails("error"), [(f.code, f.severity) for f in healthy.findings]
    assert "NS007" in healthy.codes, "the last batch is too small"
    best = accuracy(model)
    epoch_ago(model, dose=1.5)
    found, done = mended(model, loader)
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 1.5


def test_batches_and_pictures_of_changing_size() -> None:
    """Buckets: the number of images and their size differ from batch to batch."""
    x, y = digits()
    batches: list[Any] = []
    start = 0
    for number in range(30):
        size, side = 16 + 8 * (number % 5), 8 + 2 * (number % 3)
        pictures = F.interpolate(x[start : start + size], (side, side), mode="bilinear")
        batches.append((pictures, y[start : start + size]))
        start += size
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, bias=False), nn.BatchNorm2d(24),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip
    train(model, batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=6)
    model = settled(model, batches)
    assert not look(model, batches).fails("error")
    best = accuracy(model)
    epoch_ago(model, dose=1.5)
    assert accuracy(model) < best - 3, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 2


def test_numpy_all_the_way() -> None:
    batches = [(x.numpy(), y.numpy()) for x, y in digit_batches()]
    assert_cleared(look(digits_model(), batches))
    best, model = accuracy(digits_model()), stale()
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 1.5
    assert recalibrate(digits_model(), batches).batches == len(batches)


Sample = namedtuple("Sample", ["image", "label", "path", "weight"])


@pytest.mark.parametrize(
    "kind",
    [
        "(x, y, None)",
        "(x, None)",
        "named tuple",
        "[x, y]",
        "label",
        "target",
        "targets",
        "y",
        "(x, [paths])",
        "((x,), y)",
    ],
)
def test_the_structures_of_a_batch(kind: str) -> None:
    """One grammar; what is no tensor passes through untouched."""

    class Named(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image: Tensor) -> Tensor:
            return self.inner(image)  # type: ignore[no-any-return]

    def made(x: Tensor, y: Tensor) -> Any:
        if kind in {"label", "target", "targets", "y"}:
            return {"image": x, kind: y, "path": ["a.png"] * len(x)}
        return {
            "(x, y, None)": (x, y, None),
            "(x, None)": (x, None),
            "named tuple": Sample(x, y, ["a.png"] * len(x), None),
            "[x, y]": [x, y],
            "(x, [paths])": (x, ["a.png"] * len(x)),
            "((x,), y)": ((x,), y),
        }[kind]

    batches = [made(x, y) for x, y in digit_batches()]
    model = Named(digits_model()).eval()
    assert_cleared(look(model, batches))
    epoch_ago(model, dose=1.5)
    best = accuracy(digits_model())
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 1.5
    if "None)" not in kind and "paths" not in kind:
        assert found.gap is not None
        assert found.gap.train_accuracy > 0.9, "labels were there"


class Graphs:
    """Nodes of all graphs in a row and whose they are, as torch_geometric's Batch: no tensor, no mapping."""

    def __init__(self, nodes: Tensor, owner: Tensor, y: Tensor) -> None:
        self.nodes, self.owner, self.y = nodes, owner, y


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.node = nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.graph = nn.Sequential(
            nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)
        )

    def forward(self, batch: Graphs) -> Tensor:
        h = self.node(batch.nodes)
        total = torch.zeros(len(batch.y), 32).index_add(0, batch.owner, h)
        return self.graph(total)  # type: ignore[no-any-return]


def graphs(n: int, seed: int) -> list[Graphs]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        y = torch.randint(0, 3, (40,), generator=random)
        owner = torch.repeat_interleave(
            torch.arange(40), torch.randint(4, 15, (40,), generator=random)
        )
        nodes = torch.randn(len(owner), 5, generator=random) * 2 + 1
        nodes[:, 0] += y[owner] * 0.8
        made.append(Graphs(nodes, owner, y))
    return made


@pytest.mark.parametrize("said", ["forward=", "forward= and metric="])
def test_graphs_are_objects(said: str) -> None:
    """With forward= a batch is never interpreted: its size, its labels and its parts are the owner's."""
    batches = graphs(20, 0)
    torch.manual_seed(0)
    model = train(GraphNet(), batches, lambda m, b: F.cross_entropy(m(b), b.y), epochs=6, lr=1e-2)
    model = settled(model, batches, lambda m, b: m(b))
    more: dict[str, Any] = {"forward": lambda m, b: m(b)}
    if "metric" in said:
        more["metric"] = lambda out, b: float((out.argmax(1) == b.y).double().mean())
    assert not look(model, batches, **more).fails("error")
    exact = norms(by_hand(model, batches, lambda m, b: m(b)))
    epoch_ago(model, dose=1.2)
    found, done = mended(model, batches, **more)
    assert_stale(found)
    assert_kept(done)
    for norm, right in zip(norms(model), exact, strict=True):
        assert (
            float(((norm.running_mean - right.running_mean).abs() / right.running_var.sqrt()).max())
            < 0.2
        )


def test_a_loader_that_fails_half_way() -> None:
    def batches() -> Iterator[Any]:
        yield from digit_batches()[:3]
        raise OSError("image truncated")

    model = stale()
    before = fingerprint(model)
    problem = refused(lambda: diagnose(model, batches()))
    assert_one_sentence(problem, "3 batches", "image truncated")
    found = diagnose(model, digit_batches())
    assert_one_sentence(refused(lambda: repair(model, found, batches())), "image truncated")
    assert_one_sentence(refused(lambda: recalibrate(model, batches())), "image truncated")
    assert fingerprint(model) == before


@pytest.mark.parametrize("given", ["a data set", "nothing", "words"])
def test_what_is_no_loader_is_refused_in_a_sentence(given: str) -> None:
    x, y = digits()
    source: Any = {
        "a data set": TensorDataset(
            x[:100], y[:100]
        ),  # one sample at a time, without an axis of samples
        "nothing": [],
        "words": ["up", "down"],
    }[given]
    model = digits_model()
    before = fingerprint(model)
    words = ["DataLoader"] if given == "a data set" else []
    assert_one_sentence(refused(lambda: diagnose(model, source)), *words)
    assert fingerprint(model) == before


class OneGraph(nn.Module):
    """Takes a graph whole: every node hears its neighbours."""

    def __init__(self, hear: Tensor) -> None:
        super().__init__()
        self.hear = hear
        self.first, self.norm, self.head = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, graph: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.head(self.hear @ F.relu(self.norm(self.first(graph["x"]))))
        return y


def test_one_graph_that_cannot_be_divided() -> None:
    """It is said how to judge a repair on it; its nodes are meant to hear each other."""
    torch.manual_seed(0)
    y = torch.arange(240) % 3
    x = F.one_hot(y, 3).float() @ torch.randn(3, 16) + torch.randn(240, 16)
    hear = ((y[:, None] == y) & (torch.rand(240, 240) < 0.1)).float() + torch.eye(240)
    model, data = OneGraph(hear / hear.sum(1, keepdim=True)), [{"x": x, "y": y}]

    def run(model: nn.Module, graph: Any) -> Any:
        return model(graph)

    train(model, data * 6, lambda m, g: F.cross_entropy(m(g), g["y"]), epochs=4)
    found = look(model, data, forward=run, labels="y")
    assert_stale(found)
    assert all(f.severity == "warning" for f in found.findings if f.code == "NS026")
    problem = refused(lambda: repair(model, found, data, forward=run, labels="y"))
    assert_one_sentence(problem, "one batch", "held_out=")
    done = repair(model, found, data, held_out=data, forward=run, labels="y")
    assert set(done.record.kept) & {"correct_cold", "recalibrate"}
    assert done.record.after.loss < done.record.before.loss


def test_batches_of_one_that_train_refuses_are_not_those_of_training() -> None:
    """The loader of a service: it says nothing against the weights, and the cause comes first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))
    train(model, digit_batches(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=2)
    single = digit_batches(1, 0, 150)
    healthy = look(model, single)
    (small,) = (f for f in healthy.findings if f.code == "NS007")
    assert (small.severity, small.facts["kind"]) == ("info", "refused")
    for norm in norms(model):
        norm.reset_running_stats()
    found, done = mended(model, single)
    assert found.findings[0].code in ("NS002", "NS003"), found.codes
    assert found.verdict.kind == "statistics", "weights did not adapt to batches of one"
    assert_kept(done)
