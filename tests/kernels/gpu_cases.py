"""Cases of the Triton programs, which test_gpu.py runs in a process of their own.

With TRITON_INTERPRET=1 they run on CPU tensors. Otherwise they need a CUDA device.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.runtime.interpreter import InterpretedFunction

import normscope
from normscope import functional
from normscope.kernels import autograd, dispatch, gpu, reference
from normscope.kernels.gpu import cutting, layer, tuning
from normscope.kernels.problem import Epilogue, Problem, Statistics
from tests.kernels.gpu_case import DEVICE, DTYPES, Case, close

interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="only in the interpreter")
# the interpreter calculates in NumPy, which warns where a GPU gives inf or NaN
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tiles and few programs, so that few values make many; new memory is full of NaN."""
    monkeypatch.setattr(cutting, "SIZES", dict.fromkeys(cutting.SIZES, (256, 128, 4)))
    monkeypatch.setattr(cutting, "WIDEST", 16)
    monkeypatch.setattr(cutting, "PROGRAMS", 4)
    monkeypatch.setattr(cutting, "MERGED", {"BLOCK_Q": 4, "BLOCK_C": 2})
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu, "unsupported", lambda x: None)
    monkeypatch.setattr(functional, "_compiled", lambda *arguments: None)
    monkeypatch.setattr(dispatch, "FAST", {DEVICE: "gpu"})
    monkeypatch.setattr(dispatch, "MEASURED", ("gpu",))
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


FORMS: list[tuple[Any, ...]] = [  # shape, channels last, dtype, form, running; training, momentum
    ((5, 3, 7, 3), False, torch.float32, ("relu", True, False, 1, 1, 1), "pooled", True, 0.1),
    ((6, 3, 5, 3), True, torch.float32, ("relu", True, True, 3, 1, 1), "pooled", True, None),
    ((7, 3, 5, 2), False, torch.float64, ("silu", True, True, 3, 3, 1), "each", True, None),
    ((9, 10), False, torch.float32, ("leaky_relu", True, False, 1, 4, 4), "pooled", True, 0.3),
    ((6, 4, 3, 3), True, torch.float64, (None, True, True, 1, 4, 1), "pooled", True, 0.1),
    ((6, 4, 3, 3), False, torch.bfloat16, ("relu", False, True, 1, 1, 4), "pooled", False, 0.1),
    ((6, 9, 2, 2), True, torch.float16, ("silu", False, False, 3, 1, 1), "each", False, 0.1),
]


@pytest.mark.parametrize(
    ("shape", "by_rows", "dtype", "form", "running", "training", "momentum"), FORMS, ids=str
)
def test_a_layer_equals_the_reference(
    shape: Any, by_rows: bool, dtype: Any, form: Any, running: str, training: bool, momentum: Any
) -> None:
    case = Case(shape, by_rows, dtype, form, running)
    found = []
    for impl in ("gpu", "reference"):
        y, *state = case.call(impl, training, momentum=momentum)
        assert y.stride() == case.x.stride()
        assert all((t._version > 0) == training for t in state)
        found.append([y.detach(), *state, *torch.autograd.grad(y, case.leaves, case.dy)])
    close(*found, DTYPES[dtype])


def test_tiles_and_warps_by_measurement() -> None:
    """The fastest of each program stays, and the results with it are right."""
    times = iter([3.0, 1.0, 2.0, *[1.0, 2.0, 3.0] * 3])
    one, two = (128, 64, 2), (512, 128, 8)
    case = Case((4, 3, 3, 3), False, torch.float32, (None, False, False, 1, 1, 1))
    found = tuning.tune(lambda: case.call("gpu"), lambda step: next(times), (one, two))
    before = (256, 128, 4)
    assert found["moments"] == {before: 3.0, one: 1.0, two: 2.0}
    assert {**dict.fromkeys(cutting.SIZES, before), "moments": one} == cutting.SIZES
    close([case.call("gpu")[0].detach()], [case.call("reference")[0].detach()], 1e-6)


