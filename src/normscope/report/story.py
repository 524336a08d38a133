"""Which sentence the numbers of a lesson call for, in both languages."""

import math
from collections.abc import Callable
from itertools import combinations

from normscope.records import ClassValues, Learning, Lesson, Recovery, Stage
from normscope.report.bilingual import Text, said
from normscope.report.format import number as number
from normscope.report.format import percent as percent

Values = dict[str, object]  # of the placeholders

NAMED_SHARES = 4  # up to so many classes each share is named; beyond, the smallest and largest


def title(lesson: Lesson, stage: Stage) -> Text:
    """The heading of a stage."""
    return said(f"lesson.{stage.name}.title", starts=len(lesson.recoveries[0].learning))


def sentence(lesson: Lesson, stage: Stage) -> Text:
    """What a stage shows, with its numbers; which sentence it is depends on them."""
    variant, values = _VARIANTS[stage.name](lesson, stage)
    common = {"hits": hits(stage), "rule": rule(lesson), "eta2": eta2(stage)}
    return said(f"lesson.{stage.name}.{variant}", **(common | values))


def verdict(lesson: Lesson) -> Text:
    """The answer in three sentences."""
    return said(
        "lesson.verdict",
        rule=rule(lesson),
        before=hits(by_name(lesson, "input")),
        joint=hits(by_name(lesson, "joint")),
        eta2=eta2(by_name(lesson, "input")),
        own_eta2=eta2(by_name(lesson, "standardised_per_class")),
    )


def lead(lesson: Lesson) -> Text:
    """The answer in short, above the picture that shows it."""
    before, joint = (hits(by_name(lesson, name)) for name in ("input", "joint"))
    return said("lesson.lead", rule=rule(lesson), before=before, joint=joint)


def answer(lesson: Lesson) -> list[Text]:
    """The six parts of the answer, each with its numbers."""
    before, own = by_name(lesson, "input"), by_name(lesson, "standardised_per_class")
    unlabelled, inferred = by_name(lesson, "unlabelled"), by_name(lesson, "inferred")
    learned = by_name(lesson, "learned_joint")
    passing = Values(shares=_shares(learned), head=_head(learned))
    left = {(c.r, c.m): percent(c.measured) for c in lesson.composition}
    largest = max((m for _, m in left), default=0)
    return [
        said(
            "lesson.answer.1",
            before=eta2(before),
            own_eta2=eta2(own),
            own=hits(own),
            rule=rule(lesson),
        ),
        said(
            "lesson.answer.2",
            given=hits(by_name(lesson, "scaled_shifted")),
            back=_count(by_name(lesson, "learned_distribution"), "back"),
            apart=_count(by_name(lesson, "learned_classification"), "apart"),
            starts=_count(learned, "starts"),
        ),
        said("lesson.answer.3", error=_error(by_name(lesson, "identity"))),
        said(
            "lesson.answer.4",
            reader_right=int(unlabelled.facts["readers_right"]),
            readers=int(unlabelled.facts["readers"]),
            before=hits(before),
            joint=hits(by_name(lesson, "joint")),
            picked=fraction(inferred.facts["picked_right"], inferred),
        ),
        said("lesson.answer.5.same" if _same(learned) else "lesson.answer.5", **passing),
        said("lesson.answer.6", m=largest, mixed=left[0.0, largest], pure=left[1.0, largest])
        if left
        else said("lesson.answer.6.none"),
    ]


def by_name(lesson: Lesson, name: str) -> Stage:
    """The stage of that name."""
    return next(stage for stage in lesson.stages if stage.name == name)


def rule(lesson: Lesson) -> Text:
    """'one threshold' for two classes, 'K - 1 thresholds' for more."""
    cuts = len(lesson.stages[0].classes) - 1
    return said("lesson.rule.one") if cuts == 1 else said("lesson.rule.many", cuts=cuts)


AIMS = {"distribution": "back", "classification": "apart", "joint": "right"}


def recovery(lesson: Lesson, way: Recovery) -> list[Text]:
    """What a way of learning gamma and beta needs, and what it reaches."""
    reached = by_name(lesson, f"learned_{way.name}")
    counts = {"right": _count(reached, AIMS[way.name]), "starts": _count(reached, "starts")}
    return [
        said("lesson.recovery.needs_labels" if way.needs_labels else "lesson.recovery.needs_none"),
        said(f"lesson.recovery.{way.name}.reaches", **counts),
    ]


def hits(stage: Stage) -> str:
    """The threshold accuracy as a count, such as 7/8."""
    return fraction(stage.threshold_accuracy, stage)


def fraction(share: float, stage: Stage) -> str:
    """A share of all values of the lesson as a count."""
    count = sum(len(c.values) for c in stage.classes)
    return f"{round(share * count)}/{count}"


def eta2(stage: Stage) -> str:
    """The between-class share of the variance; a share of 1e-12 is rounding."""
    return number(stage.eta2, zero=1e-12)


def digits(stage: Stage) -> int:
    """How many digits show that the values of a class differ: at least four."""
    scale = max(abs(v) for c in stage.classes for v in c.values)
    spread = max(c.var for c in stage.classes) ** 0.5
    return min(15, max(4, 2 + math.ceil(math.log10(scale / spread)))) if spread > 0 else 4


