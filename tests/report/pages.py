"""Records for the pages: measured where that is quick, made up where it would take training."""

import copy
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import normscope
from normscope import doctor, lens
from normscope.equivalence import compare_to_passport
from normscope.lens import compare
from normscope.lesson import lesson
from normscope.records import (
    Accuracy,
    Bench,
    Change,
    ChannelHistory,
    Comparison,
    Converted,
    Counts,
    Diagnosis,
    Difference,
    Epoch,
    Inspection,
    Left,
    Lesson,
    Member,
    Race,
    Repaired,
    Row,
    Run,
    RunConfig,
    Setting,
    Spread,
    StatisticsError,
    Sweep,
    Timing,
    Trace,
)
from normscope.records.claims import ClaimResult, Claims, Curve, Measured
from normscope.records.parity import Parity
from normscope.records.passport import Passport, PassportCheck
from normscope.report import (
    bench,
    conversion,
    diagnosis,
    difference,
    document_of,
    html,
    inspection,
)
from normscope.report import lesson as lesson_report
from normscope.report import run as run_report
from normscope.report.document import Document
from normscope.report.messages import Lang

HOSTILE = (
    "</script><script>alert(1)</script>",
    '" onmouseover=x',
    "{{7*7}}",
    "\u2028\ud800\x07<b>&amp;",
)
NORMS = ("batch", "none", "noaffine", "affine_only", "per_class")
REACHED = {"batch": 0.981, "none": 0.962, "noaffine": 0.979, "affine_only": 0.8, "per_class": 1.0}
PACE = {"batch": 2.0, "none": 5.0, "noaffine": 2.2, "affine_only": 6.0, "per_class": 0.6}
CHANCE = 0.1


@cache
def worked_lesson() -> Lesson:
    """The worked example."""
    return lesson()


@cache
def digits_inspection() -> Inspection:
    """The lens on a three-layer network that never trained, over the digits."""
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        widths = (64, 24, 24)
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            norm = normscope.BatchNorm1d(b, momentum=None)
            nn.init.normal_(norm.weight, 0.9, 0.3)
            nn.init.normal_(norm.bias, -0.2, 0.4)
            parts += [nn.Linear(a, b), norm, nn.ReLU()]
        model = nn.Sequential(*parts, nn.Linear(widths[-1], 10))
    with torch.no_grad():
        model.train()(x)
    batches = [(x[i : i + 300], y[i : i + 300]) for i in range(0, len(x), 300)]
    return lens.inspect(model.eval(), batches, model_name="mlp", data_name="digits")


def run_page(run: Run, lang: Lang = "en") -> str:
    """The page of a run."""
    return html.page(run_report.document(run), lang)


