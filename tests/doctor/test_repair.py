"""From finding to cause to repair: held-out samples decide, and everything can be undone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from normscope import FileError, InputError, ModelError
from normscope.doctor import diagnose, repair
from normscope.doctor.checks import CHECKS
from normscope.doctor.evidence import KEPT
from normscope.doctor.held_out import Evaluation, HeldOut
from normscope.doctor.remedies import REMEDIES, RepairContext, Unfit, settings, statistics
from normscope.experiment.data import load
from normscope.experiment.nets import build
from normscope.probe.batches import Loader
from normscope.probe.compare import Goal
from normscope.probe.load import read_weights
from normscope.records import Diagnosis, Repaired
from tests.doctor.patients import (
    accuracy,
    healthy,
    in_training,
    judges,
    network,
    norms,
    state,
    trained,
)


def stale() -> nn.Module:
    model = healthy()
    for norm in norms(model):
        norm.running_var *= 6
    return model


def test_the_cause_is_named_and_mended_and_can_be_undone() -> None:
    model, well = stale(), accuracy(healthy())
    before, ill = state(model), accuracy(model)
    found = diagnose(model, in_training())
    assert state(model) == before
    assert found.codes[0] == "NS003"
    closes = {cause.name: cause.closes for cause in found.causes}
    assert closes["stale"] == pytest.approx(closes["stale_var"], abs=0.02)
    assert closes["stale"] > 0.7 > 0.2 > closes["stale_mean"]
    done = repair(model, found, in_training(), held_out=judges())
    assert done.record.kept == ("recalibrate",)
    assert done.record.before.accuracy == pytest.approx(ill)
    assert done.record.after.accuracy == pytest.approx(accuracy(model))
    assert ill < 0.6 < well - 0.01 <= accuracy(model)
    assert state(done.undo()) == before


def test_causes_close_what_they_close_when_mended_alone() -> None:
    """The witness: outputs computed with plain torch, one layer's statistics replaced."""
    model = healthy()
    norms(model)[0].running_mean += norms(model)[0].running_var.sqrt()
    batches = in_training(629)
    found = diagnose(model, batches)
    part = {layer.name: layer for layer in found.by_layer}

    def outputs(train: bool, mean: Tensor | None = None) -> Tensor:
        import copy

        other = copy.deepcopy(model).train(train)
        if mean is not None:
            norms(other)[0].running_mean.copy_(mean)
        with torch.no_grad():
            return torch.cat([other(x).double() for x, _ in batches])

    reference, measured = outputs(True), outputs(False)
    x = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        mended = outputs(False, model[:2](x).mean(0))
    left = (mended - reference).pow(2).mean().sqrt() / (measured - reference).pow(2).mean().sqrt()
    assert part["2"].mean == pytest.approx(1 - float(left), abs=0.01)
    assert part["2"].mean > 0.5
    assert part["5"].mean < 0.05


def test_cold_statistics_are_mended_without_data() -> None:
    model = build("mlp", "batch", load("digits"), 0)
    for norm in norms(model):
        norm.momentum = 0.001
    trained(model, epochs=5, lr=0.02)
    cold = accuracy(model)
    found = diagnose(model)
    assert found.codes[0] == "NS002"
    with_data = diagnose(model, in_training())
    assert set(with_data.codes[:2]) == {"NS002", "NS003"}
    done = repair(model, found, force=True)
    assert done.record.kept == ("correct_cold",)
    closed_form = accuracy(model)
    done.undo()
    assert accuracy(model) == cold
    repair(model, with_data, in_training(), held_out=judges(), remedies=["recalibrate"])
    assert closed_form - cold >= 0.95 * (accuracy(model) - cold) > 0.05


