"""Every check on a case it must name and on a healthy one, and what explains it."""

import inspect
import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normscope.doctor import diagnose
from normscope.doctor.checks import CHECKS
from normscope.records import Diagnosis
from normscope.report.messages import catalogue
from tests.doctor.patients import healthy, in_training, network, norms


def asked(code: str, model: nn.Module, batches: Any = None, **more: Any) -> Diagnosis:
    return diagnose(model, batches, select=[code], **more)


def changed(change: Callable[[list[Any]], object]) -> nn.Module:
    model = healthy()
    with torch.no_grad():
        change(norms(model))
    return model


def _half(found: list[Any]) -> None:
    found[0].running_var = found[0].running_var.half()
    found[0].running_mean = found[0].running_mean.half()


DATA_FREE: dict[str, Callable[[list[Any]], object]] = {
    "NS001": lambda n: n[1].train(),
    "NS002": lambda n: n[0].reset_running_stats(),
    "NS005": lambda n: setattr(n[0], "momentum", 0.99),
    "NS006": lambda n: setattr(n[0], "eps", 1.0),
    "NS009": lambda n: n[1].running_var.__setitem__(3, -0.1),
    "NS010": lambda n: n[1].weight.__setitem__(slice(0, 4), 0),
    "NS011": lambda n: n[1].bias.__setitem__(slice(0, 8), -9.0),
    "NS014": lambda n: setattr(n[0], "track_running_stats", False),
    "NS023": _half,
    "NS027": lambda n: n[1].num_batches_tracked.mul_(2),
}


@pytest.mark.parametrize("code", DATA_FREE)
def test_checks_without_data_name_the_layer_and_pass_on_a_healthy_model(code: str) -> None:
    well = asked(code, healthy())
    if code == "NS027":  # without the optimizer nobody knows that all layers did not count twice
        assert [s.reason for s in well.skipped] == ["doctor.skip.steps"]
    else:
        assert well.passed == (code,)
    found = asked(code, changed(DATA_FREE[code])).findings
    layer = "5" if code in ("NS001", "NS009", "NS010", "NS011", "NS027") else "2"
    assert {(f.code, f.layer) for f in found} == {(code, layer)} or code == "NS002"
    assert found[0].layer == layer


def test_a_checkpoint_alone_is_enough_for_the_five_keys() -> None:
    model = changed(lambda n: n[1].running_mean.__setitem__(7, torch.nan))
    record = diagnose(model.state_dict())
    assert record.layers == 2
    assert [(f.code, f.layer, f.channels) for f in record.findings] == [("NS009", "5", (7,))]
    skipped = {s.code: s.reason for s in record.skipped}
    assert skipped["NS003"] == skipped["NS001"] == "doctor.skip.model"
    assert "NS002" in record.passed


@pytest.mark.parametrize(("momentum", "tracked"), [(0.1, 20), (0.01, 100)])
def test_the_share_of_the_start_is_that_of_a_real_running_average(
    momentum: float, tracked: int
) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(3, momentum=momentum)
    for _ in range(tracked):
        layer(torch.randn(512, 3) * 2 + 5)
    model = nn.Sequential(nn.Linear(1, 1), layer, nn.Linear(1, 1)).eval()
    (finding,) = asked("NS002", model).findings
    assert finding.measured == pytest.approx((1 - momentum) ** tracked)
    from normscope.doctor.state import of_model

    corrected = of_model(model)[0].corrected()
    assert corrected is not None
    torch.testing.assert_close(corrected[0], torch.full((3,), 5.0).double(), rtol=0.02, atol=0.05)
    torch.testing.assert_close(corrected[1], torch.full((3,), 4.0).double(), rtol=0.06, atol=0.05)


def test_a_variance_below_the_share_of_the_start_refutes_the_formula() -> None:
    layer = nn.BatchNorm1d(2)
    layer.running_var.fill_(0.05)
    layer.running_mean.fill_(1)
    layer.num_batches_tracked.fill_(10)  # a start of 1 would have left 0.35
    assert asked("NS002", nn.Sequential(layer).eval()).passed == ("NS002",)


def test_stale_statistics_are_measured_in_standard_deviations() -> None:
    model = changed(lambda n: n[0].running_mean.add_(2 * n[0].running_var.sqrt()))
    (finding,) = asked("NS003", model, in_training()).findings
    assert (finding.layer, finding.severity) == ("2", "error")
    assert finding.measured == pytest.approx(2, rel=0.1)
    assert float(finding.facts["shift"]) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("code", ["NS003", "NS004", "NS007", "NS008", "NS024", "NS026"])
def test_checks_with_data_pass_on_a_healthy_model(code: str) -> None:
    assert asked(code, healthy(), in_training()).passed == (code,)


def test_small_batches_and_sorted_batches_are_named() -> None:
    small = asked("NS007", healthy(), in_training(2)).findings[0]
    assert (small.severity, small.measured) == ("error", 2)
    ordered = asked("NS008", healthy(), in_training(64, "sorted")).findings[0]
    assert ordered.severity == "error"
    assert ordered.measured > 0.7


