"""At least 25 architectures of timm, random weights: converted, trained and back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.conversion import convert
from normscope.lens import inspect
from normscope.report import findings

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


def stored_pairs(model: nn.Module, x: Tensor) -> dict[str, str | None]:
    """Norm layer -> name of the activation module that took just its output, from stored values.

    Independent of the lens: every output of a norm and every input of an activation is kept, and
    those that are equal belong together. timm's norms with an activation inside name it.
    """
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[str, Tensor] = {}
    found: dict[str, str | None] = {}
    hooks = []

    def norm_ends(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[names[module]] = output.clone()
        act = getattr(module, "act", None)
        found[names[module]] = None if act is None else activation_name(act)

    def activation_begins(module: nn.Module, args: Any) -> None:
        for name, output in outputs.items():
            if found[name] is None and torch.equal(output, args[0]):
                found[name] = activation_name(module)

    for module in model.modules():
        if hasattr(module, "running_mean"):
            hooks.append(module.register_forward_hook(norm_ends))
        elif activation_name(module):
            hooks.append(module.register_forward_pre_hook(activation_begins))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def activation_name(module: nn.Module) -> str | None:
    """What torch calls the function of an activation module."""
    known = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu", "sigmoid": "sigmoid"}
    known |= {"hardswish": "hardswish", "relu6": "hardtanh", "hardsigmoid": "hardsigmoid"}
    name = type(module).__name__.lower().removesuffix("me")
    return known.get(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_norm_is_found_and_paired(name: str, timm: Any) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=5)
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():  # fresh statistics and gamma 0 would hide mistakes
        if hasattr(module, "running_mean"):
            module.running_mean.normal_(0, 0.1, generator=draw)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draw)
            nn.init.normal_(module.bias, 0, 0.3, generator=draw)
    side = 224 if name.startswith("levit") else 64
    x, y = torch.randn(4, 3, side, side, generator=draw), torch.arange(4) % 2
    before = tensors(model)
    seen = inspect(model, [(x, y)])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    norms = [n for n, m in model.named_modules() if isinstance(m, kinds)]
    assert {layer.name.partition("#")[0] for layer in seen.layers} | set(seen.skipped) == set(norms)
    # its linear layers fold positions into the batch
    skips = {"levit_128s": {"lens.skip.other_batch"}}
    assert set(seen.skipped.values()) == skips.get(name, set())
    assert seen.invariance < 1e-2
    # a layer norm has one map per sample, to which nothing is invariant
    maps = [layer for layer in seen.layers if layer.maps != "per_sample"]
    assert all(layer.invariance < findings.tolerance(layer) for layer in maps)
    paired = {layer.name: layer.activation for layer in maps}
    expected = {n: a for n, a in stored_pairs(model.eval(), x).items() if n not in seen.skipped}
    assert {n: a for n, a in paired.items() if "#" not in n} == expected
