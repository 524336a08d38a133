"""Published networks with faults planted in them: the doctor's first line, followed blindly.

The networks of `published.py` are examined as they are, with one fault planted, and as they are
with a sample of four sources only (four notes, crops of four photographs), where the right answer
is to leave the statistics alone. Nothing is downloaded by this script and nothing is kept.

    python benchmarks/pretrained.py FOLDER [beginning of a network's name ...]

FOLDER is where pip installed the packages (--target); where one is missing, the script says how
to get it. Accuracy in per cent is measured on data that the doctor did not see: the share of
frames within 50 cents for tones, of crops in the photograph's ImageNet class for
EfficientNet-lite0 (four photographs have one), and of crops given to the right photograph for
MobileNetV2, whose package has no classifier: a linear one is fitted on its features as they are.
The other photographs in EfficientNet-lite0's sample carry the class that the network as
published gives the whole photograph.

"followed" carries out the remedy of the first finding that is a warning or an error, whatever
held-out data say. A first line loses accuracy where more samples turn wrong than right by two
standard errors.
"""

import argparse
import copy
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from published import MODULES, NETWORKS, PACKAGES, Batch, Network
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from normscope.doctor import diagnose, repair
from normscope.records import Diagnosis
from normscope.report import terminal
from normscope.report.diagnosis import document

Norm = nn.BatchNorm2d


@dataclass(frozen=True)
class Planted:
    """What is wrong, and how one says so.

    Attributes:
        plant: changes a network; None where it is healthy.
        codes: one of them is to be first or second; empty where nothing is wrong.
        narrow: the data at hand are four sources.
        by_effect: nothing but its effect shows it, so it need not be named where it costs nothing.
    """

    truth: str
    plant: Callable[[Network, nn.Module], None] | None = None
    codes: tuple[str, ...] = ()
    narrow: bool = False
    by_effect: bool = False


@dataclass
class Tally:
    """What went wrong over all rows."""

    lost: int = 0
    false_errors: int = 0
    named: int = 0
    planted: int = 0
    raised: int = 0
    notes: list[str] = field(default_factory=list)


# ---- faults -------------------------------------------------------------------------------------


def norms(model: nn.Module) -> list[Norm]:
    return [m for m in model.modules() if isinstance(m, Norm)]


def noise(network: Network, model: nn.Module) -> None:
    """As after a dummy forward in train() or an initialisation on random inputs."""
    _measured(model, norms(model), [torch.rand_like(x) for x, _ in network.sample])


def other_eps(network: Network, model: nn.Module) -> None:
    for norm in norms(model):
        norm.eps = network.other_eps


def never_updated(network: Network, model: nn.Module) -> None:
    for norm in norms(model):
        norm.reset_running_stats()


def other_momentum(network: Network, model: nn.Module) -> None:
    """0.99 is the weight of the past elsewhere and that of the last batch here."""
    for norm in norms(model):
        norm.momentum = 0.99
    _updates(model, norms(model), [x for x, _ in network.sample])