def test_what_does_not_help_is_taken_back_unless_forced() -> None:
    model = healthy()
    before = state(model)
    found = diagnose(model, in_training())
    assert found.worst == "info"
    assert repair(model, found, in_training()).record.trials == ()
    broken = [(torch.randn_like(x) * 9, y) for x, y in in_training()]
    done = repair(model, found, broken, held_out=judges(), remedies=["recalibrate"])
    assert not done.record.trials[0].helps
    assert done.record.kept == ()
    assert state(model) == before
    done = repair(model, found, broken, held_out=judges(), remedies=["recalibrate"], force=True)
    assert done.record.kept == ("recalibrate",)
    assert state(model) != before
    assert state(done.undo()) == before


def test_a_dry_run_changes_nothing() -> None:
    model = stale()
    before = state(model)
    done = repair(model, diagnose(model, in_training()), in_training(), dry_run=True)
    assert done.record.kept == ("recalibrate",)
    assert done.record.after.accuracy > done.record.before.accuracy + 0.2
    assert state(model) == before


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("repair_channels", lambda m: norms(m)[0].running_var.__setitem__(2, torch.nan)),
        ("eval_mode", lambda m: norms(m)[1].train()),
        ("momentum", lambda m: norms(m)[0].__dict__.update(momentum=0.99)),
        ("choose_eps", lambda m: [n.__dict__.update(eps=5.0) for n in norms(m)]),
        ("freeze", lambda m: norms(m)[0].__dict__.update(track_running_stats=False)),
    ],
)
def test_every_illness_finds_its_remedy_and_undo_gives_all_back(name: str, make: Any) -> None:
    model = healthy()
    make(model)
    before = state(model), [type(m) for m in model.modules()], [m.training for m in model.modules()]
    settings = [(n.momentum, n.eps, n.track_running_stats) for n in norms(model)]
    found = diagnose(model, in_training())
    done = repair(model, found, in_training(), held_out=judges())
    assert name in done.record.kept
    assert accuracy(model) > accuracy(healthy()) - 0.01
    assert any(trial.layers for trial in done.record.trials if trial.remedy == name)
    if name == "eval_mode":
        assert not any(module.training for module in model.modules())
    done.undo()
    assert state(model) == before[0]
    assert [type(m) for m in model.modules()] == before[1]
    assert [m.training for m in model.modules()] == before[2]
    assert [(n.momentum, n.eps, n.track_running_stats) for n in norms(model)] == settings


def test_useless_biases_fold_exactly() -> None:
    model = healthy()
    x = judges()[0][0]
    with torch.no_grad():
        before, train_before = model(x), healthy().train()(x)
        found = diagnose(model, in_training())
        done = repair(model, found, in_training(), remedies=["fold_bias"])
        assert done.record.kept == ("fold_bias",)
        assert model[1].bias is None
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.train()(x), train_before, rtol=1e-4, atol=1e-4)
    assert done.undo()[1].bias is not None


def test_domains_get_statistics_of_their_own() -> None:
    torch.manual_seed(0)
    model = healthy()
    batches = [
        (x + 3 * (i % 2), y, torch.full_like(y, i % 2)) for i, (x, y) in enumerate(in_training())
    ]
    tests = [(x + 3 * (i % 2), y, torch.full_like(y, i % 2)) for i, (x, y) in enumerate(judges())]
    found = diagnose(model, batches)
    assert "NS021" in found.codes[:2]
    done = repair(model, found, batches, held_out=tests)
    assert done.record.kept[0] == "domains"
    assert done.record.after.accuracy > 0.9 > done.record.before.accuracy


def test_batches_of_two_get_advice() -> None:
    found = diagnose(healthy(), in_training(2)[:80])
    done = repair(healthy(), found, in_training(2)[:80])
    assert "NS007" in done.record.advice


class Broken:
    def __init__(self, good: int) -> None:
        self.good = good

    def __iter__(self) -> Iterator[Any]:
        yield from in_training()[: self.good]
        raise RuntimeError("worker died")


