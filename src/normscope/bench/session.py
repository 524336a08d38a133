"""A whole benchmark: the check, then every setting; an interruption keeps finished settings."""

from collections.abc import Sequence

import torch

from normscope.bench import cases, peers
from normscope.bench.accuracy import accuracy
from normscope.bench.check import check_kernel
from normscope.bench.measuring import in_turns, peak_memory, timing
from normscope.environment import threads, versions
from normscope.errors import InputError
from normscope.progress import Progress
from normscope.records.bench import Accuracy, Bench, Race, Setting

REPEATS, QUICK_REPEATS, FEWEST = 20, 5, 3


def measure(
    only: Sequence[str] = (),
    *,
    quick: bool = False,
    repeats: int | None = None,
    on_progress: Progress | None = None,
) -> Bench:
    """Check the kernel, then measure; Ctrl-C ends it with the settings that were finished.

    Args:
        only: parts, of `cases.PARTS`; empty: all.
        quick: fewer settings and repeats, about a minute.
        repeats: at least so many for each median; None: 20, or 5 where quick.
        on_progress: called with settings done, of how many, and the next one.

    Raises:
        KernelError: the kernel fails its check; nothing is measured.
        InputError: a part that there is not, or fewer than 3 repeats.
    """
    if repeats is None:
        repeats = QUICK_REPEATS if quick else REPEATS
    if repeats < FEWEST:
        raise InputError(f"--repeats is {repeats}; a median with spread needs at least {FEWEST}")
    todo = cases.settings(only, quick=quick)
    tell = on_progress or (lambda done, total, message: None)
    tell(0, len(todo), "check")
    checked = check_kernel()
    races: list[Race] = []
    accuracies: list[Accuracy] = []
    complete = True
    try:
        for done, setting in enumerate(todo):
            tell(done, len(todo), f"{setting.part} {'x'.join(map(str, setting.shape))}")
            with threads(setting.threads):
                if setting.part == "accuracy":
                    accuracies += [accuracy(setting, ratio) for ratio in cases.RATIOS]
                else:
                    races.append(race(setting, repeats, quick=quick))
        tell(len(todo), len(todo), "")
    except KeyboardInterrupt:
        complete = False
    return Bench(
        complete=complete,
        quick=quick,
        repeats=repeats,
        environment=versions() | {"processor": torch.backends.cpu.get_cpu_capability()},
        checked=checked,
        races=tuple(races),
        accuracies=tuple(accuracies),
    )


def race(setting: Setting, repeats: int, *, quick: bool = False) -> Race:
    """Measure all peers at one setting."""
    torch.compiler.reset()  # compiled code keeps the number of threads that it was compiled for
    running, absent = {}, {}
    for name in peers.names(setting, quick=quick):
        try:
            peer = peers.build(name, setting)
            peer.backward(peer.forward())
        except KeyboardInterrupt:
            raise
        except Exception as problem:  # a peer that fails is left out, with its words
            if name in ("normscope", "torch"):
                raise
            absent[name] = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
        else:
            running[name] = peer
    x, _ = cases.tensors(setting)
    copy, times = in_turns(running, x, repeats)
    baseline = times["torch"][2]
    timings = tuple(
        timing(name, spans, copy, baseline, x.nbytes, peak_memory(running[name]))
        for name, spans in times.items()
    )
    return Race(setting=setting, copy=copy, timings=timings, absent=absent)
