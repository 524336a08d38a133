"""An ONNX graph as a form: its batch norms and linear nodes become outputs of the graph."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from normscope.equivalence.forms import FormKind, Inputs, Mode
from normscope.equivalence.sites import Run, Site, Sketch, numbers
from normscope.errors import FileError, InputError, MissingExtraError, ModelError
from normscope.files import read_bytes, shown
from normscope.probe.load import reason

LINEAR = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}  # the axis of channels
QUANTISING = ("QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul")
# where a batch norm keeps its tensors, and how exporters call them
HELD = ("weight", "bias", "running_mean", "running_var")
BATCH_NORM = ("BatchNormalization",)


class OnnxForm:
    """An ONNX graph run by onnxruntime, without its optimisations."""

    kind: FormKind = "onnx"
    trains = False
    normalising: Sequence[str] = ()
    modules: frozenset[str] = frozenset()

    def __init__(self, subject: Any) -> None:
        """Take a path or a ModelProto; the graph is copied.

        Raises:
            MissingExtraError: onnx or onnxruntime is not installed.
            FileError: no ONNX graph.
        """
        self._runtime, onnx = _extra("onnxruntime"), _extra("onnx")
        self._helper = _extra("onnx.numpy_helper")
        try:
            if isinstance(subject, Path):
                read_bytes(subject, "ONNX file")
                self._graph = onnx.load(str(subject))
            else:
                self._graph = onnx.ModelProto()
                self._graph.CopyFrom(subject)
        except FileError:
            raise
        except Exception as problem:
            raise FileError(
                f"{shown(str(subject))} is no ONNX graph ({reason(problem)}); export it again"
            ) from problem
        graph = self._graph.graph
        self._nodes = [
            node
            for node in graph.node
            if node.op_type in (*LINEAR, *BATCH_NORM) and node.domain in ("", "ai.onnx")
        ]
        self._constants = {t.name: t for t in graph.initializer}
        self._same = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity"}
        self._value_nodes = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
        self._added = _added_biases(graph.node, self._nodes, self._is_constant)
        self._quantised = any(node.op_type in QUANTISING for node in graph.node)
        self._expose(onnx)

    def run(
        self, inputs: Inputs, mode: Mode, also: Sequence[str] = (), *, noise: bool = False
    ) -> Run:
        """See `Form`; noise is not made here."""
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = self._runtime.InferenceSession(
                self._graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            fed = _fed(session.get_inputs(), inputs)
            names = [output.name for output in session.get_outputs()]
            values = dict(zip(names, session.run(names, fed), strict=True))
        except InputError:
            raise
        except Exception as problem:
            raise ModelError(
                f"onnxruntime cannot run the ONNX graph on these inputs: {reason(problem)}; give "
                "a batch of the shape and dtype it was exported for"
            ) from problem
        values |= fed
        outputs = [
            tensor
            for name in names[: self._own_outputs]
            if (tensor := _tensor(values[name])).is_floating_point()
        ]
        sites = [site for node in self._nodes if (site := self._site(node, values)) is not None]
        for order, site in enumerate(sites):
            site.order = order
        return Run(outputs, sites, quantised=self._quantised)

    def _expose(self, onnx: Any) -> None:
        """Add what the nodes take and give to the outputs of the graph."""
        graph = self._graph.graph
        own = [output.name for output in graph.output]
        self._own_outputs = len(own)
        seen = {*own, *(i.name for i in graph.input), *self._constants}
        for node in self._nodes:
            for name in (node.input[0], self._result(node)):
                if name not in seen:
                    seen.add(name)
                    graph.output.append(onnx.ValueInfoProto(name=name))

    def _result(self, node: Any) -> str:
        """The output of a node, behind the addition of its bias where that is a node of its own."""
        return self._added[node.output[0]][0] if node.output[0] in self._added else node.output[0]

    def _site(self, node: Any, values: Mapping[str, Any]) -> Site | None:
        before, after = values.get(node.input[0]), values.get(self._result(node))
        if before is None or after is None or np.ndim(after) < 2:
            return None
        norm = node.op_type in BATCH_NORM
        if not norm and not self._is_constant(node.input[1]):
            return None  # a product of two activations
        kind: Literal["norm", "linear"] = "norm" if norm else "linear"
        axis = 1 if norm else LINEAR[node.op_type]
        name = self._name(node)
        settings: dict[str, Any] = {}
        held: dict[str, Tensor] = {}
        if norm:
            attributes = {a.name: a for a in node.attribute}
            eps = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
            momentum = attributes["momentum"].f if "momentum" in attributes else 0.9
            trains = attributes["training_mode"].i if "training_mode" in attributes else 0
            settings = {"eps": eps, "momentum": 1 - momentum, "training": bool(trains)}
            held = {
                key: value
                for key, input_name in zip(HELD, node.input[1:5], strict=False)
                if (value := self._constant(input_name)) is not None
            }
        elif (weight := self._constant(node.input[1])) is not None:
            turned = node.op_type == "MatMul" or (
                node.op_type == "Gemm"
                and not any(a.name == "transB" and a.i for a in node.attribute)
            )
            held = {"weight": weight.T if turned and weight.dim() == 2 else weight}
            bias = (
                node.input[2]
                if len(node.input) > 2
                else self._added.get(node.output[0], ("", ""))[1]
            )
            if bias and (value := self._constant(bias)) is not None:
                held["bias"] = value
        tensors, dtypes = numbers(held)
        return Site(
            name=name,
            label=name or node.name or node.op_type,
            kind=kind,
            order=0,
            layer=node.op_type,
            before=Sketch.of(_tensor(before), axis),
            after=Sketch.of(_tensor(after), axis),
            tensors=tensors,
            dtypes=dtypes,
            settings=settings,
        )

    def _name(self, node: Any) -> str:
        """The module that a node's tensors are named after; exporters share equal tensors."""
        ends = dict(zip(node.input[1:5], HELD, strict=False))
        if node.op_type not in BATCH_NORM:
            ends = dict(zip(node.input[1:3], HELD, strict=False))
        for key in reversed(HELD):
            for name, own in ends.items():
                if own == key and name.endswith(f".{key}"):
                    return str(name.removesuffix(f".{key}"))
        # as torch's older exporter names nodes: /layer1/bn1/BatchNormalization
        path = node.name.strip("/").split("/")
        return ".".join(path[:-1]) if len(path) > 1 and path[-1] == node.op_type else ""

    def _is_constant(self, name: str) -> bool:
        return self._constant(name, only_ask=True) is not None

    def _constant(self, name: str, *, only_ask: bool = False) -> Tensor | None:
        while name in self._same and name not in self._constants:
            name = self._same[name]
        found = self._constants.get(name)
        if found is None and name in self._value_nodes:
            values = [a.t for a in self._value_nodes[name].attribute if a.name == "value"]
            found = values[0] if values else None
        if found is None:
            return None
        return torch.zeros(()) if only_ask else _tensor(self._helper.to_array(found))


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise MissingExtraError(
            f"an ONNX graph needs {name.partition('.')[0]}: pip install 'normscope[onnx]'"
        ) from problem


