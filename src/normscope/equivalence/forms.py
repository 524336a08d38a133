"""Every form of a network that can be run beside another: modules, programs, files."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from normscope.equivalence.collector import Collector
from normscope.equivalence.sites import Run, Sketch
from normscope.errors import FileError, InputError, ModelError
from normscope.files import shown
from normscope.probe.compare import leaves
from normscope.probe.frozen import program_kind, refuse_unready
from normscope.probe.hooks import attach
from normscope.probe.layers import bare, find_norms, named_layers
from normscope.probe.load import reason
from normscope.probe.observe import observe
from normscope.probe.operators import Operators, addresses
from normscope.probe.random import kept_generators
from normscope.probe.restore import preserved

Mode = Literal["eval", "train"]
FormKind = Literal["module", "compiled", "exported", "torchscript", "onnx", "function"]
ENDINGS = {".onnx": "onnx", ".pt2": "exported", ".ts": "torchscript", ".torchscript": "torchscript"}


@dataclass(frozen=True)
class Inputs:
    """One batch as a network takes it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, given: Any) -> "Inputs":
        """A tensor, a tuple or list of arguments, or a mapping of named ones.

        Raises:
            InputError: nothing to run.
        """
        if isinstance(given, Mapping):
            inputs = cls((), dict(given))
        else:
            inputs = cls(tuple(given) if isinstance(given, (tuple, list)) else (given,), {})
        if not any(isinstance(leaf, Tensor) for leaf in inputs.leaves()):
            raise InputError(
                "the inputs hold no tensor; give a batch as the model takes it: a tensor, a tuple "
                "of arguments, or a mapping of named ones"
            )
        return inputs

    def leaves(self) -> list[Any]:
        """Every entry."""
        return [*leaves((self.args, self.kwargs))]

    def sketch(self) -> Sketch:
        """The first floating point tensor, else the first; (N, ..., C) by its axis 1."""
        tensors = [x for x in self.leaves() if isinstance(x, Tensor)]
        first = next((x for x in tensors if x.is_floating_point()), tensors[0])
        return Sketch.of(first if first.dim() else first.reshape(1), min(1, first.dim() - 1))

    def like(self, dtype: torch.dtype | None, device: torch.device | None) -> "Inputs":
        """Copies for a form: its floating dtype and its device."""

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            kind = dtype if dtype is not None and x.is_floating_point() else x.dtype
            return x.detach().to(device or x.device, kind, copy=True)

        return Inputs(tree_map(moved, self.args), tree_map(moved, dict(self.kwargs)))


class Form(Protocol):
    """A network in one of its forms.

    Attributes:
        kind: what it is.
        trains: whether it can be run in train().
        normalising: names of its normalising modules, those that are modules.
        modules: names of all modules.
    """

    kind: FormKind
    trains: bool
    normalising: Sequence[str]
    modules: frozenset[str]

    def run(
        self, inputs: Inputs, mode: Mode, also: Sequence[str] = (), *, noise: bool = False
    ) -> Run:
        """Run it once and hand it back as it was; `also` names modules to watch that are no norms.

        With `noise` every linear layer and norm is moved by one rounding error.
        """


def form_of(subject: Any) -> Form:
    """What `subject` is, ready to run.

    Raises:
        InputError: nothing that can be run.
        ModelError: a lazy or a meta model.
        FileError, MissingExtraError: a file that cannot be read, or not without an extra.
    """
    if isinstance(subject, (str, Path)):
        return _file_form(Path(subject))
    if isinstance(subject, torch.export.ExportedProgram):
        return ProgramForm(subject.module(), "exported")
    if isinstance(subject, nn.Module):
        kind = program_kind(bare(subject))
        if kind is not None:
            return ProgramForm(bare(subject), kind)
        return ModuleForm(subject)
    if hasattr(subject, "model_proto") or type(subject).__name__ == "ModelProto":
        from normscope.equivalence.onnx_file import OnnxForm

        return OnnxForm(getattr(subject, "model_proto", subject))
    if callable(subject):
        return FunctionForm(subject)
    raise InputError(
        f"a {type(subject).__name__} cannot be run; give a module, an exported program, "
        "TorchScript, or the path of an ONNX file, of a .pt2 file or of a TorchScript file"
    )


def _file_form(path: Path) -> Form:
    if not path.is_file():
        raise FileError(f"there is no file {shown(path)}; check the path")
    kind = ENDINGS.get(path.suffix)
    if kind == "onnx":
        from normscope.equivalence.onnx_file import OnnxForm

        return OnnxForm(path)
    try:
        if kind == "exported":
            return ProgramForm(torch.export.load(path).module(), "exported")
        return ProgramForm(torch.jit.load(str(path), map_location="cpu"), "torchscript")
    except Exception as problem:
        raise FileError(
            f"{shown(path)} is no program ({reason(problem)}); give an ONNX file (.onnx), an "
            "exported program (.pt2) or TorchScript (.ts)"
        ) from problem