def _input(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    overlap, share = _overlap(stage), Values(share=percent(stage.eta2))
    return ("overlap", overlap | share) if overlap else ("apart", share)


def _standardised(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    identical = stage.facts["largest_difference"] < 1e-9
    before = eta2(by_name(lesson, "input"))
    return ("identical", {}) if identical else ("shapes", {"before": before})


def _scaled_shifted(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    earlier = by_name(lesson, "standardised_per_class")
    overlap = _overlap(stage)
    before: Values = {"before": hits(earlier)}
    if all(c.gamma == 1 and c.beta == 0 for c in stage.classes):
        return "unchanged", before
    if not overlap:
        return "apart", before
    better = stage.threshold_accuracy > earlier.threshold_accuracy
    return ("better" if better else "no_better"), before | overlap


def _learned_distribution(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    variant, values = _reached(lesson, stage, "distribution")
    return variant, values | {"error": _error(stage)}


def _learned_classification(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    variant, values = _reached(lesson, stage, "classification")
    first = _first(lesson, "classification")
    now, before = stage.classes[0], by_name(lesson, "input").classes[0]
    return variant, values | {
        "first": number(first.loss[0]),
        "last": number(first.loss[-1]),
        "mean": number(now.mean),
        "deviation": number(math.sqrt(now.var)),
        "mean_before": number(before.mean),
        "deviation_before": number(math.sqrt(before.var)),
    }


def _learned_joint(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    variant, values = _reached(lesson, stage, "joint")
    gate = {"gate": number(stage.facts["gate"]), "shares": _shares(stage)}
    return variant, values | gate | {"head": _head(stage)}


def _reached(lesson: Lesson, stage: Stage, way: str) -> tuple[str, Values]:
    """Whether all starts reached the aim, how many did, and in how many steps."""
    right, starts = _count(stage, AIMS[way]), _count(stage, "starts")
    steps = _first(lesson, way).steps[-1]
    counts = Values(right=right, starts=starts, steps=steps)
    return "all" if right == starts else "some", counts


def _first(lesson: Lesson, way: str) -> Learning:
    return next(r for r in lesson.recoveries if r.name == way).learning[0]


def _count(stage: Stage, fact: str) -> int:
    return round(stage.facts[fact])


def _head(learned: Stage) -> str:
    return fraction(learned.facts["head_accuracy"], learned)


def _identity(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    return "exact", {"error": _error(stage)}


def _joint(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    before = by_name(lesson, "input")
    return "kept", {"before": hits(before), "eta2_before": eta2(before)}


def _joint_scaled_shifted(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    gamma, beta = stage.classes[0].gamma, stage.classes[0].beta
    assert gamma is not None, "this stage has gamma and beta"
    assert beta is not None, "this stage has gamma and beta"
    lost = gamma == 0 or stage.threshold_accuracy < by_name(lesson, "joint").threshold_accuracy
    return "lost" if lost else "kept", {"gamma": number(gamma), "beta": number(beta)}


def _unlabelled(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    return "trap", {
        "readers": int(stage.facts["readers"]),
        "right": int(stage.facts["readers_right"]),
        "accuracy": percent(stage.facts["reader_accuracy"]),
        "follows": percent(stage.facts["follows_label"]),
    }


def _inferred(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    return "all" if stage.facts["picked_right"] == 1 else "some", {
        "picked": fraction(stage.facts["picked_right"], stage),
        "accuracy": fraction(stage.facts["reader_accuracy"], stage),
    }


def _activated(lesson: Lesson, stage: Stage) -> tuple[str, Values]:
    return "same" if _same(stage) else "different", {
        "gate": number(stage.facts["gate"]),
        "shares": _shares(stage),
        "before": eta2(by_name(lesson, "joint")),
    }


def _passed(stage: Stage) -> list[int]:
    """How many values of each class the gate passes."""
    size = len(stage.classes[0].values)
    return [round(stage.facts[f"passes_{k}"] * size) for k in _ranks(stage)]


def _same(stage: Stage) -> bool:
    return len(set(_passed(stage))) == 1


def _shares(stage: Stage) -> Text:
    """The share of each class that passes; of many classes the smallest and the largest."""
    size, passed = len(stage.classes[0].values), _passed(stage)
    if len(passed) > NAMED_SHARES:
        ends = {"low": f"{min(passed)}/{size}", "high": f"{max(passed)}/{size}"}
        return said("lesson.shares.many", **ends)
    named = [said("lesson.share", k=k, share=f"{p}/{size}") for k, p in enumerate(passed, 1)]
    return Text(", ".join(t.en for t in named), "，".join(t.zh for t in named))


_VARIANTS: dict[str, Callable[[Lesson, Stage], tuple[str, Values]]] = {
    "input": _input,
    "standardised_per_class": _standardised,
    "scaled_shifted": _scaled_shifted,
    "learned_distribution": _learned_distribution,
    "learned_classification": _learned_classification,
    "learned_joint": _learned_joint,
    "identity": _identity,
    "joint": _joint,
    "joint_scaled_shifted": _joint_scaled_shifted,
    "unlabelled": _unlabelled,
    "inferred": _inferred,
    "activated": _activated,
}


def _ranks(stage: Stage) -> range:
    return range(1, len(stage.classes) + 1)


def _error(identity: Stage) -> str:
    return f"{identity.facts['largest_error']:.1g}"


def _overlap(stage: Stage) -> Values:
    """The two classes whose ranges share most, and what they share; empty where none do.

    One cut between every two neighbours is enough exactly where no two ranges overlap.
    """
    if stage.threshold_accuracy == 1:
        return {}

    def shared(pair: tuple[tuple[int, ClassValues], tuple[int, ClassValues]]) -> float:
        (_, a), (_, b) = pair
        return min(a.max, b.max) - max(a.min, b.min)

    widest = max(combinations(enumerate(stage.classes, 1), 2), key=shared)
    (a, first), (b, second) = widest
    low, high = max(first.min, second.min), min(first.max, second.max)
    ends = {"low": number(low, digits=digits(stage)), "high": number(high, digits=digits(stage))}
    at = said("lesson.overlap.span", **ends) if low < high else said("lesson.overlap.point", **ends)
    return {"a": a, "b": b, "at": at}
