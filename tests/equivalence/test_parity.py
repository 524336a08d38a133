"""Planted differences: the first norm that differs and the reason; none for true equals."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope import assert_parity, convert, fold, parity
from normscope.errors import FileError, InputError, ModelError
from normscope.records import Parity
from tests.equivalence.nets import NETS, batch, names_of, norms_of, trained, with_dead, without

DEAD = (1, 4)


def _set(net: nn.Module, place: int, **values: Any) -> nn.Module:
    norm = norms_of(net)[place]
    with torch.no_grad():
        for key, value in values.items():
            old = getattr(norm, key)
            if isinstance(old, Tensor):
                old.copy_(value(old) if callable(value) else torch.as_tensor(value))
            else:
                setattr(norm, key, value(old) if callable(value) else value)
    return net


def _other_eps(eps: float) -> float:
    return 1e-3 if eps < 1e-4 else 1e-5


def _exported(net: nn.Module, x: Tensor) -> Any:
    return torch.export.export(net, (x,))


def _swapped(net: nn.Module) -> nn.Module:
    """The numbers of two norms of one size are exchanged."""
    norms = norms_of(net)
    size = norms[-1].num_features
    mine, other = [n for n in norms if n.num_features == size][-2:]
    state, first = mine.state_dict(), copy.deepcopy(other.state_dict())
    other.load_state_dict(copy.deepcopy(state))
    mine.load_state_dict(first)
    return net


def _swapped_place(net: nn.Module) -> int:
    sizes = [n.num_features for n in norms_of(net)]
    return [i for i, size in enumerate(sizes) if size == sizes[-1]][-2]


def _left_in_train(net: nn.Module) -> nn.Module:
    norms_of(net)[1].train()
    return net


def _lost_eps(program: Any) -> Any:
    """What an exporter did that wrote its own eps: torch.export's graph with another constant."""
    module = program.module()
    found = [n for n in module.graph.nodes if "batch_norm" in str(n.target)]
    eps = found[1].args[7]
    found[1].update_arg(7, _other_eps(eps))
    module.recompile()
    return module


def _reset_in_graph(program: Any) -> Any:
    """What an exporter did that started the statistics anew."""
    module = program.module()
    with torch.no_grad():
        for name, tensor in module.named_buffers():
            if name.endswith("running_mean"):
                tensor.zero_()
            elif name.endswith("running_var"):
                tensor.fill_(1)
    return module


def _wrong_bias(net: nn.Module) -> nn.Module:
    """A folded copy in which the shift of one channel is off."""
    folding = fold(net)
    model: nn.Module = folding.model
    neighbour = folding.folded[0][1]
    with torch.no_grad():
        model.get_submodule(neighbour).bias[2] += 0.2
    return model


# name -> the second form of a network, the code of the reason, the place of the first norm
Planted = tuple[Callable[[nn.Module, Tensor], Any], str, int]
PLANTED: dict[str, Planted] = {
    "eps": (lambda n, x: _set(n, 1, eps=_other_eps), "eps", 1),
    "momentum": (lambda n, x: _set(n, 1, momentum=0.5), "momentum", 1),
    "one reset": (lambda n, x: _set(n, 1, running_mean=0.0, running_var=1.0), "reset", 1),
    "all reset": (lambda n, x: _all_reset(n), "reset", 0),
    "unbiased": (lambda n, x: _set(n, 1, running_var=lambda v: v * 64 / 63), "variance_unbiased", 1),
    "biased": (lambda n, x: _set(n, 1, running_var=lambda v: v * 31 / 32), "variance_biased", 1),
    "exported in train": (lambda n, x: _exported(n.train(), x), "training", 0),
    "compiled in train": (lambda n, x: torch.compile(_left_in_train(n), backend="eager"), "training", 1),
    "half": (lambda n, x: n.bfloat16(), "dtype", 0),
    "other mean": (lambda n, x: nn.Sequential(), "input_mean", 0),
    "swapped": (lambda n, x: _swapped(n), "exchanged", -1),
    "gamma clipped": (lambda n, x: _set(n, 1, weight=lambda w: w.clamp(0.8, 1.2)), "gamma_clipped", 1),
    "gamma rounded": (lambda n, x: _set(n, 1, weight=lambda w: w.bfloat16()), "gamma_rounded", 1),
    "beta decimals": (lambda n, x: _set(n, 1, bias=lambda b: b.round(decimals=2)), "beta_rounded", 1),
    "beta int8": (lambda n, x: _set(n, 1, bias=lambda b: (b / b.abs().max() * 127).round() * b.abs().max() / 127), "beta_rounded", 1),
    "gamma": (lambda n, x: _set(n, 1, weight=lambda w: w.flip(0)), "gamma_changed", 1),
    "no affine": (lambda n, x: _lacking(n, 1), "gamma_lost", 1),
    "overwritten": (lambda n, x: _forwarded(n, x), "overwritten_batch", 0),
    "exporter lost eps": (lambda n, x: _lost_eps(_exported(n, x)), "eps", 1),
    "exporter reset": (lambda n, x: _reset_in_graph(_exported(n, x)), "reset", 0),
    "weights": (lambda n, x: _other_weights(n), "weights", 0),
}  # fmt: skip


