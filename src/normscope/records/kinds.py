"""Every kind of record by its name, and a file of any kind read back."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normscope.errors import FileError, InputError, NormscopeError
from normscope.files import json_text, read_text, shown
from normscope.records.base import Record
from normscope.records.bench import Bench
from normscope.records.claims import Claims
from normscope.records.conversion import Converted
from normscope.records.diagnosis import Diagnosis, Repaired
from normscope.records.difference import Difference
from normscope.records.inspection import Inspection
from normscope.records.lesson import Lesson
from normscope.records.parity import Parity
from normscope.records.passport import Passport, PassportCheck
from normscope.records.run import Run

CHECKUP = "checkup"  # the file of a diagnosis and the repair after it
KINDS: dict[str, type[Record]] = {
    record.kind: record
    for record in (
        Bench,
        Claims,
        Converted,
        Diagnosis,
        Difference,
        Inspection,
        Lesson,
        Parity,
        Passport,
        PassportCheck,
        Repaired,
        Run,
    )
}


def load(path: str | os.PathLike[str]) -> Record:
    """Read a record that was saved, of whatever kind it is.

    Args:
        path: a .json file that `Record.save`, --save or --json wrote, or the folder of a run.
            Of what `normscope repair --json` wrote, the diagnosis.

    Raises:
        FileError: the file cannot be read.
        InputError: it holds no record, or one of another version.

    >>> import normscope
    >>> path = normscope.explain(seeds=1).save("lesson.json")
    >>> normscope.load(path).kind
    'lesson'
    """
    return load_all(path)[0]


def load_all(path: str | os.PathLike[str]) -> tuple[Record, ...]:
    """Read every record of a file: one, or a diagnosis and the repair after it.

    Args:
        path: as `load`.

    Raises:
        FileError: as `load`.
        InputError: as `load`.
    """
    path = Path(path)
    path = path / "run.json" if path.is_dir() else path
    text = read_text(path, "record")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise InputError(f"{shown(path)} is no record: {problem}") from problem
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == CHECKUP:
        return tuple(
            KINDS[part].from_json(json.dumps(value.get(part))) for part in ("diagnosis", "repair")
        )
    if not isinstance(kind, str) or kind not in KINDS:
        found = "no kind" if kind is None else f"the kind {str(kind)[:40]!r}"
        raise InputError(
            f"{shown(path)} is no record: it has {found}; there are {', '.join(KINDS)}"
        )
    return (KINDS[kind].load(path),)  # an inspection may have large tables beside it


def json_of(*records: Record) -> str:
    """Return the text that `load_all` reads: of one record, or of a diagnosis and a repair."""
    if len(records) == 1:
        return records[0].to_json()
    return json_text({"kind": CHECKUP, **{r.kind: json.loads(r.to_json()) for r in records}})


@contextmanager
def fitting(path: Path, what: str) -> Iterator[None]:
    """Raise FileError in the place of any error that is not of ours or of the system's."""
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
