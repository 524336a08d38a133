"""Errors: each names the value, what is allowed, what to do; `slug` is its anchor in the docs."""

import os
import re
from collections.abc import Sequence


def shown(path: str | os.PathLike[str], keep: str = "") -> str:
    """Return a path or name as printable text: control characters and bad bytes are escaped.

    Names in files of others may hold what a terminal obeys, or what turns the order of letters.

    Args:
        path: any text.
        keep: characters that stay, as the ends of lines.
    """
    text = os.fspath(path)
    if text.isprintable():
        return text
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def few(names: Sequence[str], most: int = 3) -> str:
    """List names for a sentence, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class NormscopeError(Exception):
    """Base of all errors that a user can cause and correct; the command line exits with 2.

    >>> import torch
    >>> import normscope
    >>> try:
    ...     normscope.convert(torch.nn.ReLU(), "nothing")
    ... except normscope.NormscopeError as problem:
    ...     print(problem)  # doctest: +ELLIPSIS
    to is 'nothing'; it can be 'torch', ...
    """

    slug = "normscope"
    told = False  # by another rank of the same run

    def __str__(self) -> str:
        """Return the message with control characters escaped and long words cut."""
        text = re.sub(r"(\S{100})\S{200,}", r"\1...", super().__str__())
        return shown(text, keep="\n")


class InputError(NormscopeError, ValueError):
    """Numbers, labels or arguments that cannot be used as they are.

    >>> import normscope
    >>> try:
    ...     normscope.BatchNorm1d(3, eps=float("nan"))
    ... except normscope.InputError as problem:
    ...     print(problem)
    eps is nan; it must be a finite number above 0, such as 1e-5
    """

    slug = "input"


class ModelError(NormscopeError):
    """A model, factory or checkpoint that cannot be loaded or run.

    >>> import torch
    >>> import normscope
    >>> try:
    ...     normscope.recalibrate(torch.nn.ReLU(), [torch.ones(2, 3)])
    ... except normscope.ModelError as problem:
    ...     print(problem)  # doctest: +ELLIPSIS
    the model (ReLU) has no layer with running statistics: ...
    """

    slug = "model"


class FileError(NormscopeError):
    """A file or folder that cannot be read or written; nothing was left half-written.

    >>> import normscope
    >>> try:
    ...     normscope.load("nowhere.json")
    ... except normscope.FileError as problem:
    ...     print(problem)
    there is no record nowhere.json; check the path
    """

    slug = "file"


class MissingExtraError(NormscopeError):
    """An optional package is missing; the message has the pip command that installs it.

    >>> import normscope
    >>> issubclass(normscope.MissingExtraError, normscope.NormscopeError)
    True
    """

    slug = "extra"


class KernelError(NormscopeError):
    """A compiled kernel differs from the reference on this machine."""

    slug = "kernel"
