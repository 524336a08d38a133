"""Measures that a stage has by name: against their definition, and shown wherever a layer is."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscope import lens
from normscope.lens import stage_measures
from normscope.records import Inspection
from normscope.report import html, inspection
from normscope.report.messages import catalogue


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    with torch.no_grad():
        net[0].weight[1:3] = net[0].weight[0]  # three channels say the same
    return net.eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(400, 6), torch.arange(400) % 2


def test_the_participation_ratio_is_that_of_the_eigenvalues(
    net: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    (layer,) = lens.inspect(net, [data]).layers
    for stage, values in (("input", net[0](data[0])), ("activated", net(data[0]))):
        eigenvalues = np.linalg.eigvalsh(np.cov(values.detach().double().numpy().T))
        (found,) = (s.more["participation"] for s in layer.stages if s.name == stage)
        assert found == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-5)
        assert 1 < found < 8
    constant = lens.inspect(nn.Sequential(nn.BatchNorm1d(6)), [(torch.ones(8, 6), data[1][:8])])
    assert math.isnan(constant.layers[0].stages[0].more["participation"])


def test_a_new_measure_is_one_function_and_its_message(
    net: nn.Module, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stage_measures.MEASURES, "total", lambda s, _: float(s.total.trace()))
    for key, text in (("", "total scatter"), (".how", "trace of the scatter")):
        monkeypatch.setitem(catalogue(), f"page.measure.total{key}", {"en": text, "zh": "总散度"})
    seen = lens.inspect(net, [data])
    again = Inspection.from_json(seen.to_json())
    assert again.layers == seen.layers
    wanted = float(net[0](data[0]).detach().var(0, correction=0).sum())
    (row,) = (r for r in seen.to_rows() if (r["stage"], r["measure"]) == ("input", "total"))
    assert row["value"] == pytest.approx(wanted, rel=1e-5)
    document = inspection.document(again)
    for text in (html.page(document, "en"), html.fragment(document, "en")):
        assert "total scatter" in text
        assert "trace of the scatter" in text
