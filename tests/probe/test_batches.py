"""Reading a loader: the same batches at every reading, a part held out, nothing lost."""

import itertools
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from normscope import InputError
from normscope.doctor import diagnose
from normscope.doctor.held_out import HeldOut
from normscope.probe.batches import LIMIT, Loader, held_out
from normscope.probe.compare import Goal
from normscope.probe.grammar import Batch
from normscope.probe.random import kept_generators

MODEL = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).eval()


def numbered(batches: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Samples that are their own number."""
    x = torch.arange(batches * size, dtype=torch.float32)[:, None]
    return list(zip(x.split(size), (x[:, 0].long() % 2).split(size), strict=True))


class Stream(IterableDataset[Any]):
    def __init__(self, batches: int | None = None) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.count() if self.batches is None else range(self.batches):
            yield torch.arange(4 * i, 4 * i + 4.0)[:, None], torch.zeros(4).long()


def data_set(batches: int, size: int = 4) -> TensorDataset:
    x = torch.arange(batches * size, dtype=torch.float32)[:, None]
    return TensorDataset(x, x[:, 0].long() % 2)


SOURCES: dict[str, Callable[[int], Iterable[Any]]] = {
    "list": numbered,
    "iterator": lambda n: iter(numbered(n)),
    "generator": lambda n: (batch for batch in numbered(n)),
    "shuffled": lambda n: DataLoader(data_set(n), 4, shuffle=True),
    "shuffled, its own generator": lambda n: DataLoader(
        data_set(n), 4, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "a sampler with a generator": lambda n: DataLoader(
        data_set(n), 4, sampler=RandomSampler(data_set(n), generator=torch.Generator())
    ),
    "workers": lambda n: DataLoader(data_set(n), 4, shuffle=True, num_workers=2),
    "stream": lambda n: Stream(n),
}


def read(loader: Loader, part: Any) -> list[float]:
    return [v for batch in loader.read(part) for v in batch.args[0].flatten().tolist()]


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_held_out_is_apart_whole_and_the_same_at_every_reading(name: str) -> None:
    for number in (2, 3, 10) if name == "workers" else (1, 2, 3, 7, 10, 40):
        torch.manual_seed(number)
        loader = Loader(SOURCES[name](number), MODEL)
        first, apart = read(loader, "first"), read(loader, "held_out")
        everything = read(loader, "all")
        assert not set(first) & set(apart)
        assert Counter(first) + Counter(apart) == Counter(everything)
        assert read(loader, "held_out") == apart
        assert read(loader, "first") == first
        assert 0 < len(apart) < len(first) or number == 2
        if number == 1:  # a single batch is divided by samples
            assert len(apart) == 1
        else:
            assert len(apart) % 4 == 0, "whole batches"
        if number >= 10:
            assert 0.2 <= len(apart) / len(everything) <= 0.4


def test_a_tenth_of_the_numbers_holds_about_three_held_out() -> None:
    shares = [sum(held_out(i) for i in range(n)) / n for n in (10, 20, 50, 100, 1000)]
    assert all(abs(share - 0.3) <= 0.06 for share in shares)
    assert not held_out(0)
    assert held_out(1), "two batches are enough"


def test_the_judge_reads_what_no_remedy_reads() -> None:
    loader = Loader(numbered(10), MODEL)
    judge = HeldOut.of(MODEL, loader, None, Goal())
    judged = {v for b in judge.batches for v in b.args[0].flatten().tolist()}
    assert judge.part == "first"
    assert judge.loader is loader
    assert judged == set(read(loader, "held_out"))
    assert not judged & set(read(judge.loader, judge.part))
    apart = HeldOut.of(MODEL, loader, Loader(numbered(3), MODEL), Goal())
    assert apart.part == "all", "what judges is another loader's, so nothing is left out"
    assert sum(b.size for b in apart.batches) == 12


def _numbers(loader: Any) -> tuple[Any, ...]:
    own = [g.get_state().tolist() for g in _generators(loader)]
    numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy, own


def _generators(loader: Any) -> list[torch.Generator]:
    found = [getattr(loader, "generator", None)]
    found.append(getattr(getattr(loader, "sampler", None), "generator", None))
    return [g for g in found if g is not None]


@pytest.mark.parametrize("name", SOURCES)
def test_reading_leaves_every_random_generator(name: str) -> None:
    source = SOURCES[name](5)
    before = _numbers(source)
    loader = Loader(source, MODEL)
    for part in ("all", "first", "held_out"):
        assert read(loader, part)
        assert _numbers(source) == before
    reader = loader.read()
    next(reader)
    assert _numbers(source) == before, "half-way too"


def test_random_numbers_between_the_batches_do_not_change_them() -> None:
    """Augmentation draws where the batches are made, the model where it runs."""

    def augmented() -> Iterator[Tensor]:
        for _ in range(6):
            yield torch.rand(3, 1) + random.random() + float(np.random.rand())  # noqa: NPY002

    class Augmented:
        def __iter__(self) -> Iterator[Tensor]:
            return augmented()

        def __len__(self) -> int:
            return 6

    with kept_generators(0):
        loader = Loader(Augmented(), MODEL)
        found = []
        for batch in loader.read():
            torch.rand(5), random.random()
            found += batch.args[0].flatten().tolist()
        torch.rand(7)
        assert read(loader, "all") == found


@pytest.mark.parametrize("name", ["iterator", "generator"])
def test_partial_readings_of_an_iterator_lose_nothing(name: str) -> None:
    source: Any = SOURCES[name](6)
    loader = Loader(source, MODEL)
    for number in (1, 3, 2):
        begun = list(itertools.islice(loader.read(), number))
        assert [int(b.args[0][0]) for b in begun] == [4 * i for i in range(number)]
    assert read(loader, "all") == [float(i) for i in range(24)]
    assert read(loader, "all") == [float(i) for i in range(24)]
    assert next(source, None) is None


def test_two_readings_at_once_do_not_mix() -> None:
    loader = Loader((batch for batch in numbered(6)), MODEL)
    one, other = loader.read(), loader.read()
    pairs = [(int(a.args[0][0]), int(b.args[0][0])) for a, b in zip(one, other, strict=True)]
    assert pairs == [(4 * i, 4 * i) for i in range(6)]


def test_an_iterator_that_is_not_kept_is_read_once() -> None:
    loader = Loader(iter(numbered(5)), MODEL, keep=False)
    assert len(read(loader, "all")) == 20
    assert not loader._kept
    with pytest.raises(InputError, match="gave no samples"):
        read(loader, "all")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_endless_loader_is_read_up_to_a_limit_that_says_so(wrapped: bool) -> None:
    source: Any = DataLoader(Stream(), batch_size=None) if wrapped else Stream()
    loader = Loader(source, MODEL)
    with pytest.warns(UserWarning, match=r"no length: its first 1,000 .*--batches on") as told:
        numbers = [sum(1 for _ in loader.read(part)) for part in PARTS[:2]]
    assert numbers[1] < numbers[0] == LIMIT
    assert len(told) == 1, "said once"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(1 for _ in Loader(source, MODEL, limit=7).read()) == 7
        parts = [sum(1 for _ in Loader(source, MODEL, limit=10).read(p)) for p in PARTS]
    assert parts[0] == parts[1] + parts[2] == 10


PARTS: Any = ("all", "first", "held_out")


def test_an_endless_iterator_is_read_no_further_than_the_limit() -> None:
    asked = []

    def endless() -> Iterator[Tensor]:
        for i in itertools.count():
            asked.append(i)
            yield torch.full((2, 1), float(i))

    loader = Loader(endless(), MODEL, limit=5)
    assert len(read(loader, "all")) == len(read(loader, "all")) == 10
    assert len(asked) <= 5


def test_a_loader_without_length_that_ends_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(Loader(Stream(9), MODEL), "all")) == 36
        exactly = Loader(DataLoader(Stream(3), batch_size=None), MODEL)
        assert len(read(exactly, "all")) == 12


def test_a_limit_holds_for_loaders_with_a_length_too() -> None:
    assert len(read(Loader(numbered(9), MODEL, limit=2), "all")) == 8
    with pytest.raises(InputError, match="the limit is 0 batches; it must be 1 or more"):
        Loader(numbered(2), MODEL, limit=0)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([], "the loader gave no samples; at least one batch is needed"),
        ([torch.zeros(0, 1)], "the loader gave no samples"),
        (5, "the batches are a int, which cannot be iterated over; give a DataLoader"),
        (data_set(2), r"a TensorDataset, a data set of single samples; wrap it: torch.utils"),
    ],
    ids=["empty", "no samples", "number", "Dataset"],
)
def test_what_cannot_be_read_is_one_sentence(source: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(Loader(source, MODEL).read())


def test_a_loader_that_raises_says_where_and_is_left_in_order() -> None:
    def broken() -> Iterator[Any]:
        yield from numbered(3)
        raise OSError("the disk is gone")

    before = _numbers(None)
    with pytest.raises(InputError, match=r"failed after 3 batches: OSError: the disk is gone"):
        read(Loader(broken(), MODEL), "all")
    assert _numbers(None) == before


def test_too_few_samples_to_hold_some_out() -> None:
    loader = Loader([torch.zeros(1, 1)], MODEL)
    assert len(read(loader, "first")) == 1
    with pytest.raises(InputError, match="too few to hold some of them out"):
        read(loader, "held_out")

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch.x)

    class Whole:
        x = torch.zeros(6, 1)

    single = Loader([Whole()], MODEL, forward=forward)
    with pytest.raises(InputError, match="one batch, which cannot be divided into two parts"):
        read(single, "held_out")


@pytest.mark.parametrize(
    ("labels", "batch"),
    [
        ("kind", {"x": torch.zeros(3, 1), "kind": torch.tensor([4, 5, 6])}),
        (1, (torch.zeros(3, 1), torch.tensor([4, 5, 6]))),
        (-1, [torch.zeros(3, 1), "a", [4, 5, 6]]),
        (lambda b: b["meta"]["y"], {"x": torch.zeros(3, 1), "meta": {"y": np.array([4, 5, 6])}}),
    ],
    ids=["key", "position", "from the end", "function"],
)
def test_labels_say_where_labels_are(labels: Any, batch: Any) -> None:
    (found,) = Loader([batch], MODEL, labels=labels).read()
    assert found.labels is not None
    assert found.labels.tolist() == [4, 5, 6]
    assert found.condition is None
    assert MODEL(*found.args, **found.kwargs).shape == (3, 2)


def test_what_a_remedy_reads_is_not_what_judges_it() -> None:
    """The data of training: 30 % of the batches hold other numbers, which no remedy may see."""
    torch.manual_seed(0)
    batches = [torch.randn(16, 1) + 100 * held_out(i) for i in range(20)]
    from normscope.doctor import repair

    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2)).eval()
    found = diagnose(model, batches)
    repair(model, found, batches, remedies=["recalibrate"], force=True)
    mean = float(model[0].running_mean)
    assert abs(mean) < 1, "samples that are held out were read by the remedy"


def test_rows_and_joined_batches_keep_every_column() -> None:
    batch = {"x": torch.arange(6.0)[:, None], "label": torch.arange(6), "path": list("abcdef")}
    loader = Loader([batch, batch], MODEL)
    first, second = loader.read()
    part = loader.rows(first, torch.tensor([4, 1]))
    assert part is not None
    assert part.labels is not None
    assert (part.size, part.labels.tolist(), part.given["path"]) == (2, [4, 1], ["e", "b"])
    mixed = loader.together([first, second], torch.tensor([11, 0, 5]))
    assert mixed is not None
    assert mixed.args[0].flatten().tolist() == [5, 0, 5]
    objects = Loader([(torch.zeros(3, 1), object())], MODEL, forward=lambda m, b: m(b[0]))
    (whole,) = objects.read()
    assert objects.rows(whole, torch.tensor([0])) is None


def test_images_of_unlike_shapes_are_divided_and_mixed_by_sample() -> None:
    def images(first: int) -> Any:
        return (
            [torch.full((3, 4 + i, 5), float(first + i)) for i in range(5)],
            [{"id": first}] * 5,
        )

    loader = Loader([images(0), images(10)], MODEL, forward=lambda m, b: b)
    one, two = loader.read()
    assert one.size == 5
    part = loader.rows(one, torch.tensor([3, 0]))
    assert part is not None
    assert [image.shape[1] for image in part.given[0]] == [7, 4]
    mixed = loader.together([one, two], torch.tensor([9, 1]))
    assert mixed is not None
    assert [float(image.max()) for image in mixed.given[0]] == [14, 1]
    assert [target["id"] for target in mixed.given[1]] == [10, 0]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (torch.tensor([1, 0, 2]), [1, 0, 2]),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), [1, 0, 1]),
        (torch.tensor([1.0, 0.0, 1.0]), [1, 0, 1]),
        (torch.tensor([[[1.0]], [[0.0]], [[1.0]]]), [1, 0, 1]),
        (torch.tensor([1.0, 0.5, 0.0]), None),
        (torch.tensor([1.0, torch.nan, 0.0]), None),
        (torch.tensor([1.0, 0.0]), None),
        (torch.tensor([1j, 0, 1]), None),
        (torch.tensor([1, -100, 0]), None),
        (None, None),
    ],
)
def test_one_class_per_sample_may_be_a_float_that_says_yes_or_no(
    labels: Tensor | None, classes: list[int] | None
) -> None:
    found = Batch(0, None, 3, labels=labels).classes
    assert (None if found is None else found.tolist()) == classes


def test_arrays_become_tensors_of_the_models_precision_and_other_columns_stay() -> None:
    words = np.array(["a", "b", "c"])
    given = [(np.ones((3, 1)), np.arange(3), np.zeros(3)), (np.ones((3, 1), dtype=np.uint8), words)]
    for model, precision in (
        (nn.Linear(1, 1), torch.float32),
        (nn.Linear(1, 1).half(), torch.half),
    ):
        first, second = Loader(given, model).read()
        assert (first.args[0].dtype, second.args[0].dtype) == (precision, torch.uint8)
        assert first.labels is not None
        assert first.labels.tolist() == [0, 1, 2]
        assert second.labels is None, "words are no labels"
        assert second.given[1] is words


def test_a_list_is_read_to_its_end_however_long_it_is() -> None:
    batches = [torch.zeros(1, 1)] * (LIMIT + 5)
    assert sum(1 for _ in Loader(batches, nn.Linear(1, 1)).read()) == LIMIT + 5


def test_what_is_not_of_one_entry_per_sample_goes_along_whole() -> None:
    given = {
        "x": torch.arange(4.0)[:, None], "names": np.array(["a", "b", "c", "d"]),
        "scale": torch.tensor(2.0), "vocabulary": np.arange(9),
    }  # fmt: skip
    loader = Loader([given], MODEL, forward=lambda model, batch: model(batch["x"] * batch["scale"]))
    (batch,) = loader.read()
    for which in (torch.tensor([2, 0]), torch.tensor([True, False, True, False])):
        part = loader.rows(batch, which)
        assert part is not None
        assert part.size == 2
        assert sorted(part.given["x"].flatten().tolist()) == [0, 2]
        assert sorted(part.given["names"]) == ["a", "c"]
        assert part.given["scale"] == 2
        assert part.given["vocabulary"].tolist() == list(range(9))
    assert loader.run(MODEL, batch).shape == (4, 2)


def test_names_beside_the_inputs_of_a_model_without_a_tensor() -> None:
    model = nn.Flatten()
    loader = Loader(
        [{"x": torch.ones(4, 2), "name": ["a", "b", "c", "d"], "y": torch.zeros(4)}], model
    )
    (batch,) = loader.read()
    assert batch.size == 4
    assert [arg.tolist() for arg in batch.args] == [[[1, 1]] * 4]


def test_what_batches_cannot_be_is_said_with_what_to_give() -> None:
    refused: Any = (
        (nn.Linear(1, 1), r"the batches are a model \(Linear\); the model comes first"),
        ({"a": 1, "b": 2}, "the batches are a dict with the keys 'a', 'b'; give what is under one"),
        (dict.fromkeys("abcdefg"), "with the keys 'a', 'b', 'c', 'd', 'e'; give"),
        ("data.pt", "the batches are the text 'data.pt'; give a DataLoader"),
    )
    for given, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            Loader(given, MODEL)
    unread: Any = (
        (None, "batch 1 is None; a batch can be"), ("x", "batch 1 is 'x'; a batch can be"),
        (3, "batch 1 is 3; a batch can be"), ((), "batch 1 is empty"),
        (torch.full((4, 1), torch.inf), "the inputs of batch 1 hold NaN or infinity"),
        (torch.ones(4, 1, device="meta"), "batch 1 holds a meta tensor"),
    )  # fmt: skip
    for given, sentence in unread:
        with pytest.raises(InputError, match=sentence):
            list(Loader([numbered(1)[0], given], MODEL).read())


def test_labels_that_are_named_are_not_the_domain_too() -> None:
    x, y, c = torch.ones(4, 1), torch.arange(4), torch.tensor([0, 1, 0, 1])
    (batch,) = Loader([(x, y, c)], MODEL, labels=2).read()
    assert batch.condition is None
    assert batch.labels is not None
    assert torch.equal(batch.labels, c)
    (batch,) = Loader([(x, y, c)], MODEL, labels=1).read()
    assert batch.condition is not None
    assert torch.equal(batch.condition, c)
    (batch,) = Loader([(y, x)], MODEL, labels=0).read()
    assert batch.args[0] is x
    (batch,) = Loader([(x, y, torch.tensor([0.5] * 4))], MODEL).read()
    assert batch.condition is None, "no whole numbers"


def test_inputs_have_the_models_half_precision_and_labels_keep_theirs() -> None:
    half = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).bfloat16()
    (batch,) = Loader([(torch.ones(4, 1), torch.ones(4))], half).read()
    assert batch.args[0].dtype == torch.bfloat16
    assert batch.labels is not None
    assert batch.labels.dtype == torch.float32
    (batch,) = Loader([(np.ones((4, 1)), np.arange(4))], MODEL).read()
    assert batch.args[0].dtype == torch.float32
    (batch,) = Loader([torch.ones(4, 1).double()], MODEL).read()
    assert batch.args[0].dtype == torch.float64, "a wrong dtype of the caller's stays to be seen"
    (batch,) = Loader([np.arange(4)[:, None]], nn.Flatten()).read()
    assert batch.args[0].dtype == torch.int64


def test_what_has_no_samples_goes_along_and_what_cannot_be_divided_refuses() -> None:
    def one(**more: Any) -> Any:
        return {"x": torch.arange(3.0)[:, None], **more}

    which = torch.tensor([2, 0])

    def taken(loader: Loader, *names: str) -> list[Any]:
        (batch,) = loader.read()
        part = loader.rows(batch, which)
        return [None] if part is None else [part.given[name] for name in names]

    forward = lambda model, batch: batch
    more = {"a": None, "b": "text", "c": 3, "d": 2.5, "e": b"q", "f": True}
    assert taken(Loader([one(**more)], MODEL, forward=forward), *more) == list(more.values())
    sparse = torch.eye(3).to_sparse()
    (rows,) = taken(Loader([one(s=sparse)], MODEL, forward=forward), "s")
    assert rows.to_dense().tolist() == [[0, 0, 1], [1, 0, 0]]
    for odd in (object(), {1}, 1j):
        assert taken(Loader([one(s=odd)], MODEL, forward=forward), "s") == [None]


def test_batches_are_joined_where_they_are_alike() -> None:
    forward = lambda model, batch: batch

    def joined(*given: Any, order: Any = (3, 0)) -> Any:
        loader = Loader(list(given), MODEL, forward=forward)
        found = loader.together(list(loader.read()), torch.tensor(order))
        return None if found is None else (found.size, found.given)

    x = torch.arange(4.0).view(2, 2)
    size, whole = joined((x, "a", 1, None), (x + 10, "b", 2, None))
    assert (size, whole[0].tolist(), whole[1:]) == (2, [[12, 13], [0, 1]], ("a", 1, None))
    _, arrays = joined({"x": x, "n": np.array([1, 2])}, {"x": x, "n": np.array([3, 4])})
    assert arrays["n"].tolist() == [4, 1]
    _, scalars = joined({"x": x, "s": torch.tensor(5)}, {"x": x, "s": torch.tensor(6)})
    assert scalars["s"] == 5, "the first of what has no samples"
    _, lists = joined({"x": x, "p": ["a", "b"]}, {"x": x, "p": ["c", "d"]})
    assert lists["p"] == ["d", "a"]
    assert joined({"x": x, "o": object()}, {"x": x, "o": object()}) is None
    assert joined({"x": x, "k": 1}, {"x": x}) is None, "of other keys"
    assert joined((x, x), (x, x, x)) is None
    assert joined((x,), (torch.ones(2, 3),)) is None, "of other widths"
