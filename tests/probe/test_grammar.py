"""Every verb on every structure of a batch: one answer for one set of data, no raw exception."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from normscope import InputError, NormscopeError, convert, lens
from normscope.cli.app import app
from normscope.doctor import adapt, diagnose, recalibrate, repair
from normscope.probe.batches import Loader
from normscope.probe.grammar import GRAMMAR, Batch
from normscope.records import Diagnosis
from tests.probe.structures import BATCHES, CASES, SIZE, Case, Net, X, Y, model_of, pairs


def whole(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that looking at it could change."""
    found: dict[str, Any] = {
        name: (
            value.dtype,
            value.detach().contiguous().view(torch.uint8).numpy().tobytes(),
            id(value),
        )
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if value.dim()
    }
    found |= {name: value.requires_grad for name, value in model.named_parameters()}
    for name, module in model.named_modules():
        hooks = [k for k, v in vars(module).items() if "hooks" in k and v]
        found[f"module {name}"] = (type(module), module.training, hooks, sorted(vars(module)))
    return found


def generators() -> tuple[Any, ...]:
    numbers = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), str(numbers)


def content(model: nn.Module) -> dict[str, Any]:
    return {k: v.tolist() for k, v in model.state_dict().items()}


def same(one: Any, other: Any, place: str = "") -> None:
    """Equal up to rounding, which depends on where in memory the data lie."""
    if isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3, nan_ok=True), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key, value in one.items():
            same(value, other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{place}[{number}]")
    else:
        assert one == other, place


def answer(record: Any) -> Any:
    """A record without what depends on how the model is called (folding needs one tensor)."""
    plain = json.loads(record.to_json())
    plain["skipped"] = [s for s in plain["skipped"] if s["code"] != "NS024"]
    plain["passed"] = [code for code in plain["passed"] if code != "NS024"]
    # two causes that close as much of the gap come in the order of their rounding
    plain["causes"] = sorted(plain.get("causes", ()), key=lambda cause: cause["name"])
    return plain


def some(case: Case, *names: str) -> dict[str, Any]:
    return {k: v for k, v in case.options.items() if k in names}


def diagnosed(model: nn.Module, case: Case) -> Any:
    return answer(diagnose(model, case.loader(), model_name="m", **case.options))


def repaired(model: nn.Module, case: Case) -> Any:
    found = diagnose(model, case.loader(), **case.options)
    done = repair(model, found, case.loader(), **case.options)
    after = content(model)
    trials = [(t.remedy, t.kept, asdict(t.after)) for t in done.record.trials]
    done.undo()
    return trials, after


def recalibrated(model: nn.Module, case: Case) -> Any:
    done = recalibrate(model, case.loader(), **some(case, "forward", "batch_limit"))
    after = content(model)
    done.undo()
    return after, [asdict(layer) for layer in done.layers]


def adapted(model: nn.Module, case: Case) -> Any:
    done = adapt(model, case.loader(), **some(case, "forward", "batch_limit"))
    after = content(model)
    done.undo()
    return after, done.samples


def inspected(model: nn.Module, case: Case) -> Any:
    seen = lens.inspect(model, case.loader(), model_name="m", data_name="d", **case.options)
    plain = json.loads(seen.to_json())
    del plain["targets"]  # dtype and shape of labels that are no classes
    return plain


def verified(model: nn.Module, case: Case) -> Any:
    batch = next(Loader(case.loader(), model, **some(case, "forward")).read())
    done = convert(model, "batch")
    try:
        assert done.verify(*batch.args, *batch.kwargs.values()).ok
    finally:
        done.revert()


VERBS: dict[str, Callable[[nn.Module, Case], Any]] = {
    "diagnose": diagnosed,
    "repair": repaired,
    "recalibrate": recalibrated,
    "adapt": adapted,
    "inspect": inspected,
    "verify": verified,
}


@cache
def expected(verb: str, name: str) -> Any:
    return VERBS[verb](model_of(CASES[name]), CASES[name])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_every_structure(verb: str, name: str) -> None:
    case = CASES[name]
    model = model_of(case).train(verb == "recalibrate")
    before, numbers, found = whole(model), generators(), None
    if verb in case.cannot:
        with pytest.raises(NormscopeError, match=case.cannot[verb]) as refused:
            VERBS[verb](model, case)
        assert "\n" not in str(refused.value)
    else:
        found = VERBS[verb](model, case)
    assert whole(model) == before
    assert generators() == numbers
    if found is not None and case.like:
        same(found, expected(verb, case.like))  # at first it makes a model: random numbers


COUNTED = sorted(set(CASES) - {"object alone", "one batch", "batches of one"})


@pytest.mark.parametrize("name", COUNTED)
def test_the_number_of_samples_is_that_of_the_batch(name: str) -> None:
    case = CASES[name]
    loader = Loader(case.loader(), model_of(case), **some(case, "forward", "labels"), limit=BATCHES)
    assert next(loader.read()).size == SIZE


FILE = """
from tests.probe.structures import CASES, model_of

CASE = CASES[{name!r}]
loader = CASE.loader
forward = CASE.options.get("forward")
labels = CASE.options.get("labels")


def model():
    return model_of(CASE)
"""


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CASES.items()
        # of those that are like another, some: the file is read by the same reader
        if not case.like or case.options or "dict" in name or "DataLoader" in name
    ],
)
def test_the_command_line_takes_every_structure(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = tmp_path / "mine.py"
    file.write_text(FILE.format(name=name))
    options: list[str] = []
    for option, value in case.options.items():
        shown = f"{file}:{option}" if callable(value) else str(value)
        options += [f"--{option.replace('batch_limit', 'batches')}", shown]
    found = CliRunner().invoke(
        app,
        ["diagnose", "--model", f"{file}:model", "--loader", f"{file}:loader", "--json", *options],
    )
    if "diagnose" in case.cannot:
        assert isinstance(found.exception, NormscopeError)
        assert case.cannot["diagnose"] in str(found.exception)
        return
    assert found.exit_code in (0, 1), found.output
    record = Diagnosis.from_json(found.stdout)
    told = answer(record) | {"model": "m", "data": ""}
    if "shuffled" not in name:
        same(told, expected("diagnose", case.like or name))


BAD: dict[str, Any] = {
    "empty tuple": (),
    "empty list": [],
    "empty dict": {},
    "NaN in a dict": {"x": X / 0},
    "NaN": (X / 0, Y),
    "another width": (X[:, :2], Y),
    "unknown names": {"pixels": X, "other": X},
    "text": "text",
    "a number": 3.0,
}


@pytest.mark.parametrize("batch", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("verb", ["diagnose", "recalibrate", "adapt"])
def test_what_no_model_can_take_is_one_sentence(batch: Any, verb: str) -> None:
    model = Net()
    before = whole(model)
    with pytest.raises(NormscopeError) as refused:
        VERBS[verb](model, Case(lambda: [batch, batch]))
    assert "\n" not in str(refused.value)
    assert whole(model) == before


def test_the_message_says_the_grammar_and_the_table_is_in_the_docs() -> None:
    for name in ("labels", "label", "targets", "target", "y"):
        assert name in GRAMMAR
    with pytest.raises(InputError, match="say how to run it: forward=lambda model, batch"):
        diagnose(Net(), [()])


@pytest.mark.parametrize("labels", ["kind", 7, "missing"])
def test_labels_that_are_not_there(labels: Any) -> None:
    with pytest.raises(InputError, match=f"batch 0 has no {labels!r} to take labels from"):
        diagnose(Net(), pairs(), labels=labels)
    with pytest.raises(InputError, match=r"it has x, label"):
        diagnose(Net(), [{"x": X, "label": Y}], labels=labels)


def test_labels_that_raise() -> None:
    with pytest.raises(InputError, match=r"labels\(batch\) failed on batch 0: ZeroDivisionError"):
        diagnose(Net(), pairs(), labels=lambda batch: 1 / 0)


def test_labels_in_first_place() -> None:
    swapped = [(y, x) for x, y in pairs()]
    model = Net()
    found = answer(diagnose(model, swapped, labels=0, model_name="m"))
    same(found, expected("diagnose", "pair"))


def test_fingerprints_are_those_of_the_values_whatever_the_strides() -> None:
    column = torch.arange(6.0)
    expected = Batch(0, column[:, None].clone(), 6).fingerprints()
    for x in (column.as_strided((6, 1), (1, 0)), torch.stack([column, column], 1)[:, :1]):
        assert torch.equal(Batch(0, x, 6).fingerprints(), expected)
    assert len(set(Batch(0, torch.zeros(1).expand(6, 4), 6).fingerprints().tolist())) == 1