def frozen_by_half(network: Network, model: nn.Module) -> None:
    """Scale and shift do not learn; the statistics followed inputs of another domain."""
    for norm in norms(model):
        norm.weight.requires_grad_(requires_grad=False)
        norm.bias.requires_grad_(requires_grad=False)
        norm.momentum = 0.1
    inputs = [network.domain(x) for x, _ in network.sample]
    _updates(model, norms(model), inputs * (1 + 20 // len(inputs)))


def one_stage(network: Network, model: nn.Module) -> None:
    """The statistics of the second quarter of the layers are of another domain, twice as far.

    Measured again alone, with the other layers as stored, these layers are healed; where all are
    measured on so few photographs, more is lost than the fault costs.
    """
    every = norms(model)
    quarter = max(len(every) // 4, 1)
    inputs = [network.domain(network.domain(x)) for x, _ in network.sample]
    _measured(model, every[quarter : 2 * quarter], inputs)


def _measured(model: nn.Module, some: list[Norm], inputs: list[Tensor]) -> None:
    """The statistics of these inputs, in these layers; momentum stays what it was."""
    kept = [norm.momentum for norm in some]
    for norm in some:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average
    _updates(model, some, inputs)
    for norm, momentum in zip(some, kept, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def _updates(model: nn.Module, some: list[Norm], inputs: list[Tensor]) -> None:
    """Forwards in which these layers alone are in train()."""
    for norm in some:
        norm.train()
    for x in inputs:
        model(x)
    model.eval()


ROWS = (
    Planted("healthy, as published"),
    Planted("statistics of noise", noise, ("NS002", "NS003")),
    Planted("eps of another library", other_eps, ("NS006",), by_effect=True),
    Planted("never updated", never_updated, ("NS002",)),
    Planted("momentum of another convention", other_momentum, ("NS005",)),
    Planted("frozen by half", frozen_by_half, ("NS014", "NS003")),
    Planted("one stage's statistics of another domain", one_stage, ("NS003",)),
    Planted("healthy; a sample of four sources", narrow=True),
)


# ---- the table ----------------------------------------------------------------------------------


@torch.no_grad()
def hits(network: Network, model: nn.Module) -> Tensor:
    """(N,) bool, on the test data, in eval()."""
    model = copy.deepcopy(model).eval()
    return torch.cat([network.right(model(x), y) for x, y in network.test])


def first_line(found: Diagnosis) -> str:
    """The first finding's code and the first sentence of the text."""
    out = io.StringIO()
    terminal.show(document(found), "en", Console(file=out, width=10_000, no_color=True))
    line = next(line.strip() for line in out.getvalue().splitlines() if line.strip())
    sentence = line.split(". ")[0].rstrip(".")
    return f"{found.codes[0] if found.codes else '-'}: {sentence}"


def follow(model: nn.Module, found: Diagnosis, batches: list[Batch]) -> nn.Module:
    """The model after the first line was obeyed without asking held-out data."""
    model = copy.deepcopy(model)
    verdict = getattr(found, "verdict", None)
    if verdict is not None and verdict.kind != "statistics":
        return model
    grave = [finding for finding in found.findings if finding.severity != "info"]
    if grave and grave[0].repair:
        repair(model, found, batches, remedies=[grave[0].repair], force=True)
    return model


def refuses(found: Diagnosis) -> bool:
    """Whether the verdict says that the data, not the statistics, are at fault."""
    verdict = getattr(found, "verdict", None)
    return verdict is not None and verdict.kind == "data"


def significantly(before: Tensor, after: Tensor) -> bool:
    """Whether more samples turned wrong than right, by two standard errors."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return lost - gained > 2 * (lost + gained) ** 0.5


def row(network: Network, planted: Planted, tally: Tally) -> str:
    """One model: diagnosed, followed, repaired, and by torch's update_bn."""
    model = copy.deepcopy(network.model)
    if planted.plant is not None:
        planted.plant(network, model)
    batches = network.narrow if planted.narrow else network.sample
    before = hits(network, model)
    start = perf_counter()
    found = diagnose(model, batches)
    repaired = copy.deepcopy(model)
    done = repair(repaired, found, batches)
    seconds = perf_counter() - start
    followed = hits(network, follow(model, found, batches))
    peer = copy.deepcopy(model)
    update_bn(iter(batches), peer)
    what = f"{network.name}, {planted.truth}"
    named = ""
    if planted.codes or planted.narrow:
        yes = refuses(found) if planted.narrow else bool(set(planted.codes) & set(found.codes[:2]))
        needed = not planted.by_effect or significantly(hits(network, network.model), before)
        named = "yes" if yes else ("NO" if needed else "no; it costs nothing")
        if needed:
            tally.planted += 1
            tally.named += yes
            if not yes:
                tally.notes.append(f"not named: {what}")
    if planted.plant is None and found.fails("error"):
        tally.false_errors += 1
        errors = dict.fromkeys(f.code for f in found.findings if f.severity == "error")
        tally.notes.append(f"error on a healthy network: {what}: {', '.join(errors)}")
    if significantly(before, followed):
        tally.lost += 1
        tally.notes.append(f"loses when followed: {what}")
    scores = (before, followed, hits(network, repaired), hits(network, peer))
    cells = (
        network.name, planted.truth, first_line(found), ", ".join(found.codes), named,
        ", ".join(done.record.kept) or "-", *(f"{100 * s.double().mean():.1f}" for s in scores),
        f"{seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def lines(networks: list[Network], truths: tuple[str, ...], tally: Tally) -> Iterator[str]:
    """The table."""
    names = (
        "network | truth | first line | codes | named | kept | before | followed | repaired | "
        "update_bn | s"
    )
    yield f"| {names} |"
    yield "|" + " --- |" * (names.count("|") + 1)
    for network in networks:
        for planted in (p for p in ROWS if p.truth.startswith(truths)):
            torch.manual_seed(0)
            try:
                yield row(network, planted, tally)
            except Exception as problem:  # a row that fails is a result, not the end of the table
                tally.raised += 1
                tally.notes.append(
                    f"raised: {network.name}, {planted.truth}: {type(problem).__name__}: {problem}"
                )
                what = f"{type(problem).__name__}: {str(problem)[:120]}"
                yield f"| {network.name} | {planted.truth} | raised {what} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Published networks with planted faults.")
    parser.add_argument("folder", type=Path, help="where pip installed the packages (--target)")
    parser.add_argument("networks", nargs="*", help="beginnings of names; all without")
    parser.add_argument("--truth", action="append", help="beginning of a row's truth; all without")
    asked = parser.parse_args()
    missing = [name for name in MODULES if not (asked.folder / name).is_dir()]
    if missing:
        print(
            f"{asked.folder} holds no {', '.join(missing)}: get them by "
            f"`pip install --no-deps --target {asked.folder} {PACKAGES}`.",
            file=sys.stderr,
        )
        return 2
    chosen = [
        make for name, make in NETWORKS.items()
        if not asked.networks or name.lower().startswith(tuple(n.lower() for n in asked.networks))
    ]  # fmt: skip
    if not chosen:
        parser.error(f"no network begins like that; there are {', '.join(NETWORKS)}")
    tally = Tally()
    networks = [make(asked.folder) for make in chosen]
    for line in lines(networks, tuple(asked.truth or ("",)), tally):
        print(line, flush=True)
    print()
    for note in tally.notes:
        print(f"- {note}")
    print(
        f"first lines that lose accuracy when followed: {tally.lost}; errors on healthy networks: "
        f"{tally.false_errors}; planted faults named first or second: "
        f"{tally.named} of {tally.planted}"
        + (f"; rows that raised: {tally.raised}" if tally.raised else "")
    )
    return int(
        bool(tally.lost or tally.false_errors or tally.raised or tally.named < tally.planted)
    )


if __name__ == "__main__":
    sys.exit(main())
