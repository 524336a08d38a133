"""Models that do more than map a tensor: gradients inside, counters, wrappers, time first."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from normscope import fold, guard
from normscope.doctor import adapt, diagnose, recalibrate, repair
from normscope.errors import NormscopeError
from normscope.lens import inspect
from tests.situations.situation import (
    STALE,
    accuracy,
    assert_cleared,
    assert_kept,
    assert_one_sentence,
    assert_stale,
    blamed,
    by_hand,
    digit_batches,
    digit_net,
    digits,
    digits_model,
    epoch_ago,
    fingerprint,
    look,
    mended,
    norms,
    random_state,
    reset,
    settled,
    train,
)


class ForceField(nn.Module):
    """Energy of a configuration, and forces as its gradient, taken inside the forward also in eval()."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(
            nn.Linear(6, 32),
            nn.BatchNorm1d(32),
            nn.Tanh(),
            nn.Linear(32, 32),
            nn.BatchNorm1d(32),
            nn.Tanh(),
            nn.Linear(32, 1),
        )

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            energy = self.energy(positions)
            forces = -torch.autograd.grad(energy.sum(), positions, create_graph=self.training)[0]
        return energy, forces


def test_a_force_field_needs_gradients_in_its_forward() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(640, 6, generator=random)
    target = (x**2).sum(1, keepdim=True) / 6 + (x[:, :1] * x[:, 1:2])
    batches = list(zip(x.split(64), target.split(64), strict=True))
    torch.manual_seed(0)
    model = train(
        ForceField(), batches, lambda m, b: F.mse_loss(m(b[0])[0], b[1]), epochs=6, lr=1e-2
    )
    model = settled(model, batches)
    assert_cleared(look(model, batches))
    good = F.mse_loss(model(x)[0], target).item()
    epoch_ago(model)
    bad = F.mse_loss(model(x)[0], target).item()
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert F.mse_loss(model(x)[0], target).item() < good + 0.15 * (bad - good)


class Codebook(nn.Module):
    """As a VQ-VAE: the codebook is a buffer that every forward moves, and calls are counted, in eval() too."""

    codes: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = digits_model()
        self.register_buffer("codes", torch.randn(8, 10))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        near = torch.cdist(scores.detach(), self.codes).argmin(1)
        self.calls += 1
        for k in near.unique():
            self.codes[k] = 0.9 * self.codes[k] + 0.1 * scores.detach()[near == k].mean(0)
        return scores


def test_buffers_that_a_forward_moves_come_back() -> None:
    """`look` compares every byte."""
    model = Codebook().eval()
    assert_cleared(look(model, digit_batches()))
    epoch_ago(model.net, dose=1.5)
    codes = model.codes.clone()
    found, done = mended(model, digit_batches())
    assert_stale(found)
    assert_kept(done)
    assert torch.equal(model.codes, codes), "the repair of statistics moved the codebook"
    assert int(model.calls) == 0


def test_synchronised_norms_on_one_processor() -> None:
    """A checkpoint of a distributed training, opened on a laptop: SyncBatchNorm trains on GPUs only."""
    model: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(digits_model())
    assert_cleared(look(model, digit_batches()))
    best = accuracy(digits_model())
    epoch_ago(model, dose=1.5)
    found, done = mended(model, digit_batches())
    assert_stale(found)
    assert_kept(done)
    assert accuracy(model) > best - 1.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model() -> None:
    model: Any = torch.compile(digits_model(), backend="eager")
    assert_cleared(look(model, digit_batches()))
    epoch_ago(model, dose=1.5)
    found, done = mended(model, digit_batches())
    assert_stale(found)
    assert_kept(done)
    torch._dynamo.reset()


class Speech(nn.Module):
    """Scores come time first, (T, N, K), as CTC wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(8, 24, 5, padding=2, bias=False),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Conv1d(24, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).permute(2, 0, 1).log_softmax(2)  # type: ignore[no-any-return]


def spoken(n: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(features, targets of all sentences in a row, lengths in, lengths out)."""
    random = np.random.default_rng(0)
    sounds = random.standard_normal((5, 8))
    batches = []
    for _ in range(n):
        words = [random.integers(1, 5, random.integers(2, 5)) for _ in range(16)]
        x = 0.5 * random.standard_normal((16, 8, 30)) + 1
        for i, word in enumerate(words):
            for place, sound in enumerate(word):
                x[i, :, 6 * place + 1 : 6 * place + 5] += 2 * sounds[sound][:, None]
        lengths = torch.tensor([len(w) for w in words])
        batches.append(
            (
                torch.tensor(x, dtype=torch.float32),
                torch.tensor(np.concatenate(words)),
                torch.full((16,), 30),
                lengths,
            )
        )
    return batches


