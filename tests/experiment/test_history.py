"""One channel through training: which one, and that its numbers are those of the network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from normscope.experiment import history
from normscope.experiment.data import Data, load
from normscope.experiment.loop import Trainer
from normscope.experiment.nets import ModelConfig
from normscope.records import ChannelHistory

EPOCHS = 2


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def followed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ChannelHistory, Trainer, Data, history.Snapshots]:
    """A network that was trained, with the history of its channel."""
    data = load("digits")
    config = ModelConfig.of(request.param, "batch", data)
    trainer = Trainer(data, config, 3, lr=0.1, epochs=EPOCHS, batch_size=128)
    snapshots = history.Snapshots(tmp_path_factory.mktemp("epochs"))
    snapshots.save(0, trainer.model)
    accuracy = {0: trainer.accuracy_before()}
    for epoch in (1, EPOCHS):
        trainer.next_epoch(lambda _: None)
        snapshots.save(epoch, trainer.model)
        accuracy[epoch] = trainer.curve[-1].test_accuracy
    return snapshots.history(config, 3, data, accuracy), trainer, data, snapshots


def bits(passes: torch.Tensor, labels: torch.Tensor) -> float:
    """Mutual information of class and gate, by another library."""
    each = passes.flatten(1) if passes.dim() > 1 else passes.unsqueeze(1)
    repeated = labels.unsqueeze(1).expand_as(each)
    return float(mutual_info_score(repeated.flatten(), each.flatten()) / np.log(2))


def test_the_channel_is_the_one_whose_gate_tells_most(
    followed: tuple[ChannelHistory, Trainer, Data, history.Snapshots],
) -> None:
    found, trainer, data, _ = followed
    outputs = {}
    model = trainer.model.eval()
    for i in (1, 2, 3):
        module = model.get_submodule(f"norm{i}")
        module.register_forward_hook(lambda _, __, y, i=i: outputs.update({f"norm{i}": y > 0}))
    with torch.no_grad():
        right = (model(data.test_x).argmax(1) == data.test_y).double().mean()
    scores = {
        (name, c): bits(y[:, c], data.test_y)
        for name, y in outputs.items()
        for c in range(y.shape[1])
    }
    best = max(scores, key=lambda place: scores[place])
    assert (found.layer, found.channel) == best
    assert found.channels == len(scores)
    assert found.information[-1] == pytest.approx(scores[best], abs=1e-6)
    assert found.accuracy[-1] == pytest.approx(float(right))
    passes = outputs[found.layer][:, found.channel].double()
    for lane, k in enumerate(found.classes):
        assert found.passing[-1][lane] == pytest.approx(float(passes[data.test_y == k].mean()))


def test_every_epoch_has_the_values_and_parameters_of_its_network(
    followed: tuple[ChannelHistory, Trainer, Data, history.Snapshots],
) -> None:
    found, trainer, data, snapshots = followed
    assert found.epoch == (0, 1, EPOCHS)
    assert len(found.label) == 10 * history.VALUES
    chosen = [i for k in range(10) for i in (data.test_y == k).nonzero()[: history.VALUES, 0]]
    for t, epoch in enumerate(found.epoch):
        model = trainer.config.build(0).eval()
        model.load_state_dict(history.read_weights(snapshots.path(epoch)))
        norm = model.get_submodule(found.layer)
        before = list(model.children()).index(norm)
        with torch.no_grad():
            entering = model[:before](data.test_x)[chosen, found.channel]
        possible = entering.reshape(len(chosen), -1)
        values = torch.tensor(found.x[t]).unsqueeze(1)
        assert ((possible - values).abs().amin(1) <= 1e-3 * values.abs()[:, 0] + 1e-6).all()
        assert found.gamma[t] == norm.weight[found.channel].item()
        assert found.beta[t] == norm.bias[found.channel].item()
        assert found.running_mean[t] == float(norm.running_mean[found.channel])
        assert found.running_var[t] == float(norm.running_var[found.channel])
    assert found.gamma[0] == 1
    assert found.gamma[-1] != 1
    assert found.information[-1] > found.information[0]


def test_frames_hold_the_first_and_the_last_epoch() -> None:
    assert history.frames(1) == {0, 1}
    assert history.frames(20) == set(range(21))
    many = history.frames(1000)
    assert (len(many), min(many), max(many)) == (history.FRAMES, 0, 1000)


def test_of_many_classes_those_that_pass_least_and_most_are_kept(tmp_path: Path) -> None:
    passing = torch.linspace(0, 1, 30)[torch.randperm(30)]
    lanes = history._lanes(passing)
    ranked = passing.argsort().tolist()
    assert lanes == sorted(ranked[:5] + ranked[-5:])
    passing[3] = torch.nan  # a class without a sample
    assert 3 not in history._lanes(passing[:8])
