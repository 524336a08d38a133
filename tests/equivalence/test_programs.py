"""ONNX graphs and quantised programs beside the module that they were made from."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from normscope import assert_parity, fold, parity
from normscope.errors import FileError, InputError, MissingExtraError
from tests.equivalence.nets import batch, names_of, norms_of, trained

quiet = pytest.mark.filterwarnings("ignore")


def _graph(net: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    return torch.onnx.export(net, (x,), dynamo=True, verbose=False, **options).model_proto


@quiet
@pytest.mark.parametrize("kind", ["resnet", "crepe"])
def test_onnx_of_the_same_network(kind: str, tmp_path: Path) -> None:
    net, x = trained(kind), batch(kind)
    graph = _graph(net, x)
    assert assert_parity(net, graph, x).forms == ("module", "onnx")
    onnx.save(graph, str(tmp_path / "net.onnx"))
    assert_parity(tmp_path / "net.onnx", net, x)
    plain = _graph(net, x, optimize=False)
    found = assert_parity(net, plain, x)
    assert [n.status for n in found.norms] == ["same"] * len(norms_of(net))
    assert [n.name for n in found.norms] == [n.other for n in found.norms] == names_of(net)
    assert_parity(net, _graph(fold(net).model, x), x)


@quiet
def test_differences_in_an_onnx_graph() -> None:
    net, x = trained("resnet"), batch("resnet")
    plain = _graph(net, x, optimize=False)
    nodes = [n for n in plain.graph.node if n.op_type == "BatchNormalization"]

    lost = onnx.ModelProto()
    lost.CopyFrom(plain)
    node = next(n for n in lost.graph.node if n.name == nodes[2].name)
    next(a for a in node.attribute if a.name == "epsilon").f = 1e-3
    found = parity(net, lost, x)
    assert (found.first.name, found.why) == (names_of(net)[2], "eps")

    other = trained("resnet")
    for key, change in (("running_var", 1.25), ("running_mean", 0.0)):
        changed = onnx.ModelProto()
        changed.CopyFrom(plain)
        name = f"{names_of(net)[1]}.{key}"
        tensor = next(t for t in changed.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor) * change
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        found = parity(net, changed, x)
        code = "variance_unbiased" if change else "overwritten"
        assert (found.first.name, found.why) == (names_of(net)[1], code)

    # the exporter fused the norm: its numbers are gone, the map is left
    norms_of(other)[1].eps = 1e-2
    found = parity(net, _graph(other, x), x)
    assert (found.first.name, found.why) == (names_of(net)[1], "eps")
    assert found.first.reasons[0].second == "0.01"


@quiet
def test_a_wrong_batch_for_an_onnx_graph(tmp_path: Path) -> None:
    net, x = trained("mlp"), batch("mlp")
    graph = _graph(net, x)
    with pytest.raises(InputError, match="takes 1 inputs"):
        parity(graph, graph, (x, x))
    assert_parity(graph, graph, {graph.graph.input[0].name: x})
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(FileError, match="is no ONNX graph"):
        parity(net, tmp_path / "text.onnx", x)


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r"normscope\[onnx\]"):
        parity(trained("mlp"), tmp_path / "net.onnx", batch("mlp"))


@quiet
def test_files_of_programs(tmp_path: Path) -> None:
    net, x = trained("mlp"), batch("mlp")
    torch.jit.trace(net, x).save(str(tmp_path / "net.ts"))
    assert assert_parity(net, tmp_path / "net.ts", x).forms[1] == "torchscript"
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    assert assert_parity(tmp_path / "net.pt2", net, x).forms[0] == "exported"
    (tmp_path / "bad.pt2").write_text("text")
    with pytest.raises(FileError, match="is no program"):
        parity(net, tmp_path / "bad.pt2", x)


@quiet
def test_prepared_and_converted_for_quantised_arithmetic() -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    net, x = trained("resnet"), batch("resnet")
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(net, (x,)).module(), quantizer)
    prepared(x)
    found = assert_parity(net, prepared, x)  # observers only; the norms are fused
    assert {n.status for n in found.norms} == {"fused"}
    found = parity(net, convert_pt2e(prepared), x)
    assert not found.ok
    assert found.why == "quantised"
