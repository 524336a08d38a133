"""Which sentence the numbers of a lesson call for, in both languages."""

import math
from itertools import combinations, groupby

from normscope.records import Lesson, Recovery, Stage
from normscope.report.bilingual import Text, joined, tr
from normscope.report.format import number, percent

NAMED_SHARES = 4  # up to so many classes each share is named; beyond, the smallest and largest
# stages that are told in one step with the stage before: the same map, the same question
TOGETHER = {"joint_scaled_shifted": "joint", "inferred": "unlabelled"}
AIMS = {"distribution": "back", "classification": "apart", "joint": "right"}


def steps(lesson: Lesson) -> list[tuple[Text, list[Stage]]]:
    """Return the steps of the tour: the heading and the stages of each."""
    groups = groupby(lesson.stages, lambda stage: TOGETHER.get(stage.name, stage.name))
    found = [(name, list(stages)) for name, stages in groups]
    return [
        (title(lesson, *stages) if len(stages) == 1 else tr(f"lesson.step.{name}"), stages)
        for name, stages in found
    ]


def title(lesson: Lesson, stage: Stage) -> Text:
    """Return the heading of a stage."""
    return tr(f"lesson.{stage.name}.title", starts=len(lesson.recoveries[0].learning))


def sentence(lesson: Lesson, stage: Stage) -> Text:
    """Say what a stage shows, with its numbers; which sentence it is depends on them."""
    common = {"hits": hits(stage), "rule": rule(lesson), "eta2": eta2(stage)}
    choose = _learned if stage.name.startswith("learned_") else _stage
    variant, values = choose(lesson, stage)
    return tr(f"lesson.{stage.name}.{variant}", **(common | values))


def _stage(lesson: Lesson, stage: Stage) -> tuple[str, dict[str, object]]:
    """Choose the sentence of a stage at which nothing is learned, and its numbers."""
    facts, first = stage.facts, stage.classes[0]
    before, own = by_name(lesson, "input"), by_name(lesson, "standardised_per_class")
    overlap = _overlap(stage)
    match stage.name:
        case "input":
            return "overlap" if overlap else "apart", overlap | {"share": percent(stage.eta2)}
        case "standardised_per_class":
            identical = facts["largest_difference"] < 1e-9
            return "identical" if identical else "shapes", {"before": eta2(before)}
        case "scaled_shifted":
            better = "better" if stage.threshold_accuracy > own.threshold_accuracy else "no_better"
            unchanged = all(c.gamma == 1 and c.beta == 0 for c in stage.classes)
            variant = "unchanged" if unchanged else better if overlap else "apart"
            return variant, overlap | {"before": hits(own)}
        case "identity":
            return "exact", {"error": _error(stage)}
        case "joint":
            return "kept", {"before": hits(before), "eta2_before": eta2(before)}
        case "joint_scaled_shifted":
            joint = by_name(lesson, "joint").threshold_accuracy
            kept = first.gamma != 0 and stage.threshold_accuracy >= joint
            values = {"gamma": number(first.gamma or 0), "beta": number(first.beta or 0)}
            return "kept" if kept else "lost", {**values}
        case "unlabelled":
            return "trap", {
                "readers": _count(stage, "readers"),
                "right": _count(stage, "readers_right"),
                "accuracy": percent(facts["reader_accuracy"]),
                "follows": percent(facts["follows_label"]),
            }
        case "inferred":
            picked, read = (fraction(facts[n], stage) for n in ("picked_right", "reader_accuracy"))
            variant = "all" if facts["picked_right"] == 1 else "some"
            return variant, {"picked": picked, "accuracy": read}
        case _:  # activated
            variant = "same" if len(set(_passed(stage))) == 1 else "different"
            joint_eta2 = eta2(by_name(lesson, "joint"))
            gate = number(facts["gate"])
            return variant, {"gate": gate, "shares": _shares(stage), "before": joint_eta2}


def _learned(lesson: Lesson, stage: Stage) -> tuple[str, dict[str, object]]:
    """Say whether all starts reached the aim, how many did, in how many steps, and where."""
    way = stage.name.removeprefix("learned_")
    right, starts = _count(stage, AIMS[way]), _count(stage, "starts")
    path = next(r for r in lesson.recoveries if r.name == way).learning[0]
    values: dict[str, object] = {"right": right, "starts": starts, "steps": path.steps[-1]}
    if way == "distribution":
        values["error"] = _error(stage)
    elif way == "joint":
        values |= {"gate": number(stage.facts["gate"]), "shares": _shares(stage)}
        values["head"] = fraction(stage.facts["head_accuracy"], stage)
    else:
        values |= {"first": number(path.loss[0]), "last": number(path.loss[-1])}
        for end, at in (("", stage), ("_before", by_name(lesson, "input"))):
            values[f"mean{end}"] = number(at.classes[0].mean)
            values[f"deviation{end}"] = number(math.sqrt(at.classes[0].var))
    return "all" if right == starts else "some", values


def verdict(lesson: Lesson) -> Text:
    """Answer in three sentences."""
    before, own = by_name(lesson, "input"), by_name(lesson, "standardised_per_class")
    values = {"eta2": eta2(before), "own_eta2": eta2(own), "before": hits(before)}
    joint = hits(by_name(lesson, "joint"))
    return tr("lesson.verdict", rule=rule(lesson), joint=joint, **values)


def lead(lesson: Lesson) -> Text:
    """Answer in short, above the picture that shows it."""
    before, joint = (hits(by_name(lesson, name)) for name in ("input", "joint"))
    return tr("lesson.lead", rule=rule(lesson), before=before, joint=joint)


