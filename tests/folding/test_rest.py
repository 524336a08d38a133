"""fold(rest="affine"): nothing named batch norm is left, and the outputs are the same."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope import InputError, ModelError, convert, fold, parity
from normscope.folding.pair import ScaleShift
from normscope.layers import BatchNorm2d, ConditionalBatchNorm2d
from normscope.probe import find_norms


class Hard(nn.Module):
    """Norms that no neighbour takes in: behind ReLU, used twice, in front of padding, in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.twice = nn.BatchNorm2d(6, affine=False)
        self.fc, self.flat = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).relu()
        x = self.bn1(x)
        y = self.conv2(self.bn2(x).relu())
        z = self.twice(self.twice(y) + x)
        out: Tensor = self.flat(self.fc(z.mean((2, 3))).relu())
        return out


class Untraceable(Hard):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Hard.forward(self, x if x.sum() > 0 else -x)
        return out


def lived(module: Any) -> Any:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                low = 0.3 if name.endswith(("var", "weight")) else -0.7
                tensor.uniform_(low, low + 1.2)
    return module.eval()


def batch_norms(model: nn.Module) -> list[str]:
    own = [n for n, m in model.named_modules() if "norm" in type(m).__name__.lower()]
    return [*own, *(norm.name for norm in find_norms(model))]


@pytest.mark.parametrize("kind", [Hard, Untraceable])
def test_nothing_named_batch_norm_is_left(kind: type[nn.Module]) -> None:
    net, x = lived(kind()).double(), torch.randn(4, 3, 9, 9, dtype=torch.float64)
    before = copy.deepcopy(net.state_dict())
    done = fold(net, rest="affine")
    assert done.left == ()
    assert set(done.affine) == {"bn1", "bn2", "twice", "flat"}
    assert batch_norms(done.model) == []
    assert done.verify(x, tolerance=1e-12).ok
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert type(net.bn1) is nn.BatchNorm2d
    assert parity(net, done.model, x).ok
    if kind is Hard:  # as before without
        assert fold(net).affine == ()
        assert {name for name, _ in fold(net).left} == set(done.affine)
    else:
        with pytest.raises(ModelError, match="cannot be folded"):
            fold(net)


def test_both_ways_at_once() -> None:
    net = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))
    done = fold(net, rest="affine")
    assert (done.folded, done.affine) == ((("1", "0"),), ("3",))
    assert isinstance(done.model[3], ScaleShift)
    assert done.verify(torch.randn(2, 3, 8, 8)).ok
    program = torch.export.export(done.model, (torch.randn(2, 3, 8, 8),))
    assert not [n for n in program.graph.nodes if "norm" in str(n.target)]
    assert parity(net, program, torch.randn(2, 3, 8, 8)).ok
    with torch.no_grad():  # what became of the last norm is seen in a program too
        done.model[3].bias[1] += 0.1
    wrong = torch.export.export(done.model, (torch.randn(2, 3, 8, 8),))
    found = parity(net, wrong, torch.randn(2, 3, 8, 8))
    assert (found.first.name, found.why) == ("3", "fused_bias")


def test_what_is_one_norm_alone_and_what_is_no_single_map() -> None:
    alone = lived(nn.BatchNorm2d(3))
    done = fold(alone, rest="affine")
    assert (done.affine, done.left) == (("BatchNorm2d",), ())
    assert done.verify(torch.randn(2, 3, 4, 4)).ok
    with pytest.raises(ValueError, match="expected 4D input"):
        done.model(torch.randn(2, 3))
    both = nn.Sequential(
        ConditionalBatchNorm2d(3, num_conditions=2), nn.BatchNorm2d(3, track_running_stats=False)
    )
    done = fold(both.eval(), rest="affine")
    assert done.affine == ()
    assert [name for name, _ in done.left] == ["0", "1"]
    assert "one map" in done.left[0][1]
    with pytest.raises(InputError, match="rest is 'none'"):
        fold(both, rest="none")
    broken = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    broken[1].running_var[1] = -1
    with pytest.raises(ModelError, match="channel 1 has running_var -1"):
        fold(broken, rest="affine")


def test_activations_hooks_and_half_precision_stay() -> None:
    ours = lived(nn.Sequential(nn.ReLU(), BatchNorm2d(3, act="relu")))
    seen: list[Any] = []
    ours[1].register_forward_hook(lambda module, args, output: seen.append(output))
    done = fold(ours, rest="affine")
    x = torch.randn(4, 3, 5, 5)
    assert torch.allclose(done.model(x), ours(x), atol=1e-6)
    assert bool((done.model(x) >= 0).all())
    assert len(seen) >= 3
    plain = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    half = fold(plain, rest="affine").model.half()(torch.randn(4, 3).half())
    assert half.dtype is torch.float16
    assert fold(plain, rest="affine").model(torch.randn(4, 3, 7)).shape == (4, 3, 7)
    converted = lived(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    expected = converted(x)
    convert(converted, "frozen")
    done = fold(converted, rest="affine")
    assert done.affine == ("1",)
    assert torch.allclose(done.model(x), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
def test_behind_torch_export(decomposed: bool) -> None:
    net, x = lived(Hard()).double(), torch.randn(4, 3, 9, 9, dtype=torch.float64)
    net = nn.Sequential(lived(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).double(), net)
    program = torch.export.export(net.eval(), (x,))
    program = program.run_decompositions() if decomposed else program
    plain = fold(program)
    # in a program every run of a norm is one of its own
    assert [name for name, _ in plain.folded] == ["0.1", "1.twice"]
    assert [name for name, _ in plain.left] == ["1.bn1", "1.bn2", "1.twice", "1.flat"]
    assert plain.verify(x, tolerance=1e-12).ok
    done = fold(program, rest="affine")
    assert done.left == ()
    assert not [n for n in done.model.graph.nodes if "norm" in str(n.target)]
    assert not [name for name, _ in done.model.named_buffers() if "running" in name]
    assert done.verify(x, tolerance=1e-12).ok
    assert parity(net, done.model, x).ok
    again = torch.export.export(done.model, (x,))  # what comes out is a program again
    assert parity(program, again, x).ok
    in_train = fold(torch.export.export(net.train(), (x,)), rest="affine")
    assert "exported in train()" in in_train.left[0][1]