def _all_reset(net: nn.Module) -> nn.Module:
    for norm in norms_of(net):
        norm.reset_running_stats()
    return net


def _lacking(net: nn.Module, place: int) -> nn.Module:
    norm: Any = norms_of(net)[place]
    norm.weight = norm.bias = None
    return net


def _forwarded(net: nn.Module, x: Tensor) -> nn.Module:
    for norm in norms_of(net):
        norm.momentum = norm.momentum or 0.1
    net.train()(x)
    return net.eval()


def _other_weights(net: nn.Module) -> nn.Module:
    layer = next(m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    with torch.no_grad():
        layer.weight.mul_(1.1)
    return net


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("planted", PLANTED)
def test_the_first_norm_that_differs_and_why(kind: str, planted: str) -> None:
    make, code, place = PLANTED[planted]
    a, b, x = trained(kind), trained(kind), batch(kind)
    before = _state(a)
    modes = None if code == "momentum" else "eval"
    if code == "input_mean":
        found = parity(a, b, x, inputs_b=x - 0.3, modes=modes)
    else:
        found = parity(a, make(b, x), x, modes=modes)
    place = _swapped_place(a) if place < 0 else place
    assert not found.ok
    assert (found.first.name, found.why) == (names_of(a)[place], code)
    assert all(n.status == "same" for n in found.norms[:place])
    assert max(found.forwards) <= 3 * len(found.modes)
    assert _state(a) == before
    whole = {"all reset", "exported in train", "half", "exporter reset", "overwritten"}
    if planted in whole:  # every norm is named, not the first alone
        assert {n.status for n in found.norms} == {"differs"}
    elif planted not in ("swapped", "momentum"):
        assert {n.status for n in found.norms[place + 1 :]} <= {"carried", "same"}
    assert Parity.from_json(found.to_json()).to_json() == found.to_json()


@pytest.mark.parametrize("kind", NETS)
def test_dead_channels_that_were_removed(kind: str) -> None:
    a = with_dead(trained(kind), DEAD)
    b = without(a, DEAD)
    found = parity(a, b, batch(kind), modes="eval")
    assert (found.first.name, found.why) == (a.chain[1], "dead_channels")
    assert found.first.reasons[0].detail == "1, 4"
    assert found.modes[0].ok  # the outputs are the same
    alive = without(trained(kind), DEAD)
    assert parity(trained(kind), alive, batch(kind), modes="eval").why == "channels"


FOLDED = {"eps": "eps", "one reset": "reset", "unbiased": "variance_unbiased"}


@pytest.mark.parametrize("kind", ["mlp", "resnet", "mobilenet"])
def test_a_fold_of_a_norm_that_was_changed(kind: str) -> None:
    """The numbers are gone; the map that is left tells."""
    a, x = trained(kind), batch(kind)
    for planted, code in FOLDED.items():
        make, _, place = PLANTED[planted]
        found = parity(a, fold(make(trained(kind), x)).model, x)
        assert (found.first.name, found.why) == (names_of(a)[place], code), planted
        assert [n.status for n in found.norms[:place]] == ["fused"] * place
    found = parity(a, _wrong_bias(trained(kind)), x)
    assert (found.first.name, found.why) == (names_of(a)[0], "fused_bias")
    assert found.first.reasons[0].detail == "2"
    # and the other way round: the second has the norms
    turned = parity(_wrong_bias(trained(kind)), a, x)
    assert (turned.first.name, turned.why) == (names_of(a)[0], "fused_bias")


def test_weights_of_a_fold_say_more_than_its_outputs() -> None:
    """Beside a large variance another eps makes no difference that outputs show."""
    nets = [trained("resnet"), trained("resnet")]
    x = batch("resnet")
    with torch.no_grad():
        for net in nets:
            net.blocks[0].conv1.weight.mul_(40)
            net.blocks[0].bn1.running_mean.mul_(40)
            net.blocks[0].bn1.running_var.mul_(1600)
    nets[1].blocks[0].bn1.eps = 3e-3
    assert parity(nets[0], fold(nets[0]).model, x).ok
    found = parity(nets[0], fold(nets[1]).model, x)
    assert found.modes[0].ok
    assert (found.first.name, found.why) == ("blocks.0.bn1", "eps")
    assert float(found.first.reasons[0].second) == pytest.approx(3e-3, rel=0.2)
    # a product and a sum likewise, in a module and in a program
    for net in nets:
        net.blocks[0].conv1.register_forward_hook(lambda module, given, output: output)
    same, other = (fold(net, rest="affine").model for net in nets)
    assert parity(nets[0], same, x).ok
    for form in (other, _exported(other, x)):
        found = parity(nets[0], form, x)
        assert found.modes[0].ok
        assert (found.first.name, found.why) == ("blocks.0.bn1", "eps")


def test_a_fold_behind_a_norm_that_is_off() -> None:
    a = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 5)).train()
    x = torch.randn(16, 6)
    a(x)
    folded = fold(a.eval()).model
    assert parity(a, folded, x).ok
    with torch.no_grad():
        folded[3].bias[1] += 0.1
    found = parity(a, folded, x)
    assert (found.first.name, found.why) == ("2", "fused_wrong")
    gone = copy.deepcopy(a)
    gone[2] = nn.Identity()
    found = parity(a, gone, x)
    assert (found.first.name, found.why, found.first.status) == ("2", "missing", "missing")


