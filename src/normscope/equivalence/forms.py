"""Every form of a network that can be run beside another: modules, programs, files, functions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from normscope.equivalence.sites import STATISTICS, Collector, Run, Sketch
from normscope.errors import FileError, InputError, ModelError
from normscope.files import shown
from normscope.probe.compare import leaves
from normscope.probe.frozen import program_kind, refuse_unready
from normscope.probe.hooks import attach, uncompiled
from normscope.probe.layers import bare, find_norms, named_layers
from normscope.probe.load import reason
from normscope.probe.observe import observe
from normscope.probe.operators import Operators, addresses
from normscope.probe.random import kept_generators
from normscope.probe.restore import preserved

Mode = Literal["eval", "train"]
FormKind = Literal["module", "compiled", "exported", "torchscript", "onnx", "function"]


@dataclass(frozen=True)
class Inputs:
    """One batch as a network takes it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, given: Any) -> "Inputs":
        """Take a tensor, a tuple or list of arguments, or a mapping of named ones.

        Raises:
            InputError: nothing to run.
        """
        named = isinstance(given, Mapping)
        args = () if named else tuple(given) if isinstance(given, (tuple, list)) else (given,)
        inputs = cls(args, dict(given) if named else {})
        if not inputs.tensors:
            raise InputError(
                "the inputs hold no tensor; give a batch as the model takes it: a tensor, a tuple "
                "of arguments, or a mapping of named ones"
            )
        return inputs

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor."""
        return list(leaves((self.args, self.kwargs)))

    def sketch(self) -> Sketch:
        """Take the first floating point tensor, else the first; (N, C, ...) by its axis 1."""
        first = next((x for x in self.tensors if x.is_floating_point()), self.tensors[0])
        return Sketch.of(first if first.dim() else first.reshape(1), min(1, first.dim() - 1))

    def like(self, tensors: Sequence[Tensor]) -> "Inputs":
        """Copy them to the device of a network's tensors, and to the one dtype that these have."""
        kinds = {t.dtype for t in tensors if t.is_floating_point()}
        device = tensors[0].device if tensors else None

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            cast = len(kinds) == 1 and x.is_floating_point()
            return x.detach().to(
                device or x.device, next(iter(kinds)) if cast else x.dtype, copy=True
            )

        return Inputs(tree_map(moved, self.args), tree_map(moved, dict(self.kwargs)))


class Form(Protocol):
    """A network in one of its forms.

    Attributes:
        kind: what it is.
        norms: names of its normalising modules; None for a program, which has no train().
    """

    kind: FormKind
    norms: Sequence[str] | None

    def run(self, inputs: Inputs, mode: Mode, *, noise: bool = False) -> Run:
        """Run it once and hand it back as it was.

        With `noise` every linear layer and norm is moved by one rounding error.
        """


def form_of(subject: Any) -> Form:
    """Make `subject` ready to run.

    Raises:
        InputError: nothing that can be run.
        ModelError: a lazy or a meta model.
        FileError, MissingExtraError: a file that cannot be read, or not without an extra.
    """
    onnx = hasattr(subject, "model_proto") or type(subject).__name__ == "ModelProto"
    if isinstance(subject, (str, Path)):
        path = Path(subject)
        if not path.is_file():
            raise FileError(f"there is no file {shown(path)}; check the path")
        subject, onnx = path, path.suffix == ".onnx"
        if not onnx:
            subject = _program(path)
    if onnx:
        from normscope.equivalence.onnx_file import OnnxForm

        return OnnxForm(getattr(subject, "model_proto", subject))
    if isinstance(subject, torch.export.ExportedProgram):
        return ProgramForm(subject.module(), "exported")
    if isinstance(subject, nn.Module):
        kind = program_kind(bare(subject))
        return ModuleForm(subject) if kind is None else ProgramForm(bare(subject), kind)
    if callable(subject):
        return ProgramForm(subject, "function")
    raise InputError(
        f"a {type(subject).__name__} cannot be run; give a module, an exported program, "
        "TorchScript, or the path of an ONNX file, of a .pt2 file or of a TorchScript file"
    )


def _program(path: Path) -> Any:
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path)
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as problem:
        raise FileError(
            f"{shown(path)} is no program ({reason(problem)}); give an ONNX file (.onnx), an "
            "exported program (.pt2) or TorchScript (.ts)"
        ) from problem


class ProgramForm:
    """A program of torch.export or TorchScript, or a function: its operators are seen."""

    norms: Sequence[str] | None = None

    def __init__(self, program: Callable[..., Any], kind: FormKind) -> None:
        self._program, self.kind = program, kind
        self._own = program if isinstance(program, nn.Module) else nn.Module()

    def run(self, inputs: Inputs, mode: Mode, *, noise: bool = False) -> Run:
        """See `Form`; the modes of a program are fixed."""
        collector = Collector(values_only=noise)
        operators = Operators(addresses(self._own), collector.operator, noise=noise)
        outputs = _outputs(self._program, inputs.like(_tensors(self._own)), mode,
                           _kept_program(self._own), uncompiled(), operators)  # fmt: skip
        return Run(outputs, collector.sites, quantised=operators.quantised)


