"""An ONNX graph as a form: its batch norms and linear nodes become outputs of the graph."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.equivalence.forms import FormKind, Inputs, Mode
from normscope.equivalence.sites import Collector, Run
from normscope.errors import FileError, InputError, MissingExtraError, ModelError
from normscope.files import read_bytes, shown
from normscope.probe.load import reason
from normscope.probe.operators import OperatorCall

NORM = "BatchNormalization"
AXES = {NORM: 1, "Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}  # of the channels
QUANTISING = ("QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger", "QLinearMatMul")
HELD = ("weight", "bias", "running_mean", "running_var")  # the inputs behind the first
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxForm:
    """An ONNX graph run by onnxruntime, without its optimisations."""

    kind: FormKind = "onnx"
    norms: Sequence[str] | None = None

    def __init__(self, subject: Any) -> None:
        """Take a path or a ModelProto; the graph is copied.

        Raises:
            MissingExtraError: onnx or onnxruntime is not installed.
            FileError: no ONNX graph.
        """
        self._runtime, onnx = _extra("onnxruntime"), _extra("onnx")
        self._array = _extra("onnx.numpy_helper").to_array
        try:
            self._model = onnx.ModelProto()
            if isinstance(subject, Path):
                read_bytes(subject, "ONNX file")
                self._model = onnx.load(str(subject))
            else:
                self._model.CopyFrom(subject)
            self._read(onnx)
        except FileError:
            raise
        except Exception as problem:
            raise FileError(
                f"{shown(str(subject))} is no ONNX graph ({reason(problem)}); export it again"
            ) from problem

    def _read(self, onnx: Any) -> None:
        """Find the layers, and make what they compute outputs of the graph."""
        graph = self._model.graph
        self._same = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity"}
        self._constants = {t.name: t for t in graph.initializer} | {
            node.output[0]: attribute.t
            for node in graph.node if node.op_type == "Constant"
            for attribute in node.attribute if attribute.name == "value"
        }  # fmt: skip
        self._nodes = [
            node
            for node in graph.node
            if node.op_type in AXES
            and node.domain in ("", "ai.onnx")
            # a product of two activations is no layer
            and (node.op_type == NORM or self._constant(node.input[1]) is not None)
        ]
        self._sums = self._added_biases(graph.node)
        self._quantised = any(node.op_type in QUANTISING for node in graph.node)
        self._own_outputs = len(graph.output)
        known = {o.name for o in (*graph.output, *graph.input, *graph.initializer)}
        wanted = [name for n in self._nodes for name in (n.input[0], self._result(n))]
        for name in dict.fromkeys(wanted):
            if name not in known:
                graph.output.append(onnx.ValueInfoProto(name=name))

    def run(self, inputs: Inputs, mode: Mode, *, noise: bool = False) -> Run:
        """See `Form`; noise is not made here."""
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = self._runtime.InferenceSession(
                self._model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # which prints on stdout, and tries the same once more
            )
            fed = _fed(session.get_inputs(), inputs)
            names = [output.name for output in session.get_outputs()]
            values = dict(zip(names, session.run(names, fed), strict=True)) | fed
            outputs = [_tensor(values[name]) for name in names[: self._own_outputs]]
            collector = Collector()
            for node in self._nodes:
                self._add(collector, node, values)
        except InputError:
            raise
        except Exception as problem:
            raise ModelError(
                f"onnxruntime cannot run the ONNX graph on these inputs: {reason(problem)}; give "
                "a batch of the shape and dtype it was exported for"
            ) from problem
        floating = [y for y in outputs if y.is_floating_point()]
        return Run(floating, collector.sites, quantised=self._quantised)

    def _add(self, collector: Collector, node: Any, values: Mapping[str, Any]) -> None:
        """Add the site of a node."""
        before, after = values.get(node.input[0]), values.get(self._result(node))
        if before is None or after is None or np.ndim(after) < 2:
            return
        attributes = {a.name: a for a in node.attribute}
        norm, settings = node.op_type == NORM, {}
        names = dict(zip(HELD if norm else HELD[:2], node.input[1:5], strict=False))
        if norm:
            eps = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
            momentum = attributes["momentum"].f if "momentum" in attributes else 0.9
            trains = "training_mode" in attributes and bool(attributes["training_mode"].i)
            settings = {"eps": eps, "momentum": 1 - momentum, "training": trains}
        elif node.output[0] in self._sums:
            names["bias"] = self._sums[node.output[0]][1]
        constants = {key: self._constant(name) for key, name in names.items()}
        held = {key: tensor for key, tensor in constants.items() if tensor is not None}
        axis = AXES[node.op_type]
        transposed = "transB" in attributes and attributes["transB"].i
        if axis < 0 and not transposed and "weight" in held and held["weight"].dim() == 2:
            held["weight"] = held["weight"].T
        kind, name = "norm" if norm else "linear", _name(node, names)
        x, y = _tensor(before), _tensor(after)
        collector.add(OperatorCall(kind, name, node.op_type, axis, x, y, held, settings))

    def _result(self, node: Any) -> str:
        """Return the output of a node, behind the sum with its bias where that is another node."""
        output = node.output[0]
        return self._sums[output][0] if output in self._sums else output

    def _constant(self, name: str) -> Tensor | None:
        while name in self._same and name not in self._constants:
            name = self._same[name]
        found = self._constants.get(name)
        return None if found is None else _tensor(self._array(found))

    def _added_biases(self, nodes: Any) -> dict[str, tuple[str, str]]:
        """Find the products whose only use is a sum with a constant: that sum and the bias."""
        found = {}
        for product in (n.output[0] for n in self._nodes if n.op_type == "MatMul"):
            uses = [node for node in nodes if product in node.input]
            if len(uses) == 1 and uses[0].op_type == "Add":
                other = [name for name in uses[0].input if name != product]
                if len(other) == 1 and self._constant(other[0]) is not None:
                    found[product] = (uses[0].output[0], other[0])
        return found


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise MissingExtraError(
            f"an ONNX graph needs {name.partition('.')[0]}: pip install 'normscope[onnx]'"
        ) from problem


def _name(node: Any, names: Mapping[str, str]) -> str:
    """Return the module that a node's tensors are named after; exporters share equal tensors."""
    for key in reversed(HELD):
        if names.get(key, "").endswith(f".{key}"):
            return names[key].removesuffix(f".{key}")
    # as torch's older exporter names nodes: /layer1/bn1/BatchNormalization
    path = node.name.strip("/").split("/")
    return ".".join(path[:-1]) if len(path) > 1 and path[-1] == node.op_type else ""


def _fed(wanted: Any, inputs: Inputs) -> dict[str, Any]:
    """Give the batch the names and dtypes of the graph's inputs."""
    names = [i.name for i in wanted]
    given = dict(inputs.kwargs)
    if not given or inputs.args:
        given = dict(zip(names, inputs.tensors, strict=len(names) == len(inputs.tensors)))
        given = given if len(names) == len(inputs.tensors) else {}
    if not given.keys() >= set(names):
        raise InputError(
            f"the ONNX graph takes {len(names)} inputs ({', '.join(names)}); give as many "
            "tensors, or a mapping with these names"
        )
    fed = {}
    for want in wanted:
        tensor = given[want.name].detach().cpu()
        values = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
        floating = values.dtype.kind == "f" and want.type in KINDS
        fed[want.name] = values.astype(KINDS[want.type]) if floating else values
    return fed


def _tensor(array: Any) -> Tensor:
    known = np.asarray(array).dtype.kind in "fiub"
    return torch.from_numpy(np.array(array)) if known else torch.zeros(1)
