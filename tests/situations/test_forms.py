"""Forms of a model: half precision, wrapped, scripted, exported, lazy, on meta; checkpoints with many parts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.doctor import adapt, diagnose, recalibrate, repair
from normscope.errors import NormscopeError
from tests.situations.situation import (
    accuracy,
    assert_cleared,
    assert_kept,
    assert_one_sentence,
    assert_stale,
    blamed,
    digit_batches,
    digits,
    digits_model,
    epoch_ago,
    fingerprint,
    look,
    mended,
    norms,
    refused,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Weights and inputs in 16 bits, statistics in 32, as mixed-precision serving has them."""
    model = digits_model().to(dtype)
    for norm in norms(model):
        norm.float()
    batches = [(x.to(dtype), y) for x, y in digit_batches()]
    x, y = digits()

    def right() -> float:
        with torch.no_grad():
            return 100 * float((model(x[1280:].to(dtype)).argmax(1) == y[1280:]).double().mean())

    best = right()
    assert best > 96
    assert_cleared(look(model, batches))
    epoch_ago(model, dose=1.5)
    assert right() < best - 3, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert right() > best - 1.5


def test_all_of_it_in_bfloat16() -> None:
    """The statistics too: that is worth a warning, and no crash."""
    model = digits_model().bfloat16()
    batches = [(x.bfloat16(), y) for x, y in digit_batches()]
    found, _ = mended(model, batches)
    assert not found.fails("error"), [(f.code, f.severity) for f in found.findings]
    assert set(blamed(found)) <= {"NS003", "NS023"}, found.codes


def test_float64() -> None:
    model = digits_model().double()
    assert_cleared(look(model, [(x.double(), y) for x, y in digit_batches()]))


def test_inside_data_parallel() -> None:
    model = nn.DataParallel(digits_model()).eval()
    assert_cleared(look(model, digit_batches()))
    epoch_ago(model, dose=1.5)
    found, done = mended(model, digit_batches())
    assert_stale(found)
    assert_kept(done)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("verb", ["diagnose", "recalibrate", "adapt", "repair"])
def test_torchscript(how: str, verb: str) -> None:
    """Traced, its mode is fixed; scripted, nothing of it can be watched: one sentence, and nothing changes."""
    model = digits_model()
    found = diagnose(model, digit_batches())
    frozen: Any = (
        torch.jit.script(model) if how == "script" else torch.jit.trace(model, digits()[0][:4])
    )
    before = fingerprint(frozen)
    call = {
        "diagnose": lambda: diagnose(frozen, digit_batches()),
        "recalibrate": lambda: recalibrate(frozen, digit_batches()),
        "adapt": lambda: adapt(frozen, digit_batches()),
        "repair": lambda: repair(frozen, found, digit_batches()),
    }[verb]
    assert_one_sentence(refused(call), "TorchScript")
    assert fingerprint(frozen) == before


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("verb", ["diagnose", "recalibrate", "adapt", "repair"])
def test_exported(verb: str) -> None:
    """torch.export fixes the mode too; eval() and train() of its module raise or do nothing."""
    model = digits_model()
    found = diagnose(model, digit_batches())
    batch = torch.export.Dim("batch", min=2)
    exported: Any = torch.export.export(
        model, (digits()[0][:4],), dynamic_shapes=({0: batch},)
    ).module()
    before = fingerprint(exported)
    call = {
        "diagnose": lambda: diagnose(exported, digit_batches()),
        "recalibrate": lambda: recalibrate(exported, digit_batches()),
        "adapt": lambda: adapt(exported, digit_batches()),
        "repair": lambda: repair(exported, found, digit_batches()),
    }[verb]
    assert_one_sentence(refused(call), "export")
    assert fingerprint(exported) == before


def test_lazy_layers_that_never_ran() -> None:
    model = nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    problem = refused(lambda: diagnose(model.eval(), digit_batches()))
    assert_one_sentence(problem)
    assert "lazy" in str(problem).lower() or "uninitialized" in str(problem).lower()


def test_on_the_meta_device() -> None:
    assert_one_sentence(
        refused(lambda: diagnose(digits_model().to("meta"), digit_batches())), "meta"
    )


def test_made_in_inference_mode() -> None:
    """Its tensors may never be written in place outside; looking works, and a repair works or says so."""
    with torch.inference_mode():
        model = digits_model()
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert norms(model)[0].running_mean.is_inference()
    assert_cleared(diagnose(model, digit_batches()))
    try:
        recalibrate(model, digit_batches())
    except NormscopeError as problem:
        assert_one_sentence(problem, "inference")