def test_statistics_of_several_processes(tmp_path: Path) -> None:
    """By the verbs, with a collective between them; and the batch's moments, where asked for."""
    dist.init_process_group(
        "gloo" if DEVICE == "cpu" else "nccl",
        init_method=f"file://{tmp_path}/f",
        rank=0,
        world_size=1,
    )
    try:
        case = Case(*FORMS[1][:5])
        found = []
        for impl, group in (("gpu", dist.group.WORLD), ("reference", None)):
            y, *state = case.call(impl, process_group=group)
            found.append([y.detach(), *state, *torch.autograd.grad(y, case.leaves, case.dy)])
        close(*found, 1e-6)
        x, norm = torch.randn(3, 2, 2, 2, device=DEVICE), normscope.BatchNorm2d(2).to(DEVICE)
        for module in (norm, DistributedDataParallel(copy.deepcopy(norm))):
            module(x).square().sum().backward()
            module(x)  # the buffers are sent around before
            found.append([p.grad for p in module.parameters()] + list(module.buffers()))
        assert all(map(torch.equal, *found[2:]))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_large_mean_loses_nothing(by_rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "WIDEST", 32)
    x = torch.randn(8, 2, 8, 8) + 1e4
    x[0, 0, 0, 0] = 0  # what a lane meets first need not be near the mean
    x = (x.to(memory_format=torch.channels_last) if by_rows else x).to(DEVICE)
    _, mean, m2 = gpu.moments(Problem(x))
    _, exact, exact_m2 = reference.moments(Problem(x))
    rstd = (x[0].numel() * 8 / 2 / exact_m2).sqrt()
    assert float(((mean - exact) * rstd).abs().max()) < 1e-6  # in standard deviations
    torch.testing.assert_close(m2, exact_m2, rtol=1e-6, atol=0)
    y, expected = (
        kernel.normalize(Problem(values), Statistics(exact, rstd), Epilogue())
        for kernel, values in ((gpu, x), (reference, x.double()))
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_or_of_no_group_stays_where_it_is() -> None:
    x, groups = torch.randn(6, 2, 3, 2).to(DEVICE), torch.tensor([0, 1, 0, 1, 7, -1]).to(DEVICE)
    for poison in (torch.nan, torch.inf):
        x[2, 1, 0, 0] = poison
        _, _, m2 = gpu.moments(Problem(x, groups, 2))
        assert (~m2.isfinite()).nonzero().tolist() == [[0, 1]]
    y = functional.batch_norm(x, training=True, groups=groups, num_groups=2, impl="gpu")
    exact = functional.batch_norm(
        x[:4], training=True, groups=groups[:4], num_groups=2, impl="reference"
    )
    assert torch.isnan(y[4:]).all()
    torch.testing.assert_close(y[:4], exact, equal_nan=True)


def test_activations_beyond_what_exp_can_hold() -> None:
    u = torch.tensor([-1e30, -200.0, -88.0, -20.0, -1.0, 0.0, 1.0, 20.0, 88.0, 200.0, 1e30])
    u = torch.cat([u, torch.tensor([torch.nan, torch.inf])]).reshape(-1, 1).to(DEVICE)
    zero, one = torch.zeros(1, 1).double().to(DEVICE), torch.ones(1, 1).double().to(DEVICE)
    for act, function in reference.ACTIVATIONS.items():
        y = gpu.normalize(Problem(u), Statistics(zero, one), Epilogue(act=act))
        torch.testing.assert_close(y, function(u), rtol=1e-6, atol=1e-37, equal_nan=True)


def test_second_derivatives_and_many_cotangents() -> None:
    case = Case((4, 3, 3, 3), True, torch.float64, ("relu", True, True, 3, 3, 1))
    many = torch.randn(2, *case.x.shape).double().to(DEVICE)
    found = []
    for impl in ("gpu", "reference"):
        y, *_ = case.call(impl)
        first = torch.autograd.grad(y, case.leaves, case.dy, create_graph=True)
        second = torch.autograd.grad(
            (first[0] * case.dy).sum(), [case.x, case.weight], retain_graph=True
        )
        batched = torch.autograd.grad(
            y, case.leaves, many, is_grads_batched=True, retain_graph=True
        )
        found.append([*first, *second, *batched])
    close(*[[t.detach() for t in found_] for found_ in found], 1e-11)


def test_an_output_is_computed_again_to_the_bit() -> None:
    case = Case((4, 2, 3, 3), True, torch.float32, ("relu", False, True, 3, 1, 1))
    found = []
    for again in (False, True):
        with normscope.recompute() if again else nullcontext():
            loss = (case.call("gpu")[0].square() * case.dy).sum()
        found.append(torch.autograd.grad(loss, case.leaves))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


FAMILY: dict[str, Callable[[], Any]] = {
    "ConditionalBatchNorm2d": lambda: normscope.ConditionalBatchNorm2d(3, 3),
    "GhostBatchNorm2d": lambda: normscope.GhostBatchNorm2d(3, 4),
    "BatchRenorm2d": lambda: normscope.BatchRenorm2d(3),
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers against the reference, in mixed precision too: what autocast leaves alone."""
    layer = FAMILY[name]().to(DEVICE)
    x, dy = torch.randn(2, 8, 3, 3, 2, device=DEVICE)
    assert functional.why(x).startswith("gpu: ")
    rest = (torch.arange(8, device=DEVICE) % 3,) if name.startswith("Conditional") else ()
    state, found = copy.deepcopy(layer.state_dict()), []
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype).load_state_dict(state)
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
            y = layer(leaf, *rest)
        assert y.dtype == dtype
        parameters = [p for p in layer.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(y, [leaf, *parameters], dy.to(dtype))
        found.append([y.detach(), *gradients, *layer.state_dict().values()])
        monkeypatch.setattr(dispatch, "MEASURED", ())
        assert functional.why(x).startswith("reference: ")
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact.double(), rtol=1e-5, atol=1e-5)


class Captured:
    """Programs in the order in which they were started, as a CUDA graph keeps them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[Callable[[], Any]] = []
        run = InterpretedFunction.run

        def kept(jit: Any, *args: Any, **kwargs: Any) -> Any:
            self.started.append(lambda: run(jit, *args, **kwargs))
            return self.started[-1]()

        monkeypatch.setattr(InterpretedFunction, "run", kept)

    def replay(self) -> None:
        """Start them again in the same memory; nothing else is done."""
        for start in self.started:
            start()


@interpreted
@pytest.mark.parametrize("form", [FORMS[1], FORMS[3]], ids=str)
def test_a_captured_step_is_right_for_other_values(
    form: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other groups, masks and values than those of the capture, as in a CUDA graph's replay."""

    def step(case: Case) -> list[Tensor]:
        y, *_ = case.call("gpu", momentum=form[-1], state=[*case.running, case.tracked])
        return [y.detach(), *torch.autograd.grad(y, case.leaves, case.dy)]

    captured, case, other = Captured(monkeypatch), Case(*form[:5]), Case(*form[:5])
    begun = [t.clone() for t in (*case.running, case.tracked)]
    found = step(case)
    before = [t.clone() for t in found]
    with torch.no_grad():
        for name in ("x", "dy", "residual", "groups", "mask", "weight", "bias", "tracked"):
            if getattr(case, name) is not None:
                getattr(case, name).copy_(getattr(other, name))
        for mine, theirs in zip(case.running, other.running, strict=True):
            mine.copy_(theirs)
    captured.replay()
    for mine, theirs, old in zip(found, step(other), before, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, old)
    for mine, theirs, old in zip(case.running, other.running, begun, strict=False):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, old)
    assert torch.equal(case.tracked, other.tracked)


# what moves no values and starts nothing on a device
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "view", "as_strided", "detach", "select",
    "slice", "unbind", "expand", "unsqueeze", "permute", "alias", "_reshape_alias",
}  # fmt: skip


class OnDevice(TorchDispatchMode):
    """Lets pass what only makes memory on a CUDA device, or looks at it otherwise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # a question that fake tensors are asked
            return found
        assert func.name().removeprefix("aten::").split(".")[0] in FREE, func
        tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor)]
        assert {t.device.type for t in tensors} == {"cuda"}, func
        assert not (kwargs or {}).get("pin_memory"), func
        return found


def there(like: Tensor) -> Tensor:
    """Make a tensor on a CUDA device, which need not be there."""
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cuda")


@interpreted
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_nothing_leaves_the_device(form: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake CUDA device: the host reads no value, copies nothing and computes nothing.

    Without CUDA in torch nothing on such a device can be differentiated, so both halves of the
    gradient are called as autograd would.
    """
    started: list[str] = []
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda jit, *args, **kwargs: started.append(jit.__name__)
    )
    monkeypatch.setattr(autograd, "is_transformed", lambda: False)
    monkeypatch.setattr(layer, "on", lambda x: nullcontext())
    context = SimpleNamespace(needs_input_grad=(True,) * 10)
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    forward = layer._Layer.forward
    monkeypatch.setattr(layer._Layer, "apply", lambda *args: forward(context, *args))
    *of, training, momentum = form
    case = Case(*of)
    with torch.no_grad(), FakeTensorMode():
        vars(case).update(tree_map_only(Tensor, there, vars(case)))
        with OnDevice():
            y, *_ = case.call("gpu", training, [*case.running, case.tracked], momentum=momentum)
            wanted = (True, True, True, case.residual is not None)
            gradients = layer._by_programs(context, case.dy, wanted)
    assert started == [
        *["arrange"] * (case.rows > 1), *["moments"] * training, "merge_moments", "normalize",
        "gradient_sums", "merge_gradients", "gradient",
    ]  # fmt: skip
    assert y.device.type == "cuda"
    assert [g is not None for g in gradients] == list(wanted)
