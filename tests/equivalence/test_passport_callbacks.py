"""Checkpoints of Lightning and of the Hugging Face Trainer carry their passport."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from normscope import read_passport
from normscope.equivalence import callbacks, passport_in
from tests.equivalence.nets import trained
from tests.extras import quiet_import

X, Y = torch.randn(24, 12), torch.randint(0, 4, (24,))


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    pl = quiet_import("pytorch_lightning")

    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self, eps: float = 1e-3) -> None:
            super().__init__()
            self.net = trained("mlp")
            self.net.norm1.eps = eps

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, place: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def trainer(epochs: int) -> Any:
        return pl.Trainer(
            max_epochs=epochs,
            callbacks=[callbacks.lightning(batches=2)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            default_root_dir=tmp_path,
        )

    data = DataLoader(TensorDataset(X, Y), batch_size=8)
    first = trainer(1)
    module = Module()
    first.fit(module, data)
    path = tmp_path / "last.ckpt"
    first.save_checkpoint(path)
    own = passport_in(torch.load(path, weights_only=False))
    assert own is not None
    assert [n.eps for n in own.norms] == [1e-3, 1e-5]
    assert (own.data.batches, own.data.samples) == (2, 16)
    with pytest.warns(UserWarning, match=r"'net.norm1' is not what .* eps 0.001 is now 1e-05"):
        trainer(1).fit(Module(eps=1e-5), data, ckpt_path=path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*passport says.*")
        trainer(1).fit(Module(), data, ckpt_path=path)


@pytest.mark.usefixtures("torchvision_operators")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer(tmp_path: Path) -> None:
    transformers = quiet_import("transformers")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained("mlp")

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        max_steps=2,
        save_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    transformers.Trainer(
        model=Model(), args=arguments, train_dataset=rows, callbacks=[callbacks.trainer()]
    ).train()
    own = read_passport(tmp_path / "checkpoint-2" / "model.safetensors")
    assert [n.name for n in own.norms] == ["net.norm1", "net.norm2"]
    assert own.norms[0].tracked == 8  # 6 of the network, 2 of this training
