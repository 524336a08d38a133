"""At least 25 architectures of timm, random weights: converted, trained and back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.conversion import convert
from normscope.lens import inspect

ARCHITECTURES = [
    "resnet18", "resnet26d", "resnext26ts", "seresnet18", "resnetblur18", "efficientnet_b0",
    "tf_efficientnetv2_b0", "mobilenetv2_050", "mobilenetv3_small_050", "mnasnet_small",
    "fbnetc_100", "ghostnet_050", "lcnet_035", "tinynet_e", "hardcorenas_a", "regnetx_002",
    "regnety_002", "repvgg_a0", "densenet121", "dla46_c", "efficientnet_lite0",
    "hrnet_w18_small", "mobilenetv3_large_075", "levit_128s", "efficientvit_b0", "repvit_m0_9",
]  # fmt: skip


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_converted_trained_and_back(name: str, timm: Any) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=5)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    classes = [type(norm) for norm in norms]
    before = tensors(model)
    side = 224 if name.startswith("levit") else 64
    x = torch.randn(3, 3, side, side)

    conversion = convert(model, "batch")
    assert len(conversion.changed) == len(norms)
    assert not conversion.refused
    assert all(isinstance(norm, normscope.layers.batch.Normalizer) for norm in norms)
    assert all(isinstance(norm, cls) for norm, cls in zip(norms, classes, strict=True))
    assert list(model.state_dict()) == list(before)
    result = conversion.verify(x, steps=3)
    assert result.ok, result
    assert len([c for c in result.comparisons if c.allowed is not None]) == 6

    conversion.revert()
    assert [type(norm) for norm in norms] == classes
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("kind", ["batch", "frozen"])
@pytest.mark.parametrize("name", ["tinynet_e", "mobilenetv2_050"])
def test_the_lens_sees_the_same(name: str, kind: str, timm: Any) -> None:
    """timm's layers activate by themselves: what is normalised is measured before that."""
    model = timm.create_model(name, pretrained=False, num_classes=5).eval()
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8) % 2)]
    before = inspect(model, batches).layers
    convert(model, kind)
    after = inspect(model, batches).layers
    assert [layer.activation for layer in after] == [layer.activation for layer in before]
    assert len({layer.activation for layer in before}) > 1
    for old, new in zip(before, after, strict=True):
        for stage, other in zip(old.stages, new.stages, strict=True):
            assert stage.name == other.name
            assert stage.eta2_mean == pytest.approx(other.eta2_mean, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["tinynet_e", "resnet10t"])
def test_frozen_and_conditional_keep_what_timm_runs_behind(name: str, timm: Any) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    model.train()(x)
    expected = copy.deepcopy(model).eval()(x)
    conversion = convert(model, "frozen")
    assert conversion.verify(x).ok
    torch.testing.assert_close(model.eval()(x), expected)
    back = convert(model, "batch")
    assert back.verify(x).ok
    plain = convert(model, "torch")
    assert plain.verify(x).ok
    torch.testing.assert_close(model.eval()(x), expected)
    if name == "tinynet_e":
        with pytest.raises(normscope.ModelError, match="runs modules drop and act of its own"):
            convert(model, "conditional", num_conditions=2)