def test_what_did_not_help_is_tried_again_after_what_did(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def half(patient: RepairContext, layers: tuple[str, ...]) -> tuple[str, ...]:
        done.append(1)
        for norm in norms(patient.model):
            norm.running_var /= 3
        return ()

    def rest(patient: RepairContext, layers: tuple[str, ...]) -> tuple[str, ...]:
        for norm in norms(patient.model):
            norm.running_var /= 2 if done else 1
        return ()

    monkeypatch.setitem(REMEDIES, "recalibrate", (rest,))
    monkeypatch.setitem(REMEDIES, "choose_eps", (half,))
    monkeypatch.setitem(REMEDIES, "momentum", (lambda patient, layers: (),))
    model, names = stale(), ["recalibrate", "choose_eps", "momentum"]
    found = diagnose(model, in_training())
    record = repair(model, found, in_training(), held_out=judges(), remedies=names).record
    assert [t.remedy for t in record.trials] == [*names, "recalibrate"]
    assert record.kept == ("choose_eps", "momentum", "recalibrate")
    assert accuracy(model) == accuracy(healthy())


def test_a_layer_left_in_train_is_mended_unless_that_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(patient: RepairContext, layers: tuple[str, ...]) -> tuple[str, ...]:
        norms(patient.model)[0].running_var *= 20
        return ()

    model = healthy()
    for remedy, kept in ((lambda patient, layers: (), True), (worse, False)):
        monkeypatch.setitem(REMEDIES, "eval_mode", (remedy,))
        found = diagnose(model, in_training())
        done = repair(model, found, in_training(), held_out=judges(), remedies=["eval_mode"])
        assert done.record.trials[0].kept == kept


def test_ctrl_c_keeps_what_was_judged_and_the_rest_can_be_tried_later() -> None:
    model = stale()
    before, found = state(model), diagnose(model, in_training())
    both = ["recalibrate", "choose_eps"]
    heard: list[tuple[int, int, str]]
    judge: int

    def stop(done: int, total: int, name: str) -> None:
        heard.append((done, total, name))
        if len(heard) == judge:
            raise KeyboardInterrupt

    def attempt() -> Any:
        return repair(
            model, found, in_training(), held_out=judges(), remedies=both, on_progress=stop
        )

    heard, judge = [], 1
    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert state(model) == before
    heard, judge = [], 2
    done = attempt()
    assert heard == [(0, 2, both[0]), (1, 2, both[1])]
    assert not done.record.complete
    assert done.record.kept == ("recalibrate",)
    assert done.record.after.accuracy == pytest.approx(accuracy(model))
    assert state(done.undo()) == before
    assert repair(model, found, in_training(), held_out=judges()).record.complete


def test_ctrl_c_after_a_remedy_was_applied_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, judged = stale(), []
    before, found = state(model), diagnose(model, in_training())
    evaluate = HeldOut.evaluate

    def interrupted(self: HeldOut, model: nn.Module) -> Evaluation:
        judged.append(state(model) != before)
        if len(judged) == 4:  # what adapting costs on data as in training
            raise KeyboardInterrupt
        return evaluate(self, model)

    monkeypatch.setattr(HeldOut, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair(
            model, found, in_training(), live=in_training(), held_out=judges(),
            remedies=["adapt"], force=True,
        )  # fmt: skip
    assert judged == [False, False, True, True]
    assert state(model) == before


def test_a_loader_that_raises_loses_nothing() -> None:
    model = stale()
    before = state(model)
    with pytest.raises(InputError, match="failed after 3 batches: RuntimeError: worker died"):
        diagnose(model, Broken(3))
    with pytest.raises(InputError, match="worker died"):
        repair(model, diagnose(model, in_training()), Broken(3))
    assert state(model) == before
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_empty_single_and_one_class_loaders() -> None:
    with pytest.raises(InputError, match="gave no sample"):
        diagnose(stale(), [])
    one = diagnose(stale(), in_training(2000))
    assert "doctor.skip.one_batch" in {s.reason for s in one.skipped}
    assert one.codes[0] == "NS003"
    x, y = in_training(2000)[0]
    same = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x[y == 0].split(64)]
    record = diagnose(stale(), same)
    assert "doctor.skip.one_class" in {s.reason for s in record.skipped}


def test_without_labels_the_gap_decides() -> None:
    model = stale()
    batches = [x for x, _ in in_training()]
    found = diagnose(model, batches)
    assert found.codes[0] == "NS003"
    done = repair(model, found, batches)
    assert done.record.kept == ("recalibrate",)
    assert done.record.after.gap < 0.5 * done.record.before.gap


def test_checkpoints_that_are_cut_foreign_negative_half_or_huge(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(healthy().state_dict(), whole)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(FileError, match="truncated or damaged"):
        diagnose(cut)
    with pytest.raises(ModelError, match="no running_mean with a running_var"):
        diagnose(nn.Linear(3, 3).state_dict())
    with pytest.raises(ModelError, match=r"both must be \(C,\)"):
        diagnose({"a.running_mean": torch.zeros(3), "a.running_var": torch.ones(4)})
    half = diagnose(
        {k: v.half() if v.is_floating_point() else v for k, v in healthy().state_dict().items()}
    )
    assert "NS023" in half.codes
    many: dict[str, Tensor] = {}
    for i in range(10_000):
        many |= {
            f"{i}.running_mean": torch.randn(4), f"{i}.running_var": torch.rand(4) + 0.5,
            f"{i}.num_batches_tracked": torch.tensor(500),
        }  # fmt: skip
    many["77.running_var"][1] = -1
    record = diagnose(many)
    assert record.layers == 10_000
    assert [(f.code, f.layer) for f in record.findings] == [("NS009", "77")]


def test_records_go_through_json_and_the_checkpoint_says_what_was_done(tmp_path: Path) -> None:
    model = stale()
    found = diagnose(model, in_training(), model_name="mine", data_name="digits")
    assert Diagnosis.from_json(found.to_json()).codes == found.codes
    done = repair(model, found, in_training())
    done.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        record = Repaired.from_json(file.metadata()["normscope.repair"])
    assert record.kept == ("recalibrate",)
    loaded = read_weights(tmp_path / "new.safetensors")
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


def test_sarif_and_junit_hold_every_check(tmp_path: Path) -> None:
    from xml.etree import ElementTree as ET

    from normscope.report import machine

    model = stale()
    record = diagnose(model, in_training(), model_name="<&>")
    document = json.loads(machine.sarif(record, "en"))["runs"][0]
    assert len(document["tool"]["driver"]["rules"]) == len(CHECKS)
    assert {r["ruleId"] for r in document["results"]} == set(record.codes)
    suite = ET.fromstring(machine.junit(record, "zh"))
    assert len(suite) == len(CHECKS)
    failed = [case.get("name", "")[:5] for case in suite if case.find("failure") is not None]
    assert "NS003" in failed
    assert "NS012" not in failed


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_text_and_page_show_verdict_cause_and_repair(lang: Any) -> None:
    import io

    from rich.console import Console

    from normscope.report import html, terminal
    from normscope.report.diagnosis import document

    model = stale()
    found = diagnose(model, in_training(), model_name="<script>")
    done = repair(model, found, in_training())
    console = Console(file=io.StringIO(), width=72)
    shown = document(found, done.record)
    terminal.show(shown, lang, console)
    text = console.file.getvalue()
    assert "NS003" in text
    name = {"en": "recalibrate", "zh": "重新校准"}[lang]
    lines = [line.removeprefix("▸ ") for line in text.splitlines()]
    assert any(line.startswith(name) for line in lines), "the table keeps it whole"
    assert "{" not in text
    page = html.page(shown, lang)
    assert "<script>" not in page.split("<main")[1].split("</main>")[0]
    assert "NS003" in page
    drawn = re.findall(r'<figure class="drawing">.*?</figure>', page, re.DOTALL)
    assert len(drawn) == len(found.channels) > 0
    for figure in drawn:  # the stored curve, and the bar below it
        assert len(re.findall(r'stroke="var\(--c2\)"[^>]*stroke-dasharray', figure)) == 2
    assert page.count('class="bar-before"') == page.count('class="bar-now"') - len(
        found.causes
    ) - len(found.by_layer)


def test_of_the_variants_of_a_remedy_a_later_one_must_be_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scaled(place: int, factor: float) -> Any:
        def variant(patient: RepairContext, layers: tuple[str, ...]) -> tuple[str, ...]:
            for norm in norms(patient.model):
                norm.running_var *= factor
            return (str(place),)

        return variant

    third, right = 1 / 3, 1 / 6
    found = diagnose(stale(), in_training())
    for factors, kept in (
        ((third, right), "1"),
        ((right, third), "0"),
        ((right, right, right), "0"),
        ((third, right, third), "1"),
    ):
        variants = tuple(scaled(*pair) for pair in enumerate(factors))
        monkeypatch.setitem(REMEDIES, "recalibrate", variants)
        done = repair(stale(), found, in_training(), held_out=judges(), remedies=["recalibrate"])
        assert done.record.trials[0].layers == (kept,)
        assert accuracy(done.model) == accuracy(healthy())


def test_advice_is_what_no_remedy_is_there_for() -> None:
    model = stale()
    found = diagnose(model, in_training())
    assert {"NS003", "NS004"} <= {f.code for f in found.findings if f.severity != "info"}
    done = repair(model, found, in_training(), held_out=judges(), remedies=["copy_buffers"])
    assert done.record.kept == ()
    assert done.record.advice == (), "there is a remedy for it, and a symptom goes with its cause"


def test_a_remedy_that_fails_takes_back_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(patient: RepairContext, layers: tuple[str, ...]) -> tuple[str, ...]:
        raise InputError("the disk is gone")

    monkeypatch.setitem(REMEDIES, "momentum", (fails,))
    model, heard = stale(), []
    before, found = state(model), diagnose(model, in_training())
    with pytest.raises(InputError, match="the disk is gone"):
        repair(
            model, found, in_training(), held_out=judges(), remedies=["recalibrate", "momentum"],
            on_progress=lambda done, of, name: heard.append(name),
        )  # fmt: skip
    assert heard == ["recalibrate", "momentum"]
    assert state(model) == before


def test_layers_that_are_frozen_by_half_are_frozen_with_the_statistics_of_the_data() -> None:
    model = healthy()
    norms(model)[0].track_running_stats = False
    norms(model)[0].running_var *= 9
    found = diagnose(model, in_training())
    done = repair(model, found, in_training(), held_out=judges(), remedies=["freeze"])
    assert done.record.kept == ("freeze",)
    assert done.record.trials[0].layers == ("2",)
    assert type(model[2]).__name__ == "FrozenBatchNorm1d"
    assert accuracy(model) > accuracy(healthy()) - 0.01


def test_domains_are_measured_anew_after_what_was_measured_together() -> None:
    x = [part for part, _ in in_training()]
    ids = [torch.full((len(part),), i % 2) for i, part in enumerate(x)]
    batches = [(part + 3 * int(i[0]), i, i) for part, i in zip(x, ids, strict=True)]
    model = healthy()
    loader = Loader(batches, model)
    context = RepairContext(model, loader, HeldOut(Goal(), loader))
    statistics.by_batch(context, ())  # of both together
    assert settings.domains(context, ()) == ("2", "5")
    layer = norms(model)[0]
    with torch.no_grad():
        entry = [torch.cat([model[:2](b[0]) for b in batches[k::2]]) for k in (0, 1)]
    for k in (0, 1):
        torch.testing.assert_close(layer.running_mean[k], entry[k].mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.running_var[k], entry[k].var(0), rtol=1e-3, atol=1e-4)


def test_statistics_one_after_the_other_are_those_that_eval_then_sees() -> None:
    model = stale()
    loader = Loader(in_training(), model)
    context = RepairContext(model, loader, HeldOut(Goal(), loader))
    assert statistics.sequential(context, ()) == ("2", "5")
    with torch.no_grad():
        for end, norm in zip((2, 5), norms(model), strict=True):
            entry = torch.cat([model[:end](x) for x, _ in in_training()])
            torch.testing.assert_close(norm.running_mean, entry.mean(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(norm.running_var, entry.var(0), rtol=1e-3, atol=1e-4)


def test_settings_are_chosen_on_enough_of_the_batches_that_a_remedy_may_read() -> None:
    batches = in_training()
    loader = Loader(batches, healthy())
    context = RepairContext(healthy(), loader, HeldOut(Goal(), loader))
    kept = [batch.size for batch in context.chooser().batches]
    assert sum(kept[:-1]) < KEPT <= sum(kept) < sum(len(x) for x, _ in batches)
    loader = Loader(batches[:3], healthy())
    context = RepairContext(healthy(), loader, HeldOut(Goal(), loader))
    assert len(context.chooser().batches) == 3


def test_statistics_with_dropout_are_for_models_that_have_some() -> None:
    def context(model: nn.Module) -> RepairContext:
        loader = Loader(in_training(), model)
        return RepairContext(model, loader, HeldOut(Goal(), loader))

    with pytest.raises(Unfit, match="the model has no dropout"):
        statistics.as_in_training(context(healthy()), ())
    spreads = []
    for measure in (statistics.by_batch, statistics.as_in_training):
        torch.manual_seed(0)
        model = network(dropout=0.5).eval()
        assert measure(context(model), ()) == ("2", "6")
        spreads.append(norms(model)[1].running_var.mean())
    assert spreads[1] > 1.3 * spreads[0], "what dropout adds"


def test_statistics_of_named_layers_leave_the_others_and_are_measured_behind_them() -> None:
    model = stale()
    loader = Loader(in_training(), model)
    context = RepairContext(model, loader, HeldOut(Goal(), loader))
    first = {name: value.clone() for name, value in norms(model)[0].state_dict().items()}
    assert statistics.sequential(context, ("5",)) == ("5",)
    assert all(torch.equal(first[n], v) for n, v in norms(model)[0].state_dict().items())
    with torch.no_grad():
        entry = torch.cat([model[:5](x) for x, _ in in_training()])
    torch.testing.assert_close(norms(model)[1].running_mean, entry.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_statistics_that_a_momentum_kept_out_are_measured_as_in_training(dropout: float) -> None:
    torch.manual_seed(0)
    model = network(dropout).eval()
    norms(model)[0].momentum = 0.99
    names = ("2", "6" if dropout else "5")
    loader = Loader(in_training(), model)
    context = RepairContext(model, loader, HeldOut(Goal(), loader))
    assert settings.momentum_and_statistics(context, names[:1]) == names[:1]
    assert norms(model)[0].momentum == pytest.approx(0.01)
    behind = context.measured(dropout=bool(dropout))[names[1]][0].total()
    torch.testing.assert_close(norms(model)[1].running_mean.double(), behind.mean)


def test_of_variants_that_change_nothing_the_first_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(name: str) -> Any:
        return lambda patient, layers: (name,)

    monkeypatch.setitem(REMEDIES, "momentum", (harmless("first"), harmless("second")))
    found = diagnose(healthy())
    done = repair(healthy(), found, in_training()[:4], remedies=["momentum"])
    (trial,) = done.record.trials
    assert (trial.layers, trial.kept, trial.helps) == (("first",), True, True)
