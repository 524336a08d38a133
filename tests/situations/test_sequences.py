"""Sound, text and series: batches with lengths, names, masks, and outputs that are no class scores."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.doctor import recalibrate
from normscope.lens import inspect
from tests.situations.situation import (
    assert_cleared,
    assert_kept,
    assert_stale,
    blamed,
    by_hand,
    epoch_ago,
    look,
    mended,
    norms,
    reset,
    settled,
    train,
)

WORDS = ("up", "down", "flat", "both")


def utterances(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Chirps that rise, fall, stay or do both: (N, 1, 256), the word, and how long each is."""
    random = np.random.default_rng(seed)
    word, length = random.integers(0, 4, n), random.integers(160, 257, n)
    time = np.linspace(0, 1, 256)
    x = np.zeros((n, 256))
    for i in range(n):
        start, step = random.uniform(15, 25), random.uniform(8, 14)
        slope = {0: step * time, 1: -step * time, 2: 0 * time, 3: step * np.sin(2 * np.pi * time)}[
            int(word[i])
        ]
        x[i] = np.sin(2 * np.pi * (start * time + np.cumsum(slope) / 256 + random.uniform()))
        x[i, length[i] :] = 0
    x *= random.uniform(0.5, 1.5, (n, 1))
    x += 0.1 * random.standard_normal(x.shape)
    return torch.tensor(x, dtype=torch.float32)[:, None], torch.tensor(word), torch.tensor(length)