class Branches(nn.Module):
    """A block whose shortcut runs behind its main branch, as in every published resnet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.down_bn = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.last, self.last_bn = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x)) + self.down_bn(self.down(x)))
        z: Tensor = self.last_bn(self.last(y))
        return z


def test_the_layer_behind_may_be_of_another_branch() -> None:
    torch.manual_seed(0)
    x = batch("resnet")
    a = Branches()
    for _ in range(4):
        a(x)
    a.eval()
    assert parity(a, fold(a).model, x).ok
    for place, name in enumerate(("bn", "down_bn")):
        found = parity(a, fold(_set(copy.deepcopy(a), place, eps=1e-2)).model, x)
        assert (found.first.name, found.why) == (name, "eps")
        gone = copy.deepcopy(a)
        setattr(gone, name, nn.Identity())
        found = parity(a, gone, x)
        assert (found.first.name, found.why) == (name, "missing")
    # and where no norm follows, the outputs say it
    short: Any = [copy.deepcopy(a), copy.deepcopy(a)]
    for net in short:
        net.last_bn = nn.Identity()
    found = parity(short[0], fold(_set(short[1], 0, eps=1e-2)).model, x)
    assert (found.first.name, found.why) == ("bn", "eps")


def test_a_norm_that_is_gone() -> None:
    a, x = trained("resnet"), batch("resnet")
    b = trained("resnet")
    b.blocks[0].bn2 = nn.Identity()
    found = parity(a, b, x)
    assert (found.first.name, found.why) == ("blocks.0.bn2", "missing")
    assert parity(b, a, x).first.name == "blocks.0.bn2"


def _forms(net: nn.Module, x: Tensor) -> dict[str, Any]:
    converted = copy.deepcopy(net)
    convert(converted, "batch")
    program = _exported(net, x)
    return {
        "itself": net,
        "a copy": copy.deepcopy(net),
        "compiled": torch.compile(net, backend="eager"),
        "exported": program,
        "decomposed": program.run_decompositions(),
        "folded": fold(net).model,
        "folded, exported": _exported(fold(net).model, x),
        "converted": converted,
        "scripted": torch.jit.trace(net, x),
        "frozen": torch.jit.freeze(torch.jit.trace(net, x)),
    }


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_no_difference_is_reported_for_true_equals(kind: str) -> None:
    net, x = trained(kind), batch(kind)
    for name, form in _forms(net, x).items():
        found = assert_parity(net, form, x)
        assert found.ok, name
        assert all(n.status in ("same", "fused") for n in found.norms)
        assert len(found.norms) == len(norms_of(net))
        turned = parity(form, net, x)
        assert turned.ok, f"{name}, turned"


def test_train_compares_what_a_step_does() -> None:
    a, x = trained("resnet"), batch("resnet")
    frozen = trained("resnet")
    convert(frozen, "frozen")
    assert parity(a, frozen, x, modes="eval").ok
    found = parity(a, frozen, x)
    assert (found.first.name, found.why) == ("norm", "batch_statistics")
    ghost = trained("resnet")
    convert(ghost, "ghost", ghost_size=4)
    assert parity(a, ghost, x).why == "batch_statistics"
    found = parity(a, _set(trained("resnet"), 2, momentum=0.3), x)
    assert found.modes[1].statistics > 0.01
    assert parity(a, _set(trained("resnet"), 2, momentum=0.3), x, ignore=["momentum"]).ok


class Counted(nn.Module):
    """A network that counts its forwards, also as compiled code."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.runs = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count()
        y: Tensor = self.net(x)
        return y

    @torch.compiler.disable
    def count(self) -> None:
        self.runs += 1


