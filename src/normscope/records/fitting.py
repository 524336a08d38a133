"""Files whose parts are each of their kind and do not fit together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normscope.errors import FileError, NormscopeError
from normscope.files import shown


@contextmanager
def fitting(path: Path, what: str) -> Iterator[None]:
    """Say of what fails inside that the parts of a file, each of its kind, do not fit together.

    Raises:
        FileError: in the place of any error that is not of ours or of the system's.
    """
    try:
        yield
    except (NormscopeError, OSError):
        raise
    except Exception as problem:
        why = f"{type(problem).__name__}: {str(problem)[:200]}".splitlines()[0]
        raise FileError(
            f"{shown(path)} holds a {what} whose parts do not fit together ({shown(why)}); "
            "write it again with the command that made it"
        ) from problem
