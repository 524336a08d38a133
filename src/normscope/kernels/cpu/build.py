"""The C++ kernels as a library: compiled once by the user's compiler, then found on disk.

A library is kept by torch's version, its own source, the flags and the processor. It is written
under another name and renamed whole, so that processes that build at once, or a build that is
killed, leave nothing that another could load by half; its last bytes are its checksum.
"""

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fPIC",
    "-ffp-contract=off",  # the same bits from every loop
    "-fno-math-errno",
    "-fno-trapping-math",
    "-DAT_PER_OPERATOR_HEADERS",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
    *(("-fopenmp", "-DAT_PARALLEL_OPENMP=1") if sys.platform == "linux" else ("-fopenmp-simd",)),
    *os.environ.get("NORMSCOPE_CXXFLAGS", "").split(),  # the user's own, which come last
)
LIBRARIES = ("-ltorch_python", "-ltorch_cpu", "-lc10")
if sys.platform == "darwin":
    LIBRARIES += ("-undefined", "dynamic_lookup")  # what Python itself has
MODULE = "normscope_kernels"  # as which Python imports the library
DIGEST = 32  # bytes
STALE = 3600.0  # seconds after which a folder of a build that never ended is removed
TIMEOUT = 600.0  # seconds for the compiler

log = logging.getLogger("normscope")


def loaded() -> bool:
    """Load the library, building it where that was never done; whether that worked.

    Where it cannot be, that is said once and remembered for this process.
    """
    if not _state.done:
        with _state.lock:
            if not _state.done:  # another thread may have been quicker
                _state.obstacle = _attempt()
                _state.done = True
    return _state.obstacle is None


class _State:
    """What became of the library in this process."""

    def __init__(self) -> None:
        self.done = False
        self.obstacle: str | None = None
        self.functions: ModuleType | None = None
        self.lock = threading.Lock()


_state = _State()


def _attempt() -> str | None:
    """Load the library; why not, where that fails."""
    try:
        _load()
    except (BuildError, OSError) as problem:
        log.warning(
            "normscope's CPU kernels cannot be used, so the slower reference serves: %s", problem
        )
        return str(problem)
    return None


def explanation() -> str:
    """Where the library is, or why there is none; nothing is built."""
    if _state.obstacle is not None:
        return f"none: {_state.obstacle}"
    try:
        path = library()
    except BuildError as problem:
        return f"none: {problem}"
    if is_sound(path):
        return f"built, {path}"
    found = compiler()
    if found is None:
        return "none, and no C++ compiler to build them: install g++, or set CXX to one"
    return f"not built yet: {found} does it at their first use, or `normscope env --warm`"


def obstacle() -> str | None:
    """Why the library cannot be used, as a phrase; None where it can."""
    loaded()
    return _state.obstacle


def direct(name: str) -> Callable[..., Any] | None:
    """Return a function of the loaded library that Python calls itself; None without headers."""
    return getattr(_state.functions, name, None)


class BuildError(RuntimeError):
    """The library cannot be built."""


def library() -> Path:
    """Where the library of this torch, source and processor is kept."""
    return _folder() / f"{_key()}.so"


def folders() -> Iterator[Path]:
    """List the folders that may keep it, best first."""
    named = os.environ.get("NORMSCOPE_CACHE_DIR")
    if named:
        yield Path(named)
        return
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # nobody has a home
        yield (Path(home) if home else Path.home() / ".cache") / "normscope"
    yield Path(tempfile.gettempdir()) / f"normscope-{os.getuid() if hasattr(os, 'getuid') else 0}"


def compiler() -> str | None:
    """Find the C++ compiler: $CXX, else c++ or g++ or clang++."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def _folder() -> Path:
    problems = []
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if hasattr(os, "getuid"):
                about = folder.stat()
                if about.st_uid not in (os.getuid(), 0) or about.st_mode & stat.S_IWOTH:
                    raise PermissionError("others may write to it")
            if is_sound(folder / f"{_key()}.so") or os.access(folder, os.W_OK):
                return folder
            raise PermissionError("it cannot be written")
        except OSError as problem:
            problems.append(f"{folder}: {problem.strerror or problem}")
    raise BuildError(
        f"no folder can keep the compiled library ({'; '.join(problems)}); set "
        "NORMSCOPE_CACHE_DIR to one that you can write to"
    )


@cache
def _key() -> str:
    digest = hashlib.blake2b(digest_size=12)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    python = sys.implementation.cache_tag, header.exists()
    version = torch.__version__, torch.version.git_version, python, FLAGS, platform.machine()
    digest.update(repr(version).encode())
    for path in (*SOURCES, *HEADERS):
        digest.update(path.name.encode() + path.read_bytes())
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = ("model name", "flags", "Features", "CPU part")
        digest.update("".join(sorted({s for s in lines if s.startswith(kinds)})).encode())
    return digest.hexdigest()


def is_sound(path: Path) -> bool:
    """Whether a library is there and whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) > DIGEST and hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:]


def _load() -> None:
    path = library()
    if not is_sound(path):
        build(path)
    try:
        torch.ops.load_library(path)
    except OSError as problem:  # it needs what this system has not
        raise BuildError(f"the compiled library does not load: {problem}") from None
    with contextlib.suppress(ImportError):  # Python's headers were missing
        _state.functions = _imported(path)


def _imported(path: Path) -> ModuleType:
    """Return the library as an extension module."""
    loader = ExtensionFileLoader(MODULE, str(path))
    module = module_from_spec(ModuleSpec(MODULE, loader, origin=str(path)))
    loader.exec_module(module)
    return module


def build(path: Path) -> None:
    """Compile the library and put it in its place.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    found = compiler()
    if found is None:
        raise BuildError("no C++ compiler was found; install g++, or set CXX to one")
    log.warning(
        "compiling normscope's CPU kernels (once for this torch and processor, about a minute; "
        "`normscope env --warm` does it ahead)"
    )
    _sweep(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
        made = _compile(found, Path(folder))
        with made.open("ab") as file:
            file.write(hashlib.sha256(made.read_bytes()).digest())
        made.replace(path)


def _compile(found: str, folder: Path) -> Path:
    headers = Path(torch.__file__).parent / "include"
    folders = headers, headers / "torch/csrc/api/include", sysconfig.get_path("include")
    includes = [f"-I{path}" for path in folders]
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = (
            [found, *FLAGS, *includes, "-c", str(source), "-o", str(into)]
            for source, into in zip(SOURCES, objects, strict=True)
        )
        list(pool.map(_run, commands))
    linked = folder / "library.so"
    libraries = f"-L{Path(torch.__file__).parent / 'lib'}", *LIBRARIES
    _run([found, "-shared", *FLAGS, *map(str, objects), "-o", str(linked), *libraries])
    return linked


def _run(command: list[str]) -> None:
    """Run the compiler; what it says goes into the error."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as problem:
        raise BuildError(f"the compiler took more than {TIMEOUT:.0f} s") from problem
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip().splitlines() or ["no word"]
        wrong = next((line for line in said if "error" in line), said[-1])
        raise BuildError(f"the compiler failed: {wrong[:300]}")


def _sweep(folder: Path) -> None:
    """Remove what builds left that were killed."""
    for path in folder.glob("building-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                shutil.rmtree(path, ignore_errors=True)