def test_scores_come_time_first() -> None:
    batches = spoken(16)

    def loss(model: nn.Module, b: Any) -> Tensor:
        return F.ctc_loss(model(b[0]), b[1], b[2], b[3])

    torch.manual_seed(0)
    model = settled(train(Speech(), batches, loss, epochs=6, lr=1e-2), batches)
    assert_cleared(look(model, batches))
    good = sum(loss(model, b).item() for b in batches) / 16
    reset(model)
    bad = sum(loss(model, b).item() for b in batches) / 16
    assert bad > 1.5 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert sum(loss(model, b).item() for b in batches) / 16 < good + 0.15 * (bad - good)


def test_one_logit_per_sample() -> None:
    """(N,) out, labels 0 and 1: a class, though there is nothing to take an argmax of."""
    x, y = digits()
    even = (y % 2 == 0).long()
    batches = list(zip(x[:1280].split(64), even[:1280].split(64), strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(digit_net(16, 1), nn.Flatten(0))

    def loss(net: nn.Module, b: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(b[0]), b[1].float())

    model = settled(train(model, batches, loss, epochs=4), batches)
    assert_cleared(look(model, batches))
    test = (x[1280:], even[1280:])
    good = loss(model, test).item()
    epoch_ago(model, dose=1.5)
    bad = loss(model, test).item()
    assert bad > 1.5 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert loss(model, test).item() < good + 0.2 * (bad - good)


class Ratings(nn.Module):
    """Users and items by number, a rating out."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(300, 8), nn.Embedding(120, 8)
        self.net = nn.Sequential(
            nn.Linear(24, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u, i = self.user(user), self.item(item)
        return 3 + self.net(torch.cat([u, i, u * i], 1)).squeeze(1)  # type: ignore[no-any-return]


def test_users_items_and_stars() -> None:
    """(user, item, stars): three whole numbers per row; the second are no classes, the third no domains."""
    random = torch.Generator().manual_seed(0)
    taste, kind = torch.randn(300, 3, generator=random), torch.randn(120, 3, generator=random)
    user, item = (
        torch.randint(0, 300, (3200,), generator=random),
        torch.randint(0, 120, (3200,), generator=random),
    )
    stars = (3 + (taste[user] * kind[item]).sum(1)).round().clamp(1, 5).long()
    batches = list(zip(user.split(128), item.split(128), stars.split(128), strict=True))

    def run(model: nn.Module, b: Any) -> Tensor:
        return model(b[0], b[1])  # type: ignore[no-any-return]

    def loss(model: nn.Module, b: Any) -> Tensor:
        return F.mse_loss(run(model, b), b[2].float())

    torch.manual_seed(0)
    model = settled(train(Ratings(), batches, loss, epochs=6, lr=1e-2), batches, run)
    healthy = look(model, batches, forward=run)
    assert_cleared(healthy)
    good = loss(model, (user, item, stars)).item()
    epoch_ago(model)
    bad = loss(model, (user, item, stars)).item()
    assert bad > 1.2 * good, "the fault must show"
    found, done = mended(model, batches, forward=run)
    assert_stale(found)
    assert_kept(done)
    assert "domains" not in done.record.kept
    assert loss(model, (user, item, stars)).item() < good + 0.15 * (bad - good)


class Camera(nn.Module):
    """Takes bytes, channels last, as a camera gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits_model()

    def forward(self, frames: Tensor) -> Tensor:
        return self.net(frames.permute(0, 3, 1, 2).float() / 255)  # type: ignore[no-any-return]


def test_pictures_are_bytes() -> None:
    batches = [((x * 255).to(torch.uint8).permute(0, 2, 3, 1), y) for x, y in digit_batches()]
    model = Camera().eval()
    assert_cleared(look(model, batches))
    epoch_ago(model.net, dose=1.5)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)


def test_guard_works_on_the_layers_of_torch() -> None:
    """What NS009 and NS027 advise: update once a step, without converting first."""

    def run(recompute: bool) -> nn.Module:
        torch.manual_seed(0)
        model = digit_net()
        sgd = torch.optim.SGD(model.parameters(), 0.05)
        with guard(model, update="step", optimizer=sgd):
            for x, y in digit_batches()[:10]:
                sgd.zero_grad()
                out = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
                F.cross_entropy(out, y).backward()
                sgd.step()
        return model

    plain, twice = run(recompute=False), run(recompute=True)
    assert type(norms(plain)[0]) is nn.BatchNorm2d, "a guard gives the layers back as they were"
    for a, b in zip(norms(plain), norms(twice), strict=True):
        assert int(a.num_batches_tracked) == int(b.num_batches_tracked) == 10
        torch.testing.assert_close(a.running_mean, b.running_mean)
        torch.testing.assert_close(a.running_var, b.running_var)


def test_guard_leaves_out_what_is_not_finite_on_the_layers_of_torch() -> None:
    model = digits_model().train()
    before = norms(model)[0].running_mean.clone()
    with guard(model, skip_nonfinite=True):
        model(torch.full((4, 1, 8, 8), torch.nan))
    assert torch.equal(norms(model)[0].running_mean, before)


class Mixed(nn.Module):
    """Every kind of norm: the lens shows them all; the doctor looks at those with running statistics."""

    def __init__(self, batch: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(),
            *([nn.BatchNorm2d(8)] if batch else []), nn.Flatten(), nn.Linear(128, 32), nn.LayerNorm(32), nn.ReLU(),
            nn.Dropout(0.1), nn.Linear(32, 32), nn.RMSNorm(32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_the_lens_follows_every_kind_of_norm() -> None:
    torch.manual_seed(0)
    model = train(
        Mixed(), digit_batches()[:5], lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=2
    )
    seen = {layer.name for layer in inspect(model, digit_batches()).layers}
    assert seen >= {"net.1", "net.4", "net.6", "net.9", "net.13"}, seen


def test_norms_without_running_statistics_cannot_cause_a_gap() -> None:
    """Said in one sentence, in a refusal or a verdict, with what else differs between the modes."""
    model = Mixed(batch=False).eval()
    try:
        found = diagnose(model, digit_batches())
    except NormscopeError as problem:
        assert_one_sentence(problem, "LayerNorm", "dropout")
    else:
        assert not blamed(found)


def test_folding_draws_no_random_number() -> None:
    before = random_state()
    fold(digits_model())
    assert random_state() == before


@pytest.mark.parametrize("what", ["a trial run", "a forward that fails in the middle"])
def test_gradients_survive_a_repair_that_is_taken_back(what: str) -> None:
    """A repair in the middle of training: the gradients of the step are not lost."""
    model = epoch_ago(digits_model(), dose=1.5)
    F.cross_entropy(model(digits()[0][:64]), digits()[1][:64]).backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    found = diagnose(model, digit_batches())
    if what == "a trial run":
        repair(model, found, digit_batches(), dry_run=True)
    else:
        calls = 0

        def fails(net: nn.Module, b: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 15:
                raise RuntimeError("out of memory")
            return net(b[0])  # type: ignore[no-any-return]

        with suppress(NormscopeError):  # a remedy that fails may also be passed over
            repair(model, found, digit_batches(), forward=fails)
        assert calls >= 15
    for p, grad in zip(model.parameters(), before, strict=True):
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)


def test_the_error_of_new_statistics_is_that_of_the_batches() -> None:
    """Two standard errors from the spread of B equal batches, with B / (B - 1)."""
    x = torch.randn(
        5, 40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ) + torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64).view(5, 1, 1)
    model = nn.Sequential(nn.BatchNorm1d(1)).double()
    done = recalibrate(model, list(x))
    means, variances = x.mean((1, 2)).numpy(), x.var((1, 2), correction=0).numpy()
    mean_error = means.std(ddof=1) / np.sqrt(5)
    squares = variances + (means - means.mean()) ** 2  # a batch's part of the total variance
    var_error = squares.std(ddof=1) / np.sqrt(5)
    std = float(x.std(correction=1))
    right = 2 * np.hypot(mean_error, var_error / (2 * std)) / std
    assert done.layers[0].error == pytest.approx(right, rel=0.02)


def test_held_out_data_are_not_measured() -> None:
    """What judges a repair takes no part in it: the statistics are those of the other samples."""
    model = epoch_ago(digits_model(), dose=1.5)
    apart = [(x + 3, y) for x, y in digit_batches(64, 1280, 1664)]
    found = diagnose(model, digit_batches())
    right = by_hand(model, digit_batches())
    repair(model, found, digit_batches(), held_out=apart, remedies=["recalibrate"], force=True)
    torch.testing.assert_close(
        norms(model)[0].running_mean, norms(right)[0].running_mean, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["names", "mapping", "nested"])
def test_adaptation_takes_the_same_batches(kind: str) -> None:
    batches: list[Any] = [
        {
            "names": (x, ["a.png"] * len(x)),
            "mapping": {"input": x, "path": ["a.png"] * len(x)},
            "nested": ((x,), None),
        }[kind]
        for x, _ in digit_batches(64, 0, 640)
    ]
    model = digits_model()
    done = adapt(model, batches)
    assert done.samples == 640
    changed = fingerprint(model)
    done.undo()
    assert fingerprint(model) != changed


@pytest.mark.parametrize("given", [None, (None, None), "text"])
def test_a_collate_function_that_gave_nothing(given: Any) -> None:
    """Broken samples were filtered out, and one batch is None: which one is said."""
    batches: list[Any] = [*digit_batches()[:3], given, *digit_batches()[3:]]
    with pytest.raises(NormscopeError) as caught:
        diagnose(digits_model(), batches)
    assert_one_sentence(caught.value, "3")


def test_a_batch_without_a_sample_is_left_out() -> None:
    x, y = digits()
    assert_cleared(
        look(digits_model(), [*digit_batches()[:10], (x[:0], y[:0]), *digit_batches()[10:]])
    )


def test_two_domains_are_still_domains() -> None:
    """(x, y, site) with two hospitals whose scanners differ: one set of statistics for each is right."""
    made = []
    random = torch.Generator().manual_seed(0)
    for number, (x, y) in enumerate(digit_batches() * 3):
        site = torch.full((len(x),), number % 2)
        noise = 0.05 * torch.randn(x.shape, generator=random)
        made.append((x * (0.3 if number % 2 else 2.0) + 2.0 * (number % 2) + noise, y, site))
    torch.manual_seed(0)
    model = train(digit_net(), made, lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=2)
    found, done = mended(model, made)
    assert "NS021" in blamed(found)[:2], found.codes
    assert "domains" in done.record.kept, done.record.kept


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, nn.Sequential, lambda m: nn.ModuleDict({"m": m})["m"]]
)
def test_a_wrapper_made_around_a_model_in_eval(wrap: Any) -> None:
    """Every new module is in train(): that of a wrapper says nothing about the layers inside."""
    model = digits_model()
    before = accuracy(model)
    reset(model)
    wrapped = wrap(model)
    found, done = mended(wrapped, digit_batches())
    assert set(blamed(found)) & STALE
    assert "recalibrate" in done.record.kept
    assert accuracy(model) > before - 2


