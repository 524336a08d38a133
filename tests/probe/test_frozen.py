"""Programs, lazy modules and tensors without numbers are refused in one sentence, untouched."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normscope
from normscope.errors import ModelError
from normscope.probe.frozen import check_runnable, refuse_traced, refuse_unready

pytestmark = [  # torch's own
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
x = torch.randn(4, 2)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def aten() -> nn.Module:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(net().eval())(x)


PROGRAMS: dict[str, Callable[[], Any]] = {
    "scripted": lambda: torch.jit.script(net()),
    "traced": lambda: torch.jit.trace(net().eval(), x),
    "function": lambda: torch.jit.trace(torch.relu, x),
    "exported": lambda: torch.export.export(net(), (x,)),
    "exported module": lambda: torch.export.export(net(), (x,)).module(),
    "unflattened": lambda: torch.export.unflatten(torch.export.export(net(), (x,))),
    "operators": aten,
}


def bytes_of(model: nn.Module) -> tuple[Any, ...]:
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [m.training for m in model.modules()],
        [(t.numpy().tobytes(), t._version, t.requires_grad) for t in map(Tensor.detach, tensors)],
        torch.get_rng_state().numpy().tobytes(),
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_refused_and_left_as_they_were(name: str) -> None:
    program = PROGRAMS[name]()
    before = bytes_of(program) if isinstance(program, nn.Module) else None
    acts = [refuse_traced, lambda m: normscope.convert(m, "batch"), normscope.fold]
    if name == "exported":  # whose graph is folded
        assert acts.pop()(program).model is not None
    for act in acts:
        with pytest.raises(ModelError, match=r"mode and layers were fixed .* made from$") as raised:
            act(program)
        assert "\n" not in str(raised.value)
    if before is not None:
        assert bytes_of(program) == before
        with pytest.raises(ModelError, match=r"part '0' of the model is an? \w+ program"):
            check_runnable(nn.Sequential(program, nn.BatchNorm1d(3)))
        refuse_traced(nn.Sequential(program), parts=False)


def test_what_can_be_watched_is_not_refused() -> None:
    for model in (
        net(),
        torch.compile(net()),
        torch.fx.symbolic_trace(net()),
        nn.DataParallel(net()),
    ):
        check_runnable(model, writes=True)
    # a program inside does not keep the layers around it from being converted
    model = nn.Sequential(torch.jit.script(net()), nn.BatchNorm1d(3))
    assert [change.name for change in normscope.convert(model, "batch").changed] == ["1"]


def test_lazy_and_meta_models() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with torch.device("meta"):
        meta = nn.Sequential(net())
    for model, sentence in (
        (lazy, r"^0.weight has no shape yet \(a lazy layer\); run the model once"),
        (meta, r"^0.0.weight is on the meta device and holds no numbers; call model.to_empty"),
    ):
        for act in (check_runnable, normscope.fold):
            with pytest.raises(ModelError, match=sentence):
                act(model)
    lazy(x)
    check_runnable(lazy)
    check_runnable(meta.to_empty(device="cpu"))


def test_models_made_in_inference_mode_can_be_looked_at_but_not_changed() -> None:
    with torch.inference_mode():
        model = net()
    check_runnable(model)
    with pytest.raises(ModelError, match=r"0.weight was made under torch.inference_mode\(\)"):
        refuse_unready(model, writes=True)
    check_runnable(copy.deepcopy(model), writes=True)


def test_a_function_of_torchscript_is_refused_as_what_it_is() -> None:
    traced: Any = torch.jit.trace(torch.relu, (torch.ones(2),))
    with pytest.raises(ModelError, match="a TorchScript program"):
        normscope.diagnose(traced)