class ModuleForm:
    """A module, also under torch.compile: its layers are seen as they were written."""

    def __init__(self, model: nn.Module) -> None:
        refuse_unready(model)
        self._given, self._model = model, bare(model)
        compiled = any("_orig_mod" in m._modules for m in _wrappers(model))
        self.kind: FormKind = "compiled" if compiled else "module"
        self._norms = [
            replace(norm, skipped=None)
            for norm in find_norms(model)
            if norm.skipped is None or isinstance(norm.module, _BatchNorm)
        ]
        self.norms: Sequence[str] | None = [norm.name for norm in self._norms]

    def run(self, inputs: Inputs, mode: Mode, *, noise: bool = False) -> Run:
        """See `Form`; in eval() layers that were left in train() alone stay so."""
        given = inputs.like(_tensors(self._model))
        collector = Collector(values_only=noise)
        operators = Operators(addresses(self._model), collector.inside, noise=noise)
        code: list[Tensor] | None = None
        statistics: dict[str, Tensor] = {}
        if self.kind == "compiled" and not noise:
            with self._in_mode(mode):
                code = _outputs(self._given, given, mode)
                statistics = self._statistics(mode)
        with self._in_mode(mode):
            watching = observe(self._model, self._norms, collector)
            outputs = _outputs(self._model, given, mode, watching, operators)
            statistics = statistics or self._statistics(mode)
        run = Run(outputs, collector.sites, statistics, operators.quantised)
        return run if code is None else replace(run, outputs=code, watched=outputs)

    def _statistics(self, mode: Mode) -> dict[str, Tensor]:
        return {
            f"{norm.name}.{key}": value.detach().to("cpu", torch.float64, copy=True)
            for norm in (self._norms if mode == "train" else ())
            for key in STATISTICS
            if isinstance(value := getattr(norm.module, key, None), Tensor)
        }

    def in_code(self, inputs: Inputs, mode: Mode, names: Iterable[str]) -> dict[str, Tensor]:
        """Return what layers put out in compiled code, which is compiled once more for it.

        The graphs then have more outputs, all else is as it was. Empty where that fails.
        """
        contexts = [m.dynamo_ctx for m in _wrappers(self._given) if hasattr(m, "dynamo_ctx")]
        again: Any = contexts[0] if contexts else None
        given = inputs.like(_tensors(self._model))
        kept: dict[str, Any] = {}

        def whole(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            return self._model(*args, **kwargs), dict(kept)

        wanted = set(names)
        asked = {name: layer for name, layer in named_layers(self._model) if name in wanted}
        with self._in_mode(mode), attach(asked, None, kept.setdefault):
            try:
                _, found = again(whole)(*given.args, **given.kwargs) if again else (None, {})
            except Exception:  # the back end's own; the verdict stands without the place
                return {}
        return {name: y.detach().clone() for name, y in found.items()}

    @contextmanager
    def _in_mode(self, mode: Mode) -> Iterator[None]:
        own = {module: module.training for module in self._model.modules()}
        with preserved(self._model):
            if mode == "train":
                self._model.train()  # a model that keeps its norms in eval() does so here too
            elif not own[self._model]:
                for module, training in own.items():
                    module.training = training
            yield


def _wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the module and what wraps it."""
    yield model
    while model is not bare(model):
        wrapped = model._modules.get("_orig_mod", model._modules.get("module"))
        assert wrapped is not None, "bare went through it"
        yield (model := wrapped)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters, or with none that is floating point buffers too."""
    parameters: list[Tensor] = list(module.parameters())
    floating = any(p.is_floating_point() for p in parameters)
    return parameters if floating else [*parameters, *module.buffers()]


def _outputs(call: Any, given: Inputs, mode: Mode, *around: Any) -> list[Tensor]:
    """Call it inside of contexts; return its floating point outputs."""
    try:
        with ExitStack() as undo:
            for context in (kept_generators(0), torch.no_grad(), *around):
                undo.enter_context(context)
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
def _kept_program(program: nn.Module) -> Iterator[None]:
    """Run a program in eval() where it has modes, and give its buffers back as they were."""
    contents = [(buffer, buffer.detach().clone()) for buffer in program.buffers()]
    script = isinstance(program, torch.jit.ScriptModule)
    # a frozen script has no modes
    modes = [(m, m.training) for m in program.modules() if script and hasattr(m, "training")]
    try:
        if modes and modes[0][1]:
            program.eval()
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