class Listener(nn.Module):
    """Masks nothing; mean over time, then one score per word."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 9, 2, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 24, 9, 4, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
            nn.Conv1d(24, 24, 5, 2, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        return self.head(torch.cat([h[..., :6].mean(2), h[..., 6:].mean(2)], 1))  # type: ignore[no-any-return]


def keyword_batches() -> list[Any]:
    """As a collate function for audio gives them: (wave, word, lengths, [file names])."""
    x, y, lengths = utterances(512, 0)
    parts = zip(x.split(32), y.split(32), lengths.split(32), strict=True)
    return [(a, b, c, [f"{WORDS[int(w)]}_{i}.wav" for i, w in enumerate(b)]) for a, b, c in parts]


def listener(batches: list[Any]) -> Any:
    torch.manual_seed(0)
    model = train(Listener(), batches, lambda m, b: F.cross_entropy(m(b[0]), b[1]), epochs=6)
    return settled(model, batches)


def heard(model: nn.Module) -> float:
    x, y, _ = utterances(400, 7)
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).double().mean())


def test_keywords_with_lengths_and_file_names() -> None:
    batches = keyword_batches()
    model = listener(batches)
    best = heard(model)
    epoch_ago(model, dose=1.2)
    assert heard(model) < best - 5, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert "NS021" not in blamed(found), "lengths are no domains"
    assert_kept(done)
    assert heard(model) > best - 1.5


def test_a_healthy_listener_is_healthy() -> None:
    batches = keyword_batches()
    assert_cleared(look(listener(batches), batches))


def test_lens_doctor_and_recalibration_take_the_same_loader() -> None:
    batches = keyword_batches()
    model = listener(batches)
    assert len(inspect(model, batches).layers) == 3
    assert look(model, batches).layers == 3
    assert recalibrate(model, batches).batches == 16


class Denoiser(nn.Module):
    """Spectrogram in, spectrogram out; its forward names what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(24, 32, 3, padding=1, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 32, 3, padding=1, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 24, 1),
        )  # fmt: skip

    def forward(self, noisy: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(noisy.shape[2]) < lengths[:, None]
        return self.net(noisy) * inside[:, None]  # type: ignore[no-any-return]


def spectrograms(n: int, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    frames, bins = np.arange(40), np.arange(24)
    batches = []
    for number in range(n):
        centre = random.uniform(4, 20, (16, 1, 1)) + random.uniform(-0.2, 0.2, (16, 1, 1)) * frames
        clean = np.exp(-((bins[:, None] - centre) ** 2) / 4) + np.exp(
            -((bins[:, None] - centre / 2) ** 2) / 4
        )
        noisy = np.log(clean + 0.3 * random.random(clean.shape) + 0.05)
        batches.append(
            {
                "noisy": torch.tensor(noisy, dtype=torch.float32),
                "clean": torch.tensor(np.log(clean + 0.05), dtype=torch.float32),
                "lengths": torch.tensor(random.integers(25, 41, 16)),
                "speaker": [f"s{number % 3}"] * 16,
            }
        )
    return batches


def test_spectrogram_to_spectrogram_as_a_mapping() -> None:
    batches = spectrograms(16, 0)

    def loss(model: nn.Module, b: Any) -> Tensor:
        inside = torch.arange(40) < b["lengths"][:, None]
        return F.mse_loss(model(b["noisy"], b["lengths"]), b["clean"] * inside[:, None])

    torch.manual_seed(0)
    model = train(Denoiser(), batches, loss, epochs=5)
    model = settled(model, batches, lambda m, b: m(b["noisy"], b["lengths"]))
    good = sum(loss(model, b).item() for b in spectrograms(4, 5)) / 4
    assert_cleared(look(model, batches))
    reset(model)
    bad = sum(loss(model, b).item() for b in spectrograms(4, 5)) / 4
    assert bad > 1.5 * good, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert sum(loss(model, b).item() for b in spectrograms(4, 5)) / 4 < good + 0.1 * (bad - good)


class ModelOutput(OrderedDict[str, Any]):
    """As transformers': a mapping whose entries are attributes too, None left out."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as problem:
            raise AttributeError(name) from problem


@dataclass
class Answer:
    """As many libraries': a plain dataclass of tensors."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class Reader(nn.Module):
    """A classifier of sentences: convolutions over embeddings with batch norm, as TextCNN."""

    def __init__(self, kind: type, per_token: bool = False) -> None:
        super().__init__()
        self.kind, self.per_token = kind, per_token
        self.embed, self.conv = (
            nn.Embedding(60, 16, padding_idx=0),
            nn.Conv1d(16, 32, 3, padding=1, bias=False),
        )
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        h = F.relu(self.norm(self.conv(self.embed(input_ids).mT))).mT
        if not self.per_token:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            h = (h * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(h)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return self.kind(loss=loss, logits=logits)


def sentences(n: int, seed: int, per_token: bool = False) -> list[dict[str, Tensor]]:
    """Words 1-19 speak for class 0, 20-39 for 1, 40-59 for 2; sentences are mixtures, padded by 0."""
    random = np.random.default_rng(seed)
    batches = []
    for _ in range(n):
        label, length = random.integers(0, 3, 32), random.integers(6, 21, 32)
        ids = np.where(
            random.random((32, 20)) < 0.6,
            20 * label[:, None] + random.integers(0, 20, (32, 20)),
            random.integers(1, 60, (32, 20)),
        ).clip(1)
        mask = np.arange(20) < length[:, None]
        labels = np.where(mask, ids // 20, -100) if per_token else label
        tensors = (ids * mask, mask.astype(np.int64), labels)
        batches.append(
            dict(
                zip(
                    ("input_ids", "attention_mask", "labels"),
                    map(torch.tensor, tensors),
                    strict=True,
                )
            )
        )
    return batches


@pytest.mark.parametrize("kind", [ModelOutput, Answer], ids=["mapping", "dataclass"])
def test_sentences_as_transformers_gives_them(kind: type) -> None:
    """input_ids, attention_mask, labels; the output holds a loss and logits."""
    batches = sentences(20, 0)
    torch.manual_seed(0)
    model = train(Reader(kind), batches, lambda m, b: m(**b).loss, epochs=3)
    model = settled(model, batches, lambda m, b: m(**b))
    assert_cleared(look(model, batches), but="NS020")  # the norm does count the padding

    def right() -> float:
        with torch.no_grad():
            hits = [
                (model(**b).logits.argmax(1) == b["labels"]).double().mean()
                for b in sentences(8, 5)
            ]
        return 100 * float(torch.stack(hits).mean())

    best = right()
    epoch_ago(model, dose=1.5)
    assert right() < best - 3, "the fault must show"
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    assert right() > best - 1
    if found.gap is not None:
        assert found.gap.train_accuracy > 0.8, "the labels are those of the logits"


def test_a_class_per_token_with_padding() -> None:
    """Logits (N, T, 3), labels (N, T) with -100: nothing is flattened into classes; a loss decides."""
    batches = sentences(20, 0, per_token=True)
    torch.manual_seed(0)
    model = train(Reader(Answer, per_token=True), batches, lambda m, b: m(**b).loss, epochs=2)
    model = settled(model, batches, lambda m, b: m(**b))
    assert_cleared(look(model, batches), but="NS020")  # the norm does count the padding
    reset(model)
    found, done = mended(model, batches, loss=lambda out, b: float(out.loss))
    assert_stale(found)
    assert_kept(done)


def recordings(n: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """49 windows of one recording each: every patient has an own gain and offset in every channel."""
    random = np.random.default_rng(seed)
    batches, targets = [], []
    for _ in range(n):
        gain, offset = (
            np.exp(0.7 * random.standard_normal((1, 4, 1))),
            2 * random.standard_normal((1, 4, 1)),
        )
        phase, speed = random.uniform(0, 6, (49, 1, 1)), random.uniform(0.5, 3, (49, 1, 1))
        wave = np.sin(phase + speed * np.arange(32) / 4 + np.arange(4)[:, None])
        x = gain * (wave + 0.2 * random.standard_normal(wave.shape)) + offset
        batches.append(torch.tensor(x, dtype=torch.float32))
        targets.append(torch.tensor(speed[:, :, 0], dtype=torch.float32))
    return batches, torch.stack(targets)


def recorder(batches: list[Any]) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 24, 7, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Conv1d(24, 24, 7, 2, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(72, 1),
    )  # fmt: skip
    return train(model, batches, lambda m, b: F.mse_loss(m(b[0]), b[1]), epochs=8)


def test_every_batch_is_one_recording_and_there_are_no_classes() -> None:
    """Trained so, eval() fails; batches of 49 are not too small, they belong together. No statistics rescue it."""
    xs, ys = recordings(40, 0)
    batches = list(zip(xs, ys, strict=True))
    model = recorder(batches)

    def wrong(training: bool = False) -> float:
        model.train(training)
        fresh = list(zip(*recordings(20, 5), strict=True))
        state = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            total = sum(F.mse_loss(model(x), y).item() for x, y in fresh) / 20
        model.load_state_dict(state)
        model.eval()
        return total

    before, live = wrong(), wrong(training=True)
    assert before > 2 * live, "the fault must show"
    found, _ = mended(model, batches)
    assert "NS008" in blamed(found)[:2], f"first are {found.codes}"
    assert wrong() < 1.05 * before, "nothing may be kept that loses"


def test_the_same_recordings_shuffled_are_no_fault() -> None:
    xs, ys = recordings(40, 0)
    order = torch.randperm(40 * 49, generator=torch.Generator().manual_seed(0))
    x, y = torch.cat(xs)[order], ys.flatten(0, 1)[order]
    batches = list(zip(x.split(49), y.split(49), strict=True))
    model = settled(recorder(batches), batches)
    found = look(model, batches)
    assert not found.fails("error"), found.codes
    assert not {"NS002", "NS003", "NS007", "NS008", "NS021"} & set(blamed(found)), found.codes


class Window(NamedTuple):
    """A named tuple around tensors, a time stamp and nothing."""

    past: Tensor
    future: Tensor
    stamps: list[str]
    static: None = None


def test_a_forecast_from_named_tuples() -> None:
    """(N, 3, 48) in, the next 12 steps of each of the three series out."""
    random = np.random.default_rng(0)
    t = np.arange(60)
    level, phase = random.normal(5, 2, (512, 3, 1)), random.uniform(0, 24, (512, 3, 1))
    series = (
        level
        + np.sin(2 * np.pi * (t + phase) / 24)
        + 0.02 * t
        + 0.1 * random.standard_normal((512, 3, 60))
    )
    data = torch.tensor(series, dtype=torch.float32)
    batches = [Window(x[..., :48], x[..., 48:], ["2024-01-01"] * len(x)) for x in data.split(32)]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(144, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 36),
        nn.Unflatten(1, (3, 12)),
    )
    train(model, batches, lambda m, b: F.mse_loss(m(b.past), b.future), epochs=10)
    model = settled(model, batches, lambda m, b: m(b.past))
    assert_cleared(look(model, batches))
    right = norms(by_hand(model, batches, lambda m, b: m(b.past)))[0]
    reset(model)
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
    apart = (norms(model)[0].running_mean - right.running_mean).abs() / right.running_var.sqrt()
    assert float(apart.max()) < 0.25


def test_several_inputs_under_their_own_names() -> None:
    """({'left': ..., 'right': ...}, y): the first entry of the pair goes to the forward by name."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)
            )

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.net(torch.cat([left, right], 1))  # type: ignore[no-any-return]

    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > x[:, 4]).long()
    batches: list[tuple[Mapping[str, Tensor], Tensor]] = [
        ({"left": a[:, :4], "right": a[:, 4:]}, b)
        for a, b in zip(x.split(32), y.split(32), strict=True)
    ]
    torch.manual_seed(0)
    model = train(Two(), batches, lambda m, b: F.cross_entropy(m(**b[0]), b[1]), epochs=3)
    model = settled(model, batches, lambda m, b: m(**b[0]))
    assert_cleared(look(model, batches))
    reset(model)
    norms(model)[0].running_mean += 1
    found, done = mended(model, batches)
    assert_stale(found)
    assert_kept(done)