def test_layers_that_somebody_froze_stay_as_they_are() -> None:
    model = digits_model().train()
    for norm in norms(model):
        norm.eval()
    reset(model)
    kept = fingerprint(model)
    done = recalibrate(model, digit_batches())
    assert fingerprint(model) == kept
    assert set(done.left.values()) == {
        "it is in eval() inside a model in train(): somebody froze it; name it in only="
    }


class Listed(nn.Module):
    """Its second norm is in a plain list, which eval() does not reach; it hides the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = digit_net()[:2], nn.Linear(16 * 64, 10)
        self.blocks = [nn.BatchNorm2d(16)]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks[0](self.stem(x)).relu().flatten(1))
        return y


class Always(nn.Module):
    """Its forward normalises by the batch, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = digit_net()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.body[0](x), torch.zeros(16), torch.ones(16), training=True)
        y: Tensor = self.body[1:](x)
        return y


@pytest.mark.parametrize("make", [Listed, Always])
def test_batch_norms_that_eval_does_not_reach(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    found = look(settled(make(), digit_batches()), digit_batches())
    (leak,) = (f for f in found.findings if f.code == "NS026")
    assert (leak.severity, leak.facts["kind"]) == ("error", "norm")


def test_nothing_explains_a_gap_that_is_none() -> None:
    """A norm that was never updated, before one that makes up for it, is not what is wrong."""
    torch.manual_seed(0)
    found = look(Listed().eval(), digit_batches())
    assert found.gap.relative < 1e-3
    assert found.findings[0].code == "NS026", found.codes
    assert "closes" not in str(found)