def test_classes_at_fixed_places_of_the_batch_are_named() -> None:
    batches = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 4) for _ in range(6)]
    (finding,) = asked("NS008", healthy(), batches).findings
    assert finding.facts["kind"] == "places"
    assert finding.measured == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_images_count_with_their_independent_positions(size: int) -> None:
    """Whatever the size of the batches: an image is not compared with its own batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(32, 2)).eval()
    noise = torch.randn(400, 2, 16)
    flat = torch.randn(400, 2, 1).expand(400, 2, 16) + 1e-3 * noise
    for x, independent in ((noise, 16), (flat, 1)):
        m = independent * size
        found = asked("NS007", net, list(x.split(size)), thresholds={"NS007": (1e9, 4)}).findings
        assert found[0].measured == pytest.approx(m, rel=0.15)
        assert found[0].facts["kind"] == ("alone" if size == 1 else "small")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        y: Tensor = self.head(self.norm(x) + self.norm(5 * x + 3))
        return y


def test_a_layer_on_different_inputs_is_named() -> None:
    assert asked("NS017", Twice().eval(), in_training()).codes == ("NS017",)


def test_dropout_is_named_where_its_variance_was_stored() -> None:
    torch.manual_seed(0)
    model = network(dropout=0.7).train()
    for _ in range(4):
        for x, _ in in_training():
            model(x)
    found = asked("NS013", model.eval(), in_training()).findings
    assert [f.layer for f in found] == ["6"]
    assert found[0].measured < 0.8
    clean = healthy()
    assert asked("NS013", clean, in_training()).skipped[0].reason == "doctor.skip.dropout"


def test_frozen_by_half_is_named_and_a_model_for_inference_is_not() -> None:
    model = healthy()
    norms(model)[0].requires_grad_(False)
    norms(model)[0].train()
    assert asked("NS014", model.train()).findings[0].layer == "2"
    assert asked("NS014", healthy().requires_grad_(False).eval()).passed == ("NS014",)


def test_averages_need_their_own_statistics() -> None:
    average = torch.optim.swa_utils.AveragedModel(healthy()).eval()
    assert diagnose(average.state_dict(), select=["NS015"]).codes == ("NS015",)
    assert asked("NS015", average, in_training()).passed == ("NS015",)
    norms(average)[0].running_mean += 5
    assert asked("NS015", average, in_training()).findings[0].severity == "error"


def test_weight_decay_and_accumulation_are_asked_for() -> None:
    model = healthy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    assert asked("NS016", model, optimizer=optimizer).codes == ("NS016",)
    assert asked("NS016", model).skipped[0].reason == "doctor.skip.optimizer"
    assert asked("NS019", model, accumulate=4).codes == ("NS019",)


def test_padding_of_sequences_is_counted() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4, 10)
    x[:, :, 6:] = 0
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3)).eval()
    (finding,) = asked("NS020", model, [x[:10], x[10:]]).findings
    assert finding.measured == pytest.approx(0.3)  # the first of the run may be data
    assert asked("NS020", model, [torch.randn(20, 4, 10)]).passed == ("NS020",)


def test_domains_that_shift_more_than_classes_are_named() -> None:
    torch.manual_seed(0)
    x, y, ids = torch.randn(120, 4), torch.arange(120) % 3, torch.arange(120) % 2
    x = x + 4 * ids[:, None]
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    batches = list(zip(x.split(40), y.split(40), ids.split(40), strict=True))
    assert asked("NS021", model, batches).codes == ("NS021",)
    alike = [(a - 4 * c[:, None], b, c) for a, b, c in batches]
    assert asked("NS021", model, alike).passed == ("NS021",)


def test_drift_names_the_first_layer_that_is_off() -> None:
    live = [(3 * x + 2, y) for x, y in in_training()]
    found = asked("NS022", healthy(), in_training(), live=live)
    (finding,) = found.findings
    assert found.verdict.warns == "", "other statistics can help: weights have not adapted to these"
    assert (finding.layer, finding.severity) == ("2", "error")
    assert asked("NS022", healthy(), in_training(), live=in_training()).passed == ("NS022",)


def test_an_output_that_depends_on_its_batch_is_named() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(64), nn.BatchNorm1d(64, track_running_stats=False)
    ).eval()
    (finding,) = asked("NS026", model, in_training()).findings
    assert (finding.layer, finding.severity, finding.facts["kind"]) == ("2", "error", "norm")
    assert asked("NS025", model).codes == ("NS025",)


def test_useless_biases_are_counted() -> None:
    (finding,) = asked("NS012", healthy()).findings
    assert finding.facts["count"] == "64"


def test_thresholds_can_be_set_and_codes_are_checked() -> None:
    from normscope import InputError

    strict = {"NS007": (100.0, 1.0)}
    assert asked("NS007", healthy(), in_training(), thresholds=strict).findings
    with pytest.raises(InputError, match="there is no check 'NS9'; there are NS001"):
        diagnose(healthy(), select=["NS9"])


def test_codes_are_whole_and_explained_in_both_languages() -> None:
    assert list(CHECKS) == [f"NS{i:03}" for i in range(1, len(CHECKS) + 1)]
    messages = catalogue()
    for code, check in CHECKS.items():
        assert f"doctor.{code}.title" in messages, f"doctor.json has no doctor.{code}"
        assert check.__doc__ == messages[f"doctor.{code}.title"]["en"] + "."
        assert len(messages[f"doctor.{code}.explain"]["en"]) > 100
        assert len(messages[f"doctor.{code}.explain"]["zh"]) > 40
        assert messages[f"doctor.{code}.source"]["en"] == check.source
        assert len(inspect.getsource(check).splitlines()) < 80
    for key, text in messages.items():
        if key.startswith("doctor."):
            fields = [{f for _, f, _, _ in string.Formatter().parse(t) if f} for t in text.values()]
            assert fields[0] == fields[1], key
