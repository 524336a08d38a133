"""Averaged weights are validated with statistics of their own: Lightning, timm, torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normscope import doctor
from normscope.errors import InputError
from tests.extras import quiet_import

CLASSES = 4


def samples(count: int, seed: int) -> TensorDataset:
    """Points around 4 places, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    places = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(6 + places[y] + 0.7 * torch.randn(count, 8, generator=generator), y)


TRAIN, HELD_OUT = samples(256, 1), samples(400, 2)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    hidden = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()]
    more = [nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*hidden, *more, nn.Linear(16, CLASSES))


def accuracy(model: nn.Module) -> float:
    x, y = HELD_OUT.tensors
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def buffers(model: nn.Module) -> list[Tensor]:
    return [b.clone() for b in model.buffers()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def trained_beside(update: Any) -> nn.Module:
    """A network trained on TRAIN; `update(model)` follows every step."""
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = DataLoader(TRAIN, batch_size=32, shuffle=True)
    for _ in range(8):
        for x, y in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
            update(model)
    return model.eval()


def averages(kind: str, model: nn.Module) -> Any:
    if kind == "timm":
        timm = quiet_import("timm.utils")
        return timm.ModelEmaV3(model, decay=0.98)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average)


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.parametrize("kind", ["timm", "torch"])
def test_an_average_in_a_loop_of_ones_own(kind: str) -> None:
    ema = averages(kind, network())
    update = ema.update if kind == "timm" else ema.update_parameters
    model = trained_beside(update)
    ema.eval()
    before, of_model = buffers(ema), buffers(model)
    stale = accuracy(ema)
    with doctor.recalibrated(ema, DataLoader(TRAIN, batch_size=32)) as averaged:
        right = accuracy(averaged)
        moved = buffers(ema)
    assert stale < 0.6
    assert right > 0.9
    assert not same(moved, before)
    assert same(buffers(ema), before)
    assert same(buffers(model), of_model)
    assert accuracy(ema) == stale


def test_the_statistics_come_back_where_validation_fails() -> None:
    model = network().eval()
    before = buffers(model)
    with (
        pytest.raises(KeyboardInterrupt),
        doctor.recalibrated(model, DataLoader(TRAIN, batch_size=64)),
    ):
        raise KeyboardInterrupt
    assert same(buffers(model), before)


def lightning_run(
    pl: Any,
    tmp_path: Path,
    *callbacks: Any,
    epochs: int = 4,
    frozen: int | None = None,
    workers: int = 0,
    **settings: Any,
) -> Any:
    """A module that Lightning trained with these callbacks, and what it saw."""

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.validated: list[float] = []
            self.stored: list[Tensor] = []  # statistics of the model in training
            self.kept: list[bool] = []
            self.count = 0
            self.sums: list[float] = []

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def on_train_epoch_start(self) -> None:
            if frozen is not None:
                self.net[frozen].eval()
            self.sums.append(0.0)

        def training_step(self, batch: Any, place: int) -> Tensor:
            self.count += len(batch[0])
            self.sums[-1] += float(batch[0].double().sum())
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def on_validation_start(self) -> None:
            self.before = buffers(self.net)

        def validation_step(self, batch: Any, place: int) -> None:
            self.seen = float((self(batch[0]).argmax(1) == batch[1]).double().mean())

        def on_validation_end(self) -> None:
            self.validated.append(self.seen)
            self.kept.append(same(self.before, buffers(self.net)))
            self.stored += buffers(self.net)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    pl.seed_everything(1, verbose=False)
    module = Module()
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        **{"enable_checkpointing": False, **settings},
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    training = DataLoader(
        TRAIN, batch_size=32, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    trainer.fit(module, training, DataLoader(HELD_OUT, batch_size=400))
    return module


@pytest.fixture(scope="module")
def pl(torchvision_operators: None) -> Any:
    return quiet_import("pytorch_lightning")


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


@pytest.mark.filterwarnings("ignore")
def test_lightning_validates_an_average_with_statistics_of_its_own(pl: Any, tmp_path: Path) -> None:
    callback = doctor.callbacks.averages(batches=8)
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="last")
    ema = [pl.callbacks.EMAWeightAveraging(decay=0.98) for _ in range(2)]
    without = lightning_run(pl, tmp_path, ema[0])
    given = lightning_run(pl, tmp_path, ema[1], callback, checkpoint, enable_checkpointing=True)
    assert without.validated[-1] < 0.5
    assert given.validated[-1] > 0.85
    assert accuracy(without.net.eval()) < 0.5
    assert accuracy(given.net.eval()) > 0.85
    assert all(given.kept), "the model in training has its own statistics again"
    assert same(parameters(given), parameters(without)), "training went the same way"
    assert same(given.stored, without.stored)
    assert callback.last.batches == 8
    assert [layer.name for layer in callback.last.layers] == ["net.1", "net.4"]
    saved = torch.load(checkpoint.best_model_path, weights_only=False)["state_dict"]
    loaded = network().eval()
    loaded.load_state_dict({name.removeprefix("net."): value for name, value in saved.items()})
    assert accuracy(loaded) == given.validated[-1]


@pytest.mark.filterwarnings("ignore")
def test_swa_ends_with_exact_statistics(pl: Any, tmp_path: Path) -> None:
    swa = [pl.callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=2) for _ in range(2)]
    without = lightning_run(pl, tmp_path, swa[0])
    given = lightning_run(pl, tmp_path, swa[1], doctor.callbacks.averages())
    assert same(parameters(given), parameters(without))
    x = given.net[0](TRAIN.tensors[0]).detach().double()
    torch.testing.assert_close(given.net[1].running_var, x.var(0).float())
    assert float((without.net[1].running_var / x.var(0) - 1).abs().max()) > 0.01


@pytest.mark.filterwarnings("ignore")
def test_norms_that_were_frozen_stay_and_workers_that_persist_lose_no_sample(
    pl: Any, tmp_path: Path
) -> None:
    callback = doctor.callbacks.averages()
    module = lightning_run(
        pl,
        tmp_path,
        pl.callbacks.WeightAveraging(),
        callback,
        epochs=2,
        frozen=1,
        workers=1,
        val_check_interval=0.5,
    )
    assert [layer.name for layer in callback.last.layers] == ["net.4"]
    assert same(list(module.net[1].buffers()), list(network()[1].buffers()))
    assert len(module.validated) == 5
    assert module.count == 2 * len(TRAIN)
    assert len(module.sums) == 2
    assert module.sums[0] == pytest.approx(module.sums[1]), "every sample once in each epoch"


@pytest.mark.filterwarnings("ignore")
def test_the_callback_stands_behind_what_averages(pl: Any, tmp_path: Path) -> None:
    wrong = [doctor.callbacks.averages(), pl.callbacks.WeightAveraging()]
    with pytest.raises(InputError, match="no callback that averages weights stands before"):
        lightning_run(pl, tmp_path, *wrong)
