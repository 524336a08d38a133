"""What every situation needs: to look without a change, to train, to break, and the truth by hand."""

import copy
import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normscope.doctor import Repair, diagnose, repair
from normscope.errors import NormscopeError
from normscope.records import Diagnosis, Finding

STALE = frozenset({"NS002", "NS003"})  # never updated or cold; not those of the data
# what a small network that is trained for a second may truly have
HARMLESS = frozenset({"NS010", "NS011", "NS012", "NS016"})
Run = Callable[[nn.Module, Any], Any]


def look(model: nn.Module, batches: Iterable[Any], **more: Any) -> Diagnosis:
    """Diagnose; the model must be as it was."""
    before = fingerprint(model)
    found = diagnose(model, batches, **more)
    assert fingerprint(model) == before, "looking changed the model"
    return found


def mended(model: nn.Module, batches: Iterable[Any], **more: Any) -> tuple[Diagnosis, Repair]:
    """Diagnose and repair, as an owner does."""
    found = look(model, batches, **more)
    return found, repair(model, found, batches, **more)


def fingerprint(model: nn.Module) -> Any:
    """Weights, buffers, modes, gradient flags and hooks."""
    tensors = {k: _bytes(v) for k, v in model.state_dict().items()}
    modes = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]
    return tensors, modes, [p.requires_grad for p in model.parameters()]


def _bytes(value: Tensor) -> bytes:
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def blamed(found: Diagnosis) -> tuple[str, ...]:
    """Codes of warnings and errors, in order."""
    return tuple(dict.fromkeys(f.code for f in found.findings if f.severity != "info"))


def assert_cleared(found: Diagnosis, *, but: str = "") -> None:
    """No false alarm on a healthy model; `but` is true of this one."""
    false = [
        (f.code, f.severity, round(f.measured, 3), f.facts)
        for f in found.findings
        if f.severity != "info" and f.code not in {*HARMLESS, but} and not _noise(f)
    ]
    assert not false, f"a healthy model is blamed: {false}, gap {found.gap}"


def _noise(finding: Finding) -> bool:
    """Outputs that are no classes differ a little between modes, as batches do; that may be said."""
    relative = finding.facts.get("kind") != "argmax"
    return finding.code == "NS004" and finding.severity == "warning" and relative


def assert_stale(found: Diagnosis) -> None:
    """Statistics that are not those of the data come first or second."""
    assert STALE & set(blamed(found)[:2]), f"first are {found.codes}"


def assert_kept(done: Repair, remedy: str = "recalibrate") -> None:
    """The remedy was kept."""
    assert remedy in done.record.kept, [(t.remedy, t.helps, t.note) for t in done.record.trials]


def assert_one_sentence(problem: NormscopeError, *words: str) -> None:
    """Says in one line what came and what to do."""
    text = str(problem)
    assert "\n" not in text.strip(), text
    assert len(text) > 30, text
    for word in words:
        assert word.lower() in text.lower(), text


def random_state() -> tuple[Any, ...]:
    """Of torch's, Python's and NumPy's own generator."""
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), legacy


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if getattr(m, "running_mean", None) is not None]


def reset(model: nn.Module) -> nn.Module:
    """Never updated: as after a rebuild that lost the buffers."""
    for norm in norms(model):
        norm.reset_running_stats()
    return model


def epoch_ago(model: nn.Module, seed: int = 0, dose: float = 0.7) -> nn.Module:
    """The statistics of other weights than these."""
    dice = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        step = torch.randn(norm.num_features, generator=dice)
        norm.running_mean += dose * norm.running_var.sqrt() * step
        norm.running_var *= torch.exp(dose * torch.randn(norm.num_features, generator=dice))
    return model


@torch.no_grad()
def by_hand(model: nn.Module, batches: Iterable[Any], run: Run | None = None) -> nn.Module:
    """A copy with the statistics of these batches, by torch's own cumulative average."""
    model = copy.deepcopy(model).eval()
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        if run is not None:
            run(model, batch)
        else:
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    return model.eval()


def train(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    epochs: int = 3,
    lr: float = 3e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
) -> Any:
    """A real training, short; the model comes in eval(), its statistics those of its weights."""
    model.train()
    steps = optimizer((p for p in model.parameters() if p.requires_grad), lr=lr)
    batches = list(batches)
    for epoch in range(epochs):
        for group in steps.param_groups:  # the last steps move little, so statistics follow
            group["lr"] = lr * (1 - epoch / epochs)
        for batch in batches:
            steps.zero_grad()
            loss(model, batch).backward()
            steps.step()
    return model.eval()


def settled(model: nn.Module, batches: Iterable[Any], run: Run | None = None) -> Any:
    """The same model at the end of its training: the statistics are exactly those of the data."""
    exact = by_hand(model, batches, run)
    model.load_state_dict(exact.state_dict())
    return model.eval()


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 real images (N, 1, 8, 8) in [0, 1], shuffled, and their classes."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(3))
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return images[order], torch.tensor(data.target)[order]


def digit_batches(size: int = 64, first: int = 0, last: int = 1280) -> list[tuple[Tensor, Tensor]]:
    x, y = digits()
    return list(zip(x[first:last].split(size), y[first:last].split(size), strict=True))


def digit_net(width: int = 16, classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 9, classes),
    )  # fmt: skip


@cache
def _digits_model() -> Any:
    torch.manual_seed(0)
    model = train(
        digit_net(),
        digit_batches(),
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
        epochs=4,
    )
    return settled(model, digit_batches())


def digits_model() -> Any:
    """A healthy classifier of digits, 97 % on unseen ones."""
    return copy.deepcopy(_digits_model())


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On 517 digits that nothing was trained on, in per cent."""
    x, y = digits()
    return 100 * float(
        (copy.deepcopy(model).eval()(x[1280:]).argmax(1) == y[1280:]).double().mean()
    )


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean squared error in eval()."""
    return float(nn.functional.mse_loss(copy.deepcopy(model).eval()(x), y))


def refused(call: Callable[[], Any]) -> NormscopeError:
    """The sentence that a call is refused with; a raw exception is a failure."""
    with pytest.raises(NormscopeError) as caught:
        call()
    return caught.value