@pytest.mark.parametrize("kind", NETS)
def test_no_side_runs_more_than_three_times(kind: str) -> None:
    """Both modes together, for equal pairs and others; of compiled code in each mode."""
    x = batch(kind)
    noisy = trained(kind).to(torch.float64).float()
    with torch.no_grad():  # the same but for rounding: it is asked in both modes how much that is
        for parameter in noisy.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps)
    others = {
        "itself": trained(kind),
        "rounding": noisy,
        "eps": _set(trained(kind), 1, eps=_other_eps),
        "weights": _other_weights(trained(kind)),
    }
    counts = {}
    for name, net in others.items():
        a, b = Counted(trained(kind)).eval(), Counted(net).eval()
        found = parity(a, b, x)
        counts[name] = (a.runs, b.runs)
        assert found.forwards == counts[name], name
        assert max(found.forwards) <= 3
    # with noise the first runs in eval(), the second in train()
    assert (counts["itself"], counts["weights"]) == ((2, 2), (3, 3))
    # one form has no train(): the first runs with noise, the program once
    program = _exported(_other_weights(trained(kind)), x).module()
    a, b = Counted(trained(kind)).eval(), Counted(program)
    found = parity(a, b.forward, x)
    assert found.forwards == (a.runs, b.runs) == (2, 1)
    # compiled code is run, and its layers are watched as they were written
    for turned in (False, True):
        a, b = Counted(trained(kind)).eval(), Counted(noisy).eval()
        pair = (a, torch.compile(b, backend="eager"))
        found = parity(*(pair[::-1] if turned else pair), x, modes="eval")
        assert found.ok
        assert (found.forwards[::-1] if turned else found.forwards) == (a.runs, b.runs) == (2, 2)


def test_a_step_that_leaves_other_statistics_behind() -> None:
    """Outputs in train() do not say it: a back end that forgets to write the statistics."""

    def backend(module: Any, given: Any) -> Any:
        for node in module.graph.nodes:
            if "batch_norm" in str(node.target):
                for place in (1, 2):
                    with module.graph.inserting_before(node):
                        copied = module.graph.call_method("clone", (node.args[place],))
                    node.update_arg(place, copied)
        module.recompile()
        return module

    a, x = trained("resnet"), batch("resnet")
    found = parity(a, torch.compile(trained("resnet"), backend=backend), x)
    assert all(mode.ok for mode in found.modes)
    assert (found.first.name, found.why) == ("norm", "statistics_update")
    assert {norm.status for norm in found.norms} == {"differs"}
    other = torch.compile(trained("resnet"), backend=backend)
    assert parity(other, a, x).why == "statistics_update"
    assert parity(a, torch.compile(trained("resnet"), backend="eager"), x).ok


