"""Models that draw noise, and outputs that nobody labelled."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.situations.situation import (
    assert_cleared,
    assert_kept,
    assert_stale,
    blamed,
    by_hand,
    digit_batches,
    digits,
    epoch_ago,
    look,
    mended,
    norms,
    reset,
    settled,
    train,
)

BLAMES_NOISE = {"NS001", "NS004", "NS007", "NS008", "NS026"}


class VAE(nn.Module):
    """Convolutional; the output is a mapping, and noise is drawn in eval() too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 12),
        )
        self.decoder = nn.Sequential(
            nn.Linear(6, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.Unflatten(1, (1, 8, 8)),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return {"reconstruction": self.decoder(z), "mean": mean, "log_var": log_var}


def evidence(model: nn.Module, batch: Any) -> Tensor:
    out = model(batch[0])
    mean, log_var = out["mean"], out["log_var"]
    divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
    return F.mse_loss(out["reconstruction"], batch[0]) * 64 + 0.2 * divergence  # type: ignore[no-any-return]


def vae() -> tuple[nn.Module, list[Any]]:
    batches: list[Any] = [(x,) for x, _ in digit_batches()]
    torch.manual_seed(0)
    return settled(train(VAE(), batches, evidence, epochs=5), batches), batches


def test_a_healthy_vae_is_not_blamed_for_its_noise() -> None:
    model, batches = vae()
    found = look(model, batches)
    assert not BLAMES_NOISE & set(blamed(found)), [
        (f.code, f.severity, f.measured) for f in found.findings
    ]
    assert not found.fails("error")


def test_a_vae_whose_buffers_were_lost() -> None:
    """As rebuilt from parameters() only: the statistics are mended, whatever noise is drawn."""
    model, batches = vae()
    held_out = (digits()[0][1280:],)

    def elbo() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return float(evidence(model, held_out))

    good = elbo()
    reset(model)
    bad = elbo()
    assert bad > 1.2 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert elbo() < good + 0.1 * (bad - good)


class Denoise(nn.Module):
    """Predicts the noise that was added at a level; the level and the noise are drawn in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(65, 96, bias=False), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        level = torch.rand(len(x), 1)
        noise = torch.randn(len(x), 64)
        return self.inner(torch.cat([x.flatten(1) * (1 - level) + noise * level, level], 1)), noise


def test_a_healthy_diffusion_model() -> None:
    batches = [x for x, _ in digit_batches()]
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        guess, noise = model(batch)
        return F.mse_loss(guess, noise)

    model = train(Denoise(), batches, loss, epochs=5)
    model = settled(model, batches)
    found = look(model, batches)
    assert not BLAMES_NOISE & set(blamed(found)), [
        (f.code, f.severity, f.measured) for f in found.findings
    ]
    assert not found.fails("error")


def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid(),
    )  # fmt: skip


def gan() -> tuple[nn.Module, nn.Module]:
    """A generator after 80 rounds, and its average over them, whose buffers nobody averaged."""
    torch.manual_seed(0)
    make, tell = generator(), nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    average = copy.deepcopy(make)
    first = torch.optim.Adam(make.parameters(), 2e-3, betas=(0.5, 0.99))
    second = torch.optim.Adam(tell.parameters(), 2e-3, betas=(0.5, 0.99))
    images = [x.flatten(1) for x, _ in digit_batches()]
    for step in range(80):
        real, fake = images[step % 19], make(torch.randn(64, 8))
        second.zero_grad()
        (F.softplus(-tell(real)).mean() + F.softplus(tell(fake.detach())).mean()).backward()
        second.step()
        first.zero_grad()
        F.softplus(-tell(fake)).mean().backward()
        first.step()
        with torch.no_grad():
            for a, b in zip(average.parameters(), make.parameters(), strict=True):
                a.lerp_(b, 0.1)
    return make.eval(), average.eval()


def drawn(model: nn.Module, batch: Any) -> Tensor:
    """The batch says only how many samples are wanted."""
    return model(torch.randn(len(batch), 8))  # type: ignore[no-any-return]


def test_the_average_of_a_generator_kept_the_buffers_of_its_first_day() -> None:
    _, average = gan()
    batches = [torch.arange(64) for _ in range(20)]  # a loader of indices
    torch.manual_seed(5)
    exact = norms(by_hand(average, batches, drawn))
    found, done = mended(average, batches, forward=drawn)
    assert_stale(found)
    assert_kept(done)
    for norm, right in zip(norms(average), exact, strict=True):
        apart = (norm.running_mean - right.running_mean).abs() / right.running_var.sqrt()
        assert float(apart.max()) < 0.3


def test_the_generator_itself_is_healthy() -> None:
    make, _ = gan()
    batches = [torch.arange(64) for _ in range(20)]
    torch.manual_seed(5)
    model = settled(make, batches, drawn)
    found = look(model, batches, forward=drawn)
    assert not BLAMES_NOISE & set(blamed(found)), [
        (f.code, f.severity, f.measured) for f in found.findings
    ]
    assert_cleared(found)


def test_an_auto_encoder_is_no_classifier() -> None:
    """(N, 64) out for (N, 64) in; the digits' labels lie beside and mean nothing to it."""
    batches = [(x.flatten(1), y) for x, y in digit_batches()]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8),
        nn.Linear(8, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64),
    )  # fmt: skip
    train(model, batches, lambda m, b: F.mse_loss(m(b[0]), b[0]), epochs=5)
    model = settled(model, batches)
    held_out = digits()[0][1280:].flatten(1)
    good = F.mse_loss(model(held_out), held_out).item()
    healthy = look(model, batches)
    assert_cleared(healthy)
    epoch_ago(model)
    bad = F.mse_loss(model(held_out), held_out).item()
    assert bad > 1.3 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert F.mse_loss(model(held_out), held_out).item() < good + 0.1 * (bad - good)
