"""Objects by name: what a user's own file or package holds or makes."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normscope.errors import FileError, ModelError
from normscope.files import shown


def made(place: str, name: str, finished: type | tuple[type, ...] = ()) -> Any:
    """What `name` in a file or package is, or returns when it is called without arguments.

    Args:
        place: path/file.py or pkg.module.
        name: a function, or anything else in it.
        finished: types that are taken as they are, even where they can be called.

    Raises:
        FileError: there is no such file.
        ModelError: the code cannot be imported, has no such name, or fails.
    """
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise FileError(f"there is no file {shown(place)}; check the path")
    with _importable(Path(place).resolve().parent if is_file else Path.cwd()):
        try:
            source = _executed(Path(place)) if is_file else importlib.import_module(place)
        except (Exception, SystemExit) as problem:
            raise ModelError(f"{shown(place)} cannot be imported: {reason(problem)}") from problem
        value = getattr(source, name, None)
        if value is None:
            raise ModelError(f"{shown(place)} has no {name!r}; name a function in it")
        if not isinstance(value, finished) and callable(value):
            try:
                value = value()
            except (Exception, SystemExit) as problem:
                raise ModelError(f"{shown(place)}:{name}() failed: {reason(problem)}") from problem
    return value


def reason(problem: BaseException) -> str:
    """An exception of somebody else's code as one line."""
    return f"{type(problem).__name__}: {(str(problem) or 'no message').splitlines()[0]}"


def _executed(path: Path) -> Any:
    found = importlib.util.spec_from_file_location(f"normscope_file_{path.stem}", path)
    assert found is not None, "a .py file has a loader"
    assert found.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let imports find what lies in `folder`, as when Python is started there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