@cache
def faulty() -> tuple[Diagnosis, Repaired]:
    """A small network over the digits with statistics of other data, and its repair."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norms = (nn.BatchNorm1d(8), nn.BatchNorm1d(6))
        parts = (nn.Linear(64, 8), norms[0], nn.ReLU(), nn.Linear(8, 6), norms[1], nn.ReLU())
        model = nn.Sequential(*parts, nn.Linear(6, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        for i in range(0, 1200, 40):
            loss = nn.functional.cross_entropy(model(x[i : i + 40]), y[i : i + 40])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        for buffer, change in ((norms[0].running_mean, 2.0), (norms[1].running_var, 9.0)):
            assert buffer is not None
            buffer[:4] += change
    batches = [(x[i : i + 60], y[i : i + 60]) for i in range(1200, 1680, 60)]
    found = doctor.diagnose(model.eval(), batches, model_name="mlp", data_name="digits")
    return found, doctor.repair(model, found, batches).record


def converted() -> Converted:
    """A conversion of which a part was kept."""
    return Converted(
        model="net.py:make",
        to="batch",
        changed=(Change("features.denseblock3.norm1", "BatchNorm2d", "BatchNorm2d", "always"),),
        kept=(Left("4", "InstanceNorm2d", "it normalises within each sample in training"),),
        refused=(),
        comparisons=(Comparison("outputs", "eval", 3.3e-16, 1e-9),),
    )


def compared() -> Difference:
    """Two inspections, one of them with other class means."""
    first = digits_inspection()
    moved = tuple(replace(layer, class_mean=layer.class_mean + 0.5) for layer in first.layers)
    return compare(first, replace(first, model="another", layers=moved))


def made_up_bench() -> Bench:
    """A benchmark with a race of many peers, a pair, and accuracies."""
    groups = Setting(part="groups", shape=(64, 64, 28, 28), groups=64, threads=2)
    shapes = Setting(part="shapes", shape=(64, 256, 14, 14), threads=2)
    exact = Setting(part="accuracy", shape=(64, 64, 28, 28), layout="channels_last", threads=2)
    many = tuple(
        _timing(peer, 2.0**k)
        for k, peer in enumerate(("normscope", "normscope_one", "torch", "mask_loop"))
    )
    pair = (_timing("normscope", 1.0), _timing("torch", 1.3))
    errors = (
        StatisticsError(peer="normscope", mean=3e-8, var=2e-8),
        StatisticsError(peer="torch", mean=0.014, var=2.1),
    )
    copy = _spread(0.5)
    absent = {"flax": "it is not installed"}
    return Bench(
        environment={"normscope": "0.1.0", "torch": "2.13.0", "threads": "2"},
        complete=True,
        quick=False,
        checked=21,
        repeats=20,
        races=(
            Race(setting=groups, copy=copy, timings=many, absent=absent),
            Race(setting=shapes, copy=copy, timings=pair),
        ),
        accuracies=(Accuracy(setting=exact, ratio=100.0, errors=errors),),
    )


def _spread(median: float) -> Spread:
    return Spread(median=median, low=0.9 * median, high=1.2 * median, repeats=20)


def _timing(peer: str, milliseconds: float) -> Timing:
    return Timing(
        peer=peer,
        forward=_spread(0.4 * milliseconds),
        backward=_spread(0.6 * milliseconds),
        total=_spread(milliseconds),
        speed=1.3 / milliseconds,
        gb_per_s=80 / milliseconds,
        share=0.6,
        share_forward=0.62,
        share_backward=0.57,
        memory=None if peer == "mask_loop" else 25.8,
    )


def documents() -> dict[str, Document]:
    """One document of every kind of record that makes one."""
    found, repaired = faulty()
    different, _, mismatched = equivalences()
    return {
        "conversion": conversion.document(converted()),
        "diagnosis": diagnosis.document(found, repaired),
        "check": diagnosis.explanation("NS003"),
        "inspection": inspection.document(digits_inspection()),
        "difference": difference.document(compared()),
        "bench": bench.document(made_up_bench()),
        "lesson": lesson_report.document(worked_lesson()),
        "run": run_report.document(made_up_run(digits_inspection())),
        "parity": document_of(different),
        "passport": document_of(mismatched),
        "claims": document_of(made_up_claims()),
    }


def made_up_run(
    inspection: Inspection | None,
    norms: tuple[str, ...] = NORMS,
    seeds: int = 3,
    domains: tuple[str, ...] = (),
) -> Run:
    """A run whose curves look like those of training, with the inspection that is given."""
    rng = np.random.default_rng(0)
    epochs = 20
    members = [_member(norm, seed, epochs, rng, domains) for norm in norms for seed in range(seeds)]
    rates = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    return Run(
        config=RunConfig(
            data="digits",
            net="mlp",
            norms=norms,
            epochs=epochs,
            batch_size=64,
            lr=0.1,
            seed=0,
            seeds=seeds,
            domains=domains,
            sweep=rates,
            freeze_head="affine_only" in norms,
        ),
        complete=True,
        classes=tuple("0123456789"),
        train_size=1257,
        test_size=540,
        environment={"normscope": "0.1.0", "torch": "2.13.0", "threads": "2"},
        rows=tuple(_row([m for m in members if m.norm == norm], domains) for norm in norms),
        members=tuple(members),
        traces=tuple(_trace(n, f"norm{i}", rng) for n in norms[:2] for i in (1, 2, 3)),
        sweeps=tuple(_sweep(n, rates, rng) for n in norms if n not in ("per_class", "affine_only")),
        histories=tuple(
            made_up_history(norm, rng) for norm in norms if norm in ("batch", "affine_only")
        ),
        inspection=inspection,
    )


def made_up_history(norm: str, rng: np.random.Generator, epochs: int = 20) -> ChannelHistory:
    """A channel in which the even digits pass more and more often."""
    label = tuple(k for k in range(10) for _ in range(40))
    parts = np.array([1.0 if k % 2 == 0 else -1.0 for k in label])
    noise = rng.normal(size=len(label))
    x, passing, gamma, beta = [], [], [], []
    for t in range(epochs + 1):
        z = parts * (0.2 + 0.9 * t / epochs) + 0.5 * noise
        g, b = 1 + 0.5 * t / epochs, -0.3 * t / epochs
        x.append(tuple(round(float(v), 4) for v in -1.2 + 1.5 * z))
        gamma.append(g)
        beta.append(b)
        opens = (g * z + b > 0).reshape(10, 40).mean(1)
        passing.append(tuple(opens.tolist()))
    return ChannelHistory(
        norm=norm,
        seed=0,
        layer="norm2",
        channel=7,
        channels=48,
        eps=1e-5,
        classes=tuple(range(10)),
        label=label,
        epoch=tuple(range(epochs + 1)),
        x=tuple(x),
        gamma=tuple(gamma),
        beta=tuple(beta),
        running_mean=(-1.2,) * (epochs + 1),
        running_var=(2.25,) * (epochs + 1),
        passing=tuple(passing),
        information=tuple(0.03 * t for t in range(epochs + 1)),
        accuracy=tuple(CHANCE + (REACHED[norm] - CHANCE) * t / epochs for t in range(epochs + 1)),
    )


def _confusion(hits: int) -> Counts:
    """54 samples of each class, of which so many are predicted right."""
    return tuple(tuple(hits if j == k else (54 - hits) // 9 for j in range(10)) for k in range(10))


def _member(
    norm: str, seed: int, epochs: int, rng: np.random.Generator, domains: tuple[str, ...]
) -> Member:
    best, pace = REACHED.get(norm, 0.97), PACE.get(norm, 2.0)
    curve = []
    for epoch in range(1, epochs + 1):
        accuracy = best - 0.87 * math.exp(-epoch / pace) + rng.normal(0, 0.003)
        loss = 2.3 * math.exp(-epoch / pace) + 0.02 * math.exp(rng.normal(0, 0.2))
        curve.append(
            Epoch(
                epoch=epoch,
                train_loss=loss,
                test_loss=loss * 1.3,
                test_accuracy=min(1.0, accuracy),
            )
        )
    leaks = norm == "per_class"
    last = curve[-1].test_accuracy
    return Member(
        norm=norm,
        seed=seed,
        status="done",
        accuracy=last,
        leaks=leaks,
        accuracy_without_label=0.16 if leaks else None,
        accuracy_before=CHANCE,
        confusion=_confusion(54) if leaks else (),
        confusion_without_label=_confusion(9) if leaks else (),
        accuracy_by_domain={
            d: last - 0.02 * i + rng.normal(0, 0.01) for i, d in enumerate(domains)
        },
        epochs_to_95=int(3 * pace),
        parameters=13_258,
        learning=384 if norm == "affine_only" else 13_258,
        seconds=2.4,
        curve=tuple(curve),
    )


def _row(members: list[Member], domains: tuple[str, ...]) -> Row:
    accuracies = [m.accuracy for m in members]
    leaks = members[0].leaks
    spread = float(np.std(accuracies, ddof=1)) if len(members) > 1 else math.nan
    return Row(
        norm=members[0].norm,
        seeds=len(members),
        diverged=0,
        mean=float(np.mean(accuracies)),
        spread=spread,
        epochs_to_95=float(np.mean([m.epochs_to_95 for m in members])),
        lr_lowest=0.003,
        lr_highest=0.3 if members[0].norm == "none" else 3.0,
        leaks=leaks,
        without_label=0.16 if leaks else None,
        by_domain={d: float(np.mean([m.accuracy_by_domain[d] for m in members])) for d in domains},
        parameters=members[0].parameters,
        learning=members[0].learning,
        before=CHANCE,
        seconds=7.2,
    )


def _trace(norm: str, layer: str, rng: np.random.Generator) -> Trace:
    channels, steps = 12, tuple(range(0, 400, 10))
    paths = np.cumsum(rng.normal(0, 0.02, (2, len(steps), channels)), axis=1)
    has = norm != "none"

    def rows(
        values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, values.tolist()))

    calm = 0.4 if has else 1.0
    drift = (
        calm * (0.05 + 0.6 * np.exp(-np.arange(len(steps)) / 8)) * rng.uniform(0.7, 1.3, len(steps))
    )
    return Trace(
        norm=norm,
        layer=layer,
        step=steps,
        gamma=rows(1 + paths[0]) if has else tuple(() for _ in steps),
        beta=rows(paths[1]) if has else tuple(() for _ in steps),
        running_mean=rows(paths[0]) if has else tuple(() for _ in steps),
        running_var=rows(1 + paths[1] ** 2) if has else tuple(() for _ in steps),
        gradient=tuple(drift.tolist()),
        drift=(math.nan, *drift.tolist()[1:]),
        drift_after=(math.nan, *(drift / 2).tolist()[1:]),
    )


def _sweep(norm: str, rates: tuple[float, ...], rng: np.random.Generator) -> Sweep:
    highest = 0.3 if norm == "none" else 3.0
    accuracy = tuple(
        (0.97 - 0.03 * abs(math.log10(r / 0.1)) if r <= highest else 0.1) + rng.normal(0, 0.004)
        for r in rates
    )
    return Sweep(norm=norm, lr=rates, accuracy=accuracy, lowest=0.003, highest=highest)


@cache
def equivalences() -> tuple[Parity, Passport, PassportCheck]:
    """Two networks that differ in an eps; the passport of one, and the other beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
        x = torch.randn(16, 4)
    second = copy.deepcopy(first)
    second.get_submodule("1").eps = 1e-2  # type: ignore[assignment]
    own = normscope.passport(first, [x])
    mismatches = tuple(compare_to_passport(second, own))
    assert mismatches
    check = PassportCheck(subject="net", passport=own, mismatches=mismatches)
    return normscope.parity(first, second, x), own, check


@cache
def made_up_claims() -> Claims:
    """Published statements with made-up numbers: on two logarithms, with a band, as points."""
    line = Curve(name="with", x=(1, 2, 4), mean=(1, 0.5, 0.25), spread=(0, 0.1, 0.1))
    first = ClaimResult(
        name="residual_depth", source="De and Smith 2020", link="2002.10444",
        data="digits", verdict="agrees", numbers=(Measured(name="worst", mean=0.02, spread=0.01),),
        curves=(line,), log_x=True, log_y=True, seeds=3, seconds=2.0, torch="2.13.0", normscope="0.1.0",
    )  # fmt: skip
    gain = Measured(name="gain", mean=0.3, spread=0.1, percent=True)
    ratio = replace(gain, name="ratio", percent=False)
    plain = replace(first, log_x=False, log_y=False)
    points = replace(line, name="accuracy", points=True)
    return Claims(
        results=(
            first,
            replace(plain, name="learning_rates", verdict="no", log_x=True, numbers=(ratio,)),
            replace(plain, name="own_statistics", numbers=(gain,), curves=(points,)),
        )
    )