class ModuleForm:
    """A module, also under torch.compile: its layers are seen as they were written."""

    def __init__(self, model: nn.Module) -> None:
        refuse_unready(model)
        self._given, self._model = model, bare(model)
        compiled = any("_orig_mod" in module._modules for module in _chain(model))
        self.kind: FormKind = "compiled" if compiled else "module"
        self.trains = True
        self._norms = [
            replace(norm, skipped=None)
            for norm in find_norms(model)
            if norm.skipped is None or isinstance(norm.module, _BatchNorm)
        ]
        self.normalising: Sequence[str] = [norm.name for norm in self._norms]
        self._named = dict(named_layers(model))
        self.modules = frozenset(self._named)
        self._dtype, self._device = _place(self._model)

    def run(
        self, inputs: Inputs, mode: Mode, also: Sequence[str] = (), *, noise: bool = False
    ) -> Run:
        """See `Form`; in eval() layers that were left in train() alone stay so."""
        given = inputs.like(self._dtype, self._device)
        modes = {module: module.training for module in self._model.modules()}
        as_given = not self._model.training
        code: list[Tensor] | None = None
        with preserved(self._model):
            self._set_modes(mode, modes if as_given else None)
            if self.kind == "compiled" and not noise:
                with kept_generators(0):
                    code = _outputs(self._given, given, mode)
        with preserved(self._model):
            self._set_modes(mode, modes if as_given else None)
            outputs, collector, quantised = self._watched(given, mode, also, noise)
            statistics = {}
            if mode == "train":
                statistics = {
                    f"{n.name}.{key}": value.detach().double().cpu().clone()
                    for n in self._norms
                    for key in ("running_mean", "running_var")
                    if isinstance(value := getattr(n.module, key, None), Tensor)
                }
        run = Run(outputs if code is None else code, collector.sites, statistics, quantised)
        return run if code is None else replace(run, watched=outputs)

    def _set_modes(self, mode: Mode, own: Mapping[nn.Module, bool] | None) -> None:
        if mode == "train":
            self._model.train()  # a model that keeps its norms in eval() does so here too
        elif own is not None:
            for module, training in own.items():
                module.training = training
        else:
            self._model.eval()

    def _watched(
        self, given: Inputs, mode: Mode, also: Sequence[str], noise: bool
    ) -> tuple[list[Tensor], Collector, bool]:
        collector = Collector()
        others = {name: _inside(self._named[name]) for name in also if name in self._named}
        operators = Operators(addresses(self._model), collector.operator, noise=noise)
        with ExitStack() as undo:
            undo.enter_context(kept_generators(0))
            undo.enter_context(observe(self._model, self._norms, collector))
            undo.enter_context(attach(others, collector.enter, collector.leave))
            undo.enter_context(operators)
            outputs = _outputs(self._model, given, mode)
        return outputs, collector, operators.quantised


class ProgramForm:
    """A program of torch.export or TorchScript: its operators are seen, its modes are fixed."""

    trains = False
    normalising: Sequence[str] = ()
    modules: frozenset[str] = frozenset()

    def __init__(self, program: nn.Module, kind: FormKind) -> None:
        self._program, self.kind = program, kind
        self._dtype, self._device = _place(program)

    def run(
        self, inputs: Inputs, mode: Mode, also: Sequence[str] = (), *, noise: bool = False
    ) -> Run:
        """See `Form`."""
        given = inputs.like(self._dtype, self._device)
        collector = Collector()
        operators = Operators(addresses(self._program), collector.step, noise=noise)
        with _kept_program(self._program, self.kind), kept_generators(0), torch.no_grad():
            if "torch._dynamo" in sys.modules:
                with torch.compiler.set_stance("force_eager"), operators:
                    outputs = _outputs(self._program, given, mode)
            else:
                with operators:
                    outputs = _outputs(self._program, given, mode)
        return Run(outputs, collector.sites, quantised=operators.quantised)


class FunctionForm:
    """Anything else that can be called: its outputs alone."""

    kind: FormKind = "function"
    trains = False
    normalising: Sequence[str] = ()
    modules: frozenset[str] = frozenset()

    def __init__(self, function: Any) -> None:
        self._function = function

    def run(
        self, inputs: Inputs, mode: Mode, also: Sequence[str] = (), *, noise: bool = False
    ) -> Run:
        """See `Form`."""
        with kept_generators(0), torch.no_grad():
            return Run(_outputs(self._function, inputs.like(None, None), mode), [])


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """The module and what wraps it."""
    inner = bare(model)
    yield model
    while model is not inner:
        wrapped = model._modules.get("_orig_mod", model._modules.get("module"))
        assert wrapped is not None, "bare went through it"
        model = wrapped
        yield model


def _inside(module: nn.Module) -> nn.Module:
    """What stands for the norm where a folded one keeps an activation of its own."""
    inner = module._modules.get("norm") if isinstance(module, nn.Sequential) else None
    return module if inner is None else inner


def _place(module: nn.Module) -> tuple[torch.dtype | None, torch.device | None]:
    """The one floating dtype of its tensors, None where there are several; the first's device."""
    tensors = [*module.parameters(), *module.buffers()]
    dtypes = {t.dtype for t in module.parameters() if t.is_floating_point()}
    dtypes = dtypes or {t.dtype for t in tensors if t.is_floating_point()}
    device = tensors[0].device if tensors else None
    return (dtypes.pop() if len(dtypes) == 1 else None), device


def _outputs(call: Any, given: Inputs, mode: Mode) -> list[Tensor]:
    try:
        with torch.no_grad():
            output = call(*given.args, **given.kwargs)
    except Exception as problem:
        raise ModelError(
            f"{type(call).__name__} fails on these inputs in {mode}(): {reason(problem)}; give a "
            "batch as it takes it"
        ) from problem
    found = [y.detach().cpu().clone() for y in leaves(output) if y.is_floating_point()]
    if not found:
        raise ModelError(f"{type(call).__name__} gives no floating point numbers to compare")
    return found


@contextmanager
def _kept_program(program: nn.Module, kind: FormKind) -> Iterator[None]:
    """Run a program in eval() where it has modes, and give its buffers back as they were."""
    contents = [(buffer, buffer.detach().clone()) for buffer in program.buffers()]
    # a frozen script has no modes
    script = kind == "torchscript" and hasattr(program, "training")
    modules = [m for m in program.modules() if hasattr(m, "training")] if script else []
    modes = [module.training for module in modules]
    try:
        if modules and modules[0].training:
            program.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