@pytest.mark.parametrize("changed", ["eps", "stride"])
def test_compiled_code_that_is_wrong(changed: str) -> None:
    """A back end that writes another eps, or another convolution: no layer says so."""
    runs = []

    def backend(module: Any, given: Any) -> Any:
        name = "batch_norm" if changed == "eps" else "conv2d"
        node = [n for n in module.graph.nodes if name in str(n.target)][1]
        if changed == "eps":
            node.update_arg(7, 0.5)
        else:
            with module.graph.inserting_after(node):
                wrong = module.graph.call_function(torch.mul, (node, 1.01))
            node.replace_all_uses_with(wrong, lambda user: user is not wrong)
        module.recompile()
        runs.append(module)
        return module

    a, x = trained("resnet"), batch("resnet")
    b = trained("resnet")
    compiled = torch.compile(b, backend=backend)
    before = _state(b)
    found = parity(a, compiled, x, modes="eval")
    assert not found.ok
    assert found.first is None
    assert (found.why, found.reasons[0].detail) == ("compiled_code", "second")
    where = "blocks.0.bn1" if changed == "eps" else "blocks.0.conv1"
    assert (found.reasons[1].code, found.reasons[1].detail) == ("compiled_layer", where)
    if changed == "eps":
        assert (found.reasons[2].code, found.reasons[2].second) == ("eps", "0.5")
    assert len(found.reasons) == (3 if changed == "eps" else 2)
    assert _state(b) == before
    assert found.forwards == (2, 3)
    # a folded form has no norms to make the noise in
    folded = parity(fold(a).model, compiled, x)
    assert [r.code for r in folded.reasons] == [r.code for r in found.reasons]
    assert folded.reasons[1].detail == where
    assert folded.forwards == (1, 4)
    count = len(runs)
    with torch.no_grad():
        compiled(x)
    assert len(runs) == count  # the code that was there is used again


def test_compiled_code_that_cannot_be_compiled_again() -> None:
    """The verdict stands without the place."""
    runs = []

    def backend(module: Any, given: Any) -> Any:
        runs.append(module)
        if len(runs) > 1:
            raise ValueError("no more")
        return lambda *values: [y + 0.01 for y in module(*values)]

    a, x = trained("mlp"), batch("mlp")
    found = parity(a, torch.compile(trained("mlp"), backend=backend), x, modes="eval")
    assert [(r.code, r.detail) for r in found.reasons] == [("compiled_code", "second")]


def test_layers_behind_the_last_norm() -> None:
    a, b, x = trained("mlp"), trained("mlp"), batch("mlp")
    with torch.no_grad():
        b.head.weight[0] += 0.1
    found = parity(a, b, x)
    assert found.first is None
    assert (found.why, found.reasons[0].detail) == ("weights", "head.weight")
    with pytest.raises(AssertionError, match=r"all norms are the same; weights"):
        assert_parity(a, b, x)


def test_one_rounding_error_is_no_difference() -> None:
    a, x = trained("resnet"), batch("resnet")
    b = trained("resnet")
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps)
    assert parity(a, b, x).ok
    with torch.no_grad():
        b.stem.weight.mul_(1 + 1e-4)
    assert parity(a, b, x, modes="eval").why == "weights"


def test_another_scale_of_the_input() -> None:
    a, x = trained("mobilenet"), batch("mobilenet")
    found = parity(a, trained("mobilenet"), x, inputs_b=x / 0.8, modes="eval")
    assert found.why == "input_scale"
    assert found.first.reasons[0].detail.startswith("1.25, 1.25")


def test_wrong_use_is_one_sentence() -> None:
    a, x = trained("mlp"), batch("mlp")
    with pytest.raises(InputError, match="can be 'eval', 'train'"):
        parity(a, a, x, modes="test")
    with pytest.raises(InputError, match=r"no train\(\)"):
        parity(a, _exported(a, x), x, modes="train")
    with pytest.raises(InputError, match="hold no tensor"):
        parity(a, a, "x")
    with pytest.raises(InputError, match="cannot be run"):
        parity(a, 3, x)
    with pytest.raises(ModelError, match="fails on these inputs"):
        parity(a, a, x[:, :3])
    with pytest.raises(FileError, match="there is no file"):
        parity(a, "missing.onnx", x)


def _state(net: nn.Module) -> list[Any]:
    tensors = [t.detach().numpy().tobytes() for t in (*net.parameters(), *net.buffers())]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    return [tensors, hooks, [m.training for m in net.modules()], torch.get_rng_state().tolist()]


def test_a_setting_counts_where_outputs_do_not_show_it() -> None:
    a, b, x = trained("resnet"), trained("resnet"), batch("resnet")
    norms_of(b)[2].eps = 1.02e-5
    found = parity(a, b, x, modes="eval")
    assert found.modes[0].ok
    assert (found.first.name, found.why) == (names_of(a)[2], "eps")
    assert parity(a, b, x, modes="eval", ignore=["eps"]).ok
