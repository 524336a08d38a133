"""Functions that Numba compiles when they are first needed, and keeps on disk.

Numba keeps every form of a function in one series of numbered files with one index, which it
neither locks nor checks, and links code by name. Processes that compile different forms at once,
or that start while the files of an older version lie there, could each be given the code of
another form. So every form gets a name of its own, which tells all that its code depends on.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba import cfunc, njit
from numba.core import event
from numba.core.registry import cpu_target

from normscope.kernels.cpu.elements import OPTIONS

DIGEST = 6  # bytes

log = logging.getLogger("normscope")


class Compiled(NamedTuple):
    """A compiled function, itself as a call through ctypes, and its address."""

    function: Any  # the address is good for as long as this lives
    call: Any
    address: int


def compiled(
    signature: Any, function: Callable[..., None], *form: object, **options: Any
) -> Compiled:
    """Compile a function that is called by its address, or find it on disk.

    Args:
        signature: as Numba writes it.
        function: what it names and encloses must follow from the texts of its file and of the
            files beside this one, and from `form`.
        form: what tells it from other functions made by the same lines.
        options: beside OPTIONS.
    """
    named(function, *form)
    found = _made(function, partial(cfunc, signature, **(OPTIONS | options)))
    return Compiled(found, found.ctypes, found.address)


def called(signature: Any, function: Callable[..., Any]) -> Any:
    """The same for a function that Python calls, with arrays as they come."""
    return _made(named(function), partial(njit, signature, nogil=True))


def _made(function: Callable[..., Any], compiler: Callable[..., Any]) -> Any:
    """A function compiled with a cache on disk, or without where there is no room for one."""
    try:
        with event.install_listener("numba:compile", _Told()):
            found = compiler(cache=True)(function)
    except (RuntimeError, OSError) as problem:
        if isinstance(problem, RuntimeError) and "cannot cache" not in str(problem):
            raise
        reason = problem.strerror if isinstance(problem, OSError) else "no folder can be written"
        _tell_once(
            f"normscope's CPU kernels cannot be kept on disk ({reason}), so every process "
            "compiles them anew; set NUMBA_CACHE_DIR to a folder that can be written"
        )
        return compiler(cache=False)(function)
    _forget(found._cache.cache_path, function.__code__.co_filename)
    return found


def named(function: Callable[..., Any], *form: object) -> Callable[..., Any]:
    """Give a function the name of its form."""
    parts = function.__qualname__, form, _machine()
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=DIGEST).hexdigest()
    texts = _texts(function.__code__.co_filename)
    function.__qualname__ = f"{function.__name__}_{texts}_{digest}"
    return function


@cache
def _forget(folder: str | None, file: str) -> None:
    """Remove what older texts of a file left in a folder, which nothing will find again."""
    hexadecimal = f"[0-9a-f]{{{2 * DIGEST}}}"
    ours = re.compile(
        rf"{re.escape(Path(file).stem)}\.\w+_({hexadecimal})_{hexadecimal}-.*\.nb[ci]"
    )
    for path in Path(folder).iterdir() if folder is not None else ():
        found = ours.fullmatch(path.name)
        if found is not None and found[1] != _texts(file):
            with suppress(OSError):  # another process was quicker, or may and we may not
                path.unlink()


@cache
def _texts(file: str) -> str:
    """A digest of the text of a file and of those beside this one."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for path in (Path(file), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _machine() -> tuple[Any, ...]:
    """Numba's version and the processor that it compiles for."""
    return numba.__version__, *cpu_target.target_context.codegen().magic_tuple()


@cache
def _tell_once(message: str) -> None:
    log.warning(message)


class _Told(event.Listener):  # type: ignore[misc]
    """Says so, once per process, when something is compiled: it takes seconds."""

    def on_start(self, event: Any) -> None:
        """A compilation begins; what is found on disk causes none."""
        _tell_once(
            "compiling normscope's CPU kernels for the first time (seconds; kept on disk for "
            "the next time; `normscope env --warm` does it ahead)"
        )

    def on_end(self, event: Any) -> None:
        """Nothing to say."""
