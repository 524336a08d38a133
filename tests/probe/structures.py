"""Every structure of a batch that loaders give: one table, with models that take them."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

SIZE, BATCHES = 16, 4
N = SIZE * BATCHES
_generator = torch.Generator().manual_seed(3)
CENTRES = 2 * torch.randn(3, 6, generator=_generator)
Y = torch.arange(N) % 3
X = CENTRES[Y] + 0.8 * torch.randn(N, 6, generator=_generator)
C = (torch.arange(N) // 2) % 2  # domains
MAPS = X.view(N, 6, 1, 1).repeat(1, 1, 4, 4)
MAPS = MAPS + 0.3 * torch.randn(N, 6, 4, 4, generator=_generator)
MASKS = Y.view(N, 1, 1).repeat(1, 4, 4)
MASKS[:, 0, 0], MASKS[:, 1, 1] = 255, -100  # ignored


class Scores(nn.Module):
    """Classes of X, right to about 90 %, with running statistics that are off by one."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.norm, self.act = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
        self.head = nn.Linear(8, outputs)
        with torch.no_grad():
            self.first.weight.copy_(torch.randn(8, 6, generator=generator))
            self.first.bias.zero_()
            h = X @ self.first.weight.T
            self.norm.running_mean.copy_(h.mean(0))
            self.norm.running_var.copy_(h.var(0))
            self.norm.num_batches_tracked.fill_(1000)
            z = ((h - h.mean(0)) / h.std(0)).relu()
            z1 = torch.cat([z, torch.ones(N, 1)], 1)
            wanted = 4 * nn.functional.one_hot(Y, 3).float() if outputs == 3 else X[:, :outputs]
            found = torch.linalg.lstsq(z1, wanted).solution
            self.head.weight.copy_(found[:-1].T)
            self.head.bias.copy_(found[-1])
            self.norm.running_mean += h.std(0)
        self.eval()

    def scores(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.norm(self.first(x))))
        return y


class Net(Scores):
    """Takes one tensor."""

    def forward(self, x: Tensor) -> Any:
        return self.scores(x)


class Pair(Scores):
    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.scores(torch.cat([a, b], 1))


class Transformer(Scores):
    """As those of Hugging Face: named inputs, labels among them, a dict with the loss first."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        logits = self.scores(input_ids * attention_mask)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class OfObject(Scores):
    def forward(self, graph: Any) -> Any:
        return self.scores(graph.x)


class OfImages(Scores):
    """As torchvision's detectors: a list of images of unlike shapes, and targets."""

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        return self.scores(torch.stack([image.mean((1, 2)) for image in images]))


class Dense(nn.Module):
    """One class per position, with the weights of Net."""

    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.first, self.norm, self.act = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            for mine, other in ((self.first, net.first), (self.head, net.head)):
                mine.weight.copy_(other.weight[:, :, None, None])
                mine.bias.copy_(other.bias)
        self.norm.load_state_dict(net.norm.state_dict())
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.act(self.norm(self.first(x))))


class Sample(NamedTuple):
    image: Any
    label: Any


class Told(NamedTuple):
    meta: Any
    target: Any
    domain: Any
    image: Any


class Endless(IterableDataset[Any]):
    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from pairs()
            if self.ends:
                return


class Singles(Dataset[Any]):
    """With a name and nothing beside it, which torch's default collation keeps as a list."""

    def __getitem__(self, index: int) -> Any:
        return {"x": X[index], "label": int(Y[index]), "path": f"{index}.png"}

    def __len__(self) -> int:
        return N


def split(*columns: Any, sizes: int | list[int] = SIZE) -> list[tuple[Any, ...]]:
    """Batches of rows."""
    return list(zip(*(c.split(sizes) for c in columns), strict=True))


def pairs() -> list[tuple[Any, ...]]:
    return split(X, Y)


def each(make: Callable[..., Any], *columns: Tensor) -> Callable[[], list[Any]]:
    """Batches that `make` forms of each one's columns."""
    return lambda: [make(*rows) for rows in split(*columns or (X, Y))]


@dataclass(frozen=True)
class Case:
    """One structure.

    Attributes:
        loader: made anew for every reading by a verb.
        model: that takes it.
        like: the case that holds the same data, so every verb must answer the same; "": none.
        options: of the verbs that take them (forward, labels, batch_limit, loss, metric).
        cannot: verb -> its one sentence, where the structure cannot serve it.
        warns: what every reading warns of.
    """

    loader: Callable[[], Iterable[Any]]
    model: Callable[[], nn.Module] = Net
    like: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    warns: str = ""


