"""Check health while training: the cheap checks each epoch, and an assertion for tests."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from normscope.doctor.diagnosis import diagnose
from normscope.errors import InputError
from normscope.records import SEVERITIES, Diagnosis, Finding, Severity


class Watch:
    """Runs the checks that need no data at the end of each epoch of a training loop.

    >>> watch = normscope.doctor.Watch(model)
    >>> for epoch in range(epochs):
    ...     train_one(epoch)
    ...     watch()

    Each finding is reported once. A call reads a few numbers per channel, so it costs far less than
    a batch. `normscope.callbacks` calls it from Lightning and from transformers' Trainer.

    Args:
        model: not changed.
        on_finding: called with each new `Finding`; None: a Python warning.
        least: the mildest severity that is reported.
        optimizer: to look at weight decay.
    """

    def __init__(
        self,
        model: nn.Module,
        on_finding: Callable[[Finding], object] | None = None,
        *,
        least: Severity = "warning",
        optimizer: Any = None,
    ) -> None:
        self._model = model
        self._report = _warn if on_finding is None else on_finding
        self._least = SEVERITIES.index(least)
        self._optimizer = optimizer
        self._reported: set[tuple[str, str]] = set()

    def __call__(self) -> Diagnosis:
        """Run the cheap checks now and return all that they found."""
        record = diagnose(self._model, optimizer=self._optimizer)
        for finding in record.findings:
            key = (finding.code, finding.layer)
            if SEVERITIES.index(finding.severity) >= self._least and key not in self._reported:
                self._reported.add(key)
                self._report(finding)
        return record


def assert_healthy(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    fail_on: Severity = "error",
    **options: Any,
) -> Diagnosis:
    """Raise AssertionError, with one line per finding, where a model has faults.

    Args:
        model: not changed.
        batches: as in training; None: only checks without data.
        fail_on: the mildest severity that fails.
        options: as for `diagnose`.

    >>> import torch
    >>> import normscope
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    >>> with torch.no_grad():
    ...     net[1].running_var[0] = -1
    >>> normscope.assert_healthy(net)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    AssertionError: the model is not healthy:
    ...
    """
    if fail_on not in SEVERITIES:
        raise InputError(f"fail_on is {fail_on!r}; it can be {', '.join(reversed(SEVERITIES))}")
    record = diagnose(model, batches, **options)
    least = SEVERITIES.index(fail_on)
    severe = [f for f in record.findings if SEVERITIES.index(f.severity) >= least]
    if severe:
        raise AssertionError("\n".join(["the model is not healthy:", *map(line, severe)]))
    return record


def line(finding: Finding) -> str:
    """Write a finding in one line; `normscope explain CODE` says more."""
    where = finding.layer or "the model"
    facts = ", ".join(f"{k} {v}" for k, v in finding.facts.items() if k != "kind")
    text = f"{finding.code} {finding.severity} in {where}: {finding.measured:.3g}"
    return f"{text} ({facts})" if facts else text


def _warn(finding: Finding) -> None:
    warnings.warn(f"normscope: {line(finding)}", UserWarning, stacklevel=3)