def answer(lesson: Lesson) -> list[Text]:
    """Answer in six parts, each with its numbers."""
    before, own = by_name(lesson, "input"), by_name(lesson, "standardised_per_class")
    unlabelled, inferred = by_name(lesson, "unlabelled"), by_name(lesson, "inferred")
    learned = by_name(lesson, "learned_joint")
    same = ".same" if len(set(_passed(learned))) == 1 else ""
    left = {(c.r, c.m): percent(c.measured) for c in lesson.composition}
    m = max((m for _, m in left), default=0)
    ends = {"m": m, "mixed": left[0.0, m], "pure": left[1.0, m]} if left else {}
    parts: dict[str, dict[str, object]] = {
        "1": {"before": eta2(before), "own_eta2": eta2(own), "own": hits(own)},
        "2": {
            "given": hits(by_name(lesson, "scaled_shifted")),
            "back": _count(by_name(lesson, "learned_distribution"), "back"),
            "apart": _count(by_name(lesson, "learned_classification"), "apart"),
            "starts": _count(learned, "starts"),
        },
        "3": {"error": _error(by_name(lesson, "identity"))},
        "4": {
            "reader_right": _count(unlabelled, "readers_right"),
            "readers": _count(unlabelled, "readers"),
            "before": hits(before),
            "joint": hits(by_name(lesson, "joint")),
            "picked": fraction(inferred.facts["picked_right"], inferred),
        },
        f"5{same}": {
            "shares": _shares(learned),
            "head": fraction(learned.facts["head_accuracy"], learned),
        },
        "6" if left else "6.none": {**ends},
    }
    return [tr(f"lesson.answer.{k}", rule=rule(lesson), **v) for k, v in parts.items()]


def recovery(lesson: Lesson, way: Recovery) -> list[Text]:
    """Say what a way of learning gamma and beta needs, and what it reaches."""
    reached = by_name(lesson, f"learned_{way.name}")
    counts = {"right": _count(reached, AIMS[way.name]), "starts": _count(reached, "starts")}
    return [
        tr("lesson.recovery.needs_labels" if way.needs_labels else "lesson.recovery.needs_none"),
        tr(f"lesson.recovery.{way.name}.reaches", **counts),
    ]


# --- the numbers of a stage -------------------------------------------------------------------


def by_name(lesson: Lesson, name: str) -> Stage:
    """Return the stage of that name."""
    return next(stage for stage in lesson.stages if stage.name == name)


def rule(lesson: Lesson) -> Text:
    """Name the rule: 'one threshold' for two classes, 'K - 1 thresholds' for more."""
    cuts = len(lesson.stages[0].classes) - 1
    return tr("lesson.rule.one") if cuts == 1 else tr("lesson.rule.many", cuts=cuts)


def hits(stage: Stage) -> str:
    """Write the threshold accuracy as a count, such as 7/8."""
    return fraction(stage.threshold_accuracy, stage)


def fraction(share: float, stage: Stage) -> str:
    """Write a share of all values of the lesson as a count."""
    count = sum(len(c.values) for c in stage.classes)
    return f"{round(share * count)}/{count}"


def eta2(stage: Stage) -> str:
    """Write the between-class share of the variance; a share of 1e-12 is rounding."""
    return number(stage.eta2, zero=1e-12)


def digits(stage: Stage) -> int:
    """Count the digits that show that the values of a class differ: at least four."""
    scale = max(abs(v) for c in stage.classes for v in c.values)
    spread = max(c.var for c in stage.classes) ** 0.5
    return min(15, max(4, 2 + math.ceil(math.log10(scale / spread)))) if spread > 0 else 4


def _count(stage: Stage, fact: str) -> int:
    return round(stage.facts[fact])


def _error(identity: Stage) -> str:
    return f"{identity.facts['largest_error']:.1g}"


def _passed(stage: Stage) -> list[int]:
    """Count the values of each class that the gate passes."""
    size = len(stage.classes[0].values)
    return [round(stage.facts[f"passes_{k}"] * size) for k in range(1, len(stage.classes) + 1)]


def _shares(stage: Stage) -> Text:
    """Name the share of each class that passes; of many classes the smallest and the largest."""
    size, passed = len(stage.classes[0].values), _passed(stage)
    if len(passed) > NAMED_SHARES:
        ends = {"low": f"{min(passed)}/{size}", "high": f"{max(passed)}/{size}"}
        return tr("lesson.shares.many", **ends)
    named = enumerate(passed, 1)
    return joined(tr("lesson.share", k=k, share=f"{p}/{size}") for k, p in named)


def _overlap(stage: Stage) -> dict[str, object]:
    """Name the two classes whose ranges share most, and what they share; empty where none do.

    One cut between every two neighbours is enough exactly where no two ranges overlap.
    """
    if stage.threshold_accuracy == 1:
        return {}
    shared = {
        (a, b): (max(first.min, second.min), min(first.max, second.max))
        for (a, first), (b, second) in combinations(enumerate(stage.classes, 1), 2)
    }
    a, b = max(shared, key=lambda pair: shared[pair][1] - shared[pair][0])
    low, high = shared[a, b]
    ends = {"low": number(low, digits=digits(stage)), "high": number(high, digits=digits(stage))}
    at = tr("lesson.overlap.span", **ends) if low < high else tr("lesson.overlap.point", **ends)
    return {"a": a, "b": b, "at": at}