NO_INPUTS = {"verify": "verify needs a batch"}  # `forward` runs it, nobody knows with what
TWO = {"forward": lambda model, batch: model(batch[0])}
OBJECTS = {"forward": lambda model, batch: model.scores(batch.x)}
KEYS = ("labels", "label", "targets", "target", "y")


def objects(x: Tensor, y: Tensor) -> Any:
    return SimpleNamespace(x=x, y=y)


def images(x: Tensor) -> list[Tensor]:
    """Of unlike heights; their mean over positions is x."""
    return [row.view(6, 1, 1).repeat(1, 3 + i % 3, 5) for i, row in enumerate(x)]


def boxes(y: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.ones(2, 4), "labels": label.repeat(2)} for label in y]


def half() -> nn.Module:
    return Net().half()


CASES: dict[str, Case] = {
    # inputs alone
    "tensor": Case(lambda: list(X.split(SIZE))),
    "tuple of one": Case(each(lambda x: (x,), X), like="tensor"),
    "numpy alone": Case(each(lambda x: x.numpy(), X), like="tensor"),
    "one dict, no labels": Case(each(lambda x: {"x": x}, X), like="tensor"),
    # pairs
    "pair": Case(pairs),
    "pair in a list": Case(each(lambda x, y: [x, y]), like="pair"),
    "numpy": Case(each(lambda x, y: (x.numpy(), y.numpy())), like="pair"),
    "numpy float64": Case(each(lambda x, y: (x.double().numpy(), y.numpy())), like="pair"),
    "lists of numbers": Case(each(lambda x, y: (x.tolist(), y.tolist())), like="pair"),
    "tensor float64": Case(
        each(lambda x, y: (x.double(), y)),
        cannot=dict.fromkeys(
            ("diagnose", "repair", "recalibrate", "adapt", "inspect"), "failed on batch 0"
        ),
    ),
    "half precision model": Case(pairs, half),
    "named tuple": Case(each(Sample), like="pair"),
    # what is no tensor beside tensors
    "string": Case(each(lambda x, y: (x, y, "a.png")), like="pair"),
    "strings": Case(each(lambda x, y: (x, y, ["a.png"] * len(y))), like="pair"),
    "None": Case(each(lambda x, y: (x, y, None)), like="pair"),
    "object": Case(each(lambda x, y: (x, y, object())), like="pair"),
    "dicts": Case(each(lambda x, y: (x, y, [{"i": i} for i in range(len(y))])), like="pair"),
    "four entries": Case(each(lambda x, y: (x, y, None, ["a.png"] * len(y))), like="pair"),
    "strings for labels": Case(
        each(lambda x: (x, ["cat"] * len(x)), X), like="tensor"
    ),
    "dicts for labels": Case(
        each(lambda x: (x, [{"boxes": torch.ones(2, 4)}] * len(x)), X),
        like="tensor",
    ),
    "object and labels": Case(
        each(lambda x, y: (objects(x, y), y)), OfObject,
        cannot={"verify": "OfObject cannot be verified"},
    ),
    "object alone": Case(
        each(objects), OfObject, cannot={"verify": "OfObject cannot be verified"}
    ),
    # a condition
    "triple": Case(lambda: split(X, Y, C)),
    "triple in a list": Case(each(lambda *t: list(t), X, Y, C), like="triple"),
    "dict with a domain": Case(
        each(lambda x, y, c: {"x": x, "y": y, "domain": c}, X, Y, C), like="triple"
    ),
    "named tuple with a domain": Case(
        each(lambda x, y, c: Told("a.png", y, c, x), X, Y, C),
        options={"forward": lambda model, batch: model(batch.image)},
        like="triple", cannot=NO_INPUTS,
    ),
    "sample numbers": Case(lambda: split(X, Y, torch.arange(N))),
    # nested inputs
    "pair of inputs": Case(each(lambda x, y: ((x[:, :3], x[:, 3:]), y)), Pair, like="pair"),
    "pair of inputs in lists": Case(
        each(lambda x, y: [[x[:, :3], x[:, 3:]], y]), Pair, like="pair"
    ),
    "named inputs": Case(
        each(lambda x, y: ({"b": x[:, 3:], "a": x[:, :3]}, y)), Pair, like="pair"
    ),
    # dicts
    **{
        f"dict with {key}": Case(each(lambda x, y, key=key: {"x": x, key: y}), like="pair")
        for key in KEYS
    },
    "dict with extra keys": Case(
        each(lambda x, y: {
            "path": ["a.png"] * len(y), "x": x, "weight": torch.ones(len(y)), "label": y,
            "meta": object(),
        }), like="pair",
    ),
    "image and label": Case(each(lambda x, y: {"image": x, "label": y}), like="pair"),
    "image, label, more": Case(
        each(lambda x, y: {"weight": torch.ones(len(y)), "image": x, "label": y, "id": "a"}),
        like="pair",
    ),
    "dict of two inputs": Case(
        each(lambda x, y: {"label": y, "b": x[:, 3:], "a": x[:, :3]}), Pair, like="pair"
    ),
    "transformer": Case(
        each(lambda x, y: {"input_ids": x, "attention_mask": torch.ones(len(x), 1), "labels": y}),
        Transformer, like="pair",
    ),
    "collated dicts": Case(lambda: DataLoader(Singles(), SIZE), like="pair"),
    # labels
    "one-hot": Case(each(lambda x, y: (x, torch.eye(3)[y])), like="pair"),
    "labels (N, 1)": Case(each(lambda x, y: (x, y[:, None])), like="pair"),
    "labels int32": Case(each(lambda x, y: (x, y.int())), like="pair"),
    "bool labels": Case(each(lambda x, y: (x, y == 1)), like="two classes"),
    "two classes": Case(each(lambda x, y: (x, (y == 1).long()))),
    "float labels": Case(lambda: split(X, X[:, 0]), like="tensor"),
    "values": Case(lambda: split(X, X[:, :2]), lambda: Net(2)),
    "None for labels": Case(each(lambda x: (x, None), X), like="tensor"),
    "one label": Case(lambda: split(X, torch.zeros(N).long())),
    "masks": Case(lambda: split(MAPS, MASKS), Dense),
    "masks (N, 1, H, W)": Case(
        lambda: split(MAPS, MASKS[:, None]), Dense, like="masks"
    ),
    # labels= and forward=
    "labels by position": Case(
        each(lambda x, y: (x, "a", y)), options={"labels": 2}, like="pair"
    ),
    "labels by key": Case(
        each(lambda x, y: {"x": x, "kind": y}), options={"labels": "kind"}, like="pair"
    ),
    "labels by function": Case(
        each(lambda x, y: {"x": x, "meta": {"kind": y}}),
        options={"labels": lambda batch: batch["meta"]["kind"]}, like="pair",
    ),
    "pair, forward": Case(pairs, options=TWO, like="pair", cannot=NO_INPUTS),
    "object, forward": Case(
        each(objects), options=OBJECTS | {"labels": "y"}, cannot=NO_INPUTS,
    ),
    "list of tensors, forward": Case(
        each(lambda x: list(x), X),
        options={"forward": lambda model, batch: model(torch.stack(batch))}, like="tensor",
        cannot=NO_INPUTS,
    ),
    "images and targets": Case(
        each(lambda x, y: (images(x), boxes(y))), OfImages
    ),
    "images and targets, forward": Case(
        each(lambda x, y: (images(x), boxes(y))), OfImages, options=TWO,
        like="images and targets", cannot=NO_INPUTS,
    ),
    # loaders
    "iterator": Case(lambda: iter(pairs()), like="pair"),
    "generator": Case(lambda: (batch for batch in pairs()), like="pair"),
    "IterableDataset": Case(lambda: Endless(ends=True), like="pair"),
    "IterableDataset in a DataLoader": Case(
        lambda: DataLoader(Endless(ends=True), batch_size=None), like="pair"
    ),
    "endless": Case(
        lambda: Endless(ends=False), options={"batch_limit": BATCHES}, like="pair"
    ),
    "DataLoader": Case(lambda: DataLoader(TensorDataset(X, Y), SIZE), like="pair"),
    "DataLoader, shuffled": Case(lambda: DataLoader(TensorDataset(X, Y), SIZE, shuffle=True)),
    "DataLoader, workers": Case(
        lambda: DataLoader(TensorDataset(X, Y), SIZE, num_workers=2), like="pair"
    ),
    "batches of one": Case(
        lambda: split(X[:24], Y[:24], sizes=1), cannot={"verify": "more than 1 value per channel"}
    ),
    "changing sizes": Case(lambda: split(X, Y, sizes=[16, 1, 7, 20, 2, 18])),
    "one batch": Case(lambda: split(X, Y, sizes=N)),
    "an empty batch": Case(lambda: [*pairs(), (X[:0], Y[:0])], like="pair"),
}  # fmt: skip


@cache
def _model(make: Callable[[], nn.Module]) -> nn.Module:
    return make()


def model_of(case: Case) -> nn.Module:
    """A new copy of the case's model."""
    return copy.deepcopy(_model(case.model))