def _added_biases(nodes: Any, linear: list[Any], is_constant: Any) -> dict[str, tuple[str, str]]:
    """The outputs of products whose only use is an addition of a constant: sum and bias."""
    products = {node.output[0] for node in linear if node.op_type == "MatMul"}
    uses: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    found = {}
    for product in products:
        behind = uses.get(product, [])
        if len(behind) == 1 and behind[0].op_type == "Add":
            other = [name for name in behind[0].input if name != product]
            if len(other) == 1 and is_constant(other[0]):
                found[product] = (behind[0].output[0], other[0])
    return found


def _fed(wanted: Any, inputs: Inputs) -> dict[str, Any]:
    """The batch by the names and dtypes of the graph's inputs."""
    names = [i.name for i in wanted]
    given: dict[str, Any] = {}
    if inputs.kwargs and not inputs.args:
        given = {name: inputs.kwargs[name] for name in names if name in inputs.kwargs}
    else:
        tensors = [x for x in inputs.leaves() if isinstance(x, Tensor)]
        if len(tensors) == len(names):
            given = dict(zip(names, tensors, strict=True))
    if len(given) != len(names):
        raise InputError(
            f"the ONNX graph takes {len(names)} inputs ({', '.join(names)}); give as many "
            "tensors, or a mapping with these names"
        )
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": float}
    fed = {}
    for want in wanted:
        array = given[want.name].detach().cpu()
        array = array.float() if array.dtype is torch.bfloat16 else array
        values = array.numpy()
        kind = kinds.get(want.type)
        fed[want.name] = values.astype(kind) if kind and values.dtype.kind == "f" else values
    return fed


def _tensor(array: Any) -> Tensor:
    return (
        torch.from_numpy(np.array(array))
        if np.asarray(array).dtype.kind in "fiub"
        else torch.zeros(1)
    )