class Sparse(nn.Module):
    """Bags of words come as a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(200, 16) / 14)
        self.rest = nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.sparse.mm(x, self.weight))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_inputs(layout: str) -> None:
    random = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(12):
        x = torch.rand(50, 200, generator=random) * (torch.rand(50, 200, generator=random) < 0.05)
        batches.append(
            (
                x.to_sparse() if layout == "coo" else x.to_sparse_csr(),
                torch.randint(0, 2, (50,), generator=random),
            )
        )
    torch.manual_seed(0)
    model = Sparse().eval()
    found, done = mended(model, batches, forward=lambda m, b: m(b[0]))
    assert_stale(found)
    assert_kept(done)


@pytest.mark.parametrize("key", ["g_ema", "params_ema", "teacher", "network", "generator"])
def test_checkpoints_under_another_key(key: str, tmp_path: Path) -> None:
    """One state dict and some numbers: read, or refused naming the key that holds it."""
    torch.save({key: digits_model().state_dict(), "step": 5}, tmp_path / "a.pt")
    try:
        assert diagnose(tmp_path / "a.pt").layers == 2
    except NormscopeError as problem:
        assert_one_sentence(problem, key)


def test_a_checkpoint_with_two_networks_in_it(tmp_path: Path) -> None:
    """Which one is meant cannot be guessed: both are named."""
    state = digits_model().state_dict()
    other = {name: value.clone() for name, value in state.items()}
    torch.save({"generator": state, "discriminator": other, "epoch": 3}, tmp_path / "a.pt")
    assert_one_sentence(refused(lambda: diagnose(tmp_path / "a.pt")), "generator", "discriminator")


class Outputs(nn.Module):
    """Scores in several places of a nested output, with None and a number beside them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = digits_model(), kind

    def forward(self, x: Tensor) -> Any:
        scores = self.inner(x)
        return {
            "(scores, None)": (scores, None),
            "{'logits': scores, 'step': 3}": {"logits": scores, "step": 3},
            "[features, scores]": [x.flatten(1), scores],
            "(loss, scores)": (scores.mean(), scores),
            "scores per head": [scores, scores[:, :5]],
        }[self.kind]


@pytest.mark.parametrize(
    "kind",
    [
        "(scores, None)",
        "{'logits': scores, 'step': 3}",
        "[features, scores]",
        "(loss, scores)",
        "scores per head",
    ],
)
def test_outputs_with_scores_somewhere(kind: str) -> None:
    model = Outputs(kind).eval()
    assert_cleared(look(model, digit_batches()))
    best = accuracy(digits_model())
    epoch_ago(model.inner, dose=1.5)
    found, done = mended(model, digit_batches())
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model.inner) > best - 1.5


def test_repair_can_be_taken_back_to_the_byte() -> None:
    model = epoch_ago(digits_model(), dose=1.5)
    before = fingerprint(model)
    _, done = mended(model, [(x, y, ["a"] * len(x)) for x, y in digit_batches()])
    assert_kept(done)
    assert fingerprint(model) != before
    done.undo()
    assert fingerprint(model) == before


def test_a_forward_that_fails_names_the_layer_and_changes_nothing() -> None:
    model = epoch_ago(digits_model())
    before = fingerprint(model)
    wrong = [(x[:, :, :6], y) for x, y in digit_batches()]
    assert_one_sentence(refused(lambda: diagnose(model, wrong)), "7", "batch 0")
    found = diagnose(model, digit_batches())
    assert_one_sentence(refused(lambda: repair(model, found, wrong)), "7")
    assert_one_sentence(refused(lambda: recalibrate(model, wrong)), "7")
    assert fingerprint(model) == before


def test_frozen_layers_in_a_network_that_trains_on() -> None:
    """The backbone is in eval() for good while the head is in train(): that is meant, and left so."""
    model = copy.deepcopy(digits_model())
    model.train()
    norms(model)[0].eval()
    for p in norms(model)[0].parameters():
        p.requires_grad_(False)
    found = look(model, digit_batches())
    assert not found.fails("error"), [(f.code, f.severity, f.layer) for f in found.findings]
    assert F.cross_entropy(model(digits()[0][:64]), digits()[1][:64]).item() < 0.5
