"""Write files whole or not at all, and read them with errors of one sentence."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normscope.errors import FileError
from normscope.errors import shown as shown


def json_text(value: Any, indent: int | None = None) -> str:
    """Write one JSON document that is safe to print: what `shown` spells out reads back.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def write_whole(path: Path, content: str | bytes | Callable[[Path], None]) -> Path:
    """Write `content` so that `path` afterwards holds all of it, or what it held before.

    A function as content is called with the temporary file, which it writes.

    A temporary file in the same folder is written, flushed to disk and renamed over `path`, which
    keeps its permissions; a symbolic link keeps pointing and its target is replaced. Folders are
    made as needed. Temporary files of writers that were killed are removed.

    Raises:
        FileError: the folder cannot be written, the disk is full, or `path` is no plain file.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    size = 0 if callable(data) else len(data)
    target = path.resolve() if path.is_symlink() else path
    if target.exists() and not target.is_file():
        raise FileError(f"{shown(path)} is not a plain file; name another one to write to")
    start = f".{target.name[:100]}.{_host()}-"
    temporary = target.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent, start)
        if callable(data):
            data(temporary)
            size = temporary.stat().st_size
        with temporary.open("ab") as file:
            file.write(b"" if callable(data) else data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as problem:
        raise _unwritable(path, problem, size) from problem
    finally:
        # a missing parent, or one that is a file, must not hide the first error
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path


def _host() -> str:
    """Return a short name of this machine, since process numbers are only unique on one machine."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _remove_abandoned(folder: Path, start: str) -> None:
    """Remove the temporary files whose process on this machine is gone."""
    for path in folder.iterdir():
        if path.name.startswith(start) and path.name.endswith(".tmp"):
            writer = path.name.removeprefix(start).partition("-")[0]
            if writer.isdecimal() and not _runs(int(writer)):
                path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Tell whether a process of this machine runs; True where that cannot be known."""
    if sys.platform == "win32":  # there a signal of number 0 ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock `folder` against other processes that lock it too.

    The system gives the lock up with the process, however that ends, and no file is left behind.
    Where a file system has no locks, none is held.

    Raises:
        FileError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise FileError(
                f"another process is writing the {what} in {shown(folder)}; wait until it has "
                "ended, or name another folder"
            ) from problem
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it, so that a crash loses at most the last line."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as problem:
        raise _unwritable(path, problem, len(line)) from problem


def writable_folder(folder: Path) -> Path:
    """Make `folder`, and check before long work that a file can be written in it."""
    probe = folder / ".normscope-probe"
    try:
        write_whole(probe, b"x")
    except FileError as problem:
        raise FileError(str(problem).replace(shown(probe), shown(folder))) from problem
    probe.unlink(missing_ok=True)
    return folder


def read_bytes(path: Path, what: str = "file") -> bytes:
    """Read all of a file.

    Raises:
        FileError: missing, a folder or a pipe, unreadable, or empty.
    """
    try:
        if path.is_dir():
            raise FileError(f"{shown(path)} is a folder, not a {what}; name the {what} in it")
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise FileError(f"{shown(path)} is no plain file; copy the {what} to one")
        data = path.read_bytes()
    except FileNotFoundError as problem:
        raise FileError(f"there is no {what} {shown(path)}; check the path") from problem
    except OSError as problem:
        raise FileError(f"{shown(path)} cannot be read: {problem.strerror}") from problem
    if not data:
        raise FileError(f"{shown(path)} is empty; a {what} with content is needed")
    return data


def read_text(path: Path, what: str = "file") -> str:
    """Read the text of a UTF-8 file.

    Raises:
        FileError: as `read_bytes`, or where it is not text or blank.
    """
    try:
        text = read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise FileError(f"{shown(path)} is not text; a UTF-8 {what} is needed") from problem
    if not text.strip():
        raise FileError(f"{shown(path)} is empty; a {what} with content is needed")
    return text


def _unwritable(path: Path, problem: OSError, size: int) -> FileError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return FileError(
            f"no space left to write {shown(path)}: {size:,} bytes needed, {free:,} free; "
            "make room or name another folder"
        )
    return FileError(
        f"{shown(path)} cannot be written: {problem.strerror}; name a folder you may write to"
    )
