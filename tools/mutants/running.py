"""Run tests against one mutant: in a child of a process that has imported all, with a time limit.

The mutants live in a copy of the tree, so nothing of the tree itself is ever changed, and commands
that a test starts see the mutant too. In the child the function that holds the change gets the
mutant's code. What runs at import (defaults, class bodies, constants) takes a process of its own.
"""

import contextlib
import gc
import importlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType

import drawing

BROWSER = ("test_browser", "test_page", "test_playground", "test_gpu")  # left to the child
QUIET = (
    "-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=100",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # of what is in HEAVY
)  # fmt: skip


class Sandbox:
    """A copy of the tree in which one file at a time is a mutant."""

    def __init__(self, folder: Path) -> None:
        """Copy the tracked files into FOLDER."""
        self.root = folder / "tree"
        shutil.rmtree(self.root, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=drawing.ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (drawing.ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(drawing.ROOT / name, self.root / name)
        os.environ["PYTHONPATH"] = str(self.root / "src")
        os.environ["OMP_NUM_THREADS"] = "1"
        os.chdir(self.root)
        sys.path[:0] = [str(self.root), str(self.root / "src")]
        self._functions: defaultdict[tuple[str, str], list[FunctionType]] = defaultdict(list)
        self._import_all()
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def _import_all(self) -> None:
        """Import package and tests, and train once what many tests copy."""
        for place in ("src", "."):
            under = self.root / place / ("normscope" if place == "src" else "tests")
            for path in sorted(under.rglob("*.py")):
                name = path.relative_to(self.root / place).with_suffix("").as_posix()
                if path.stem in (*BROWSER, "__main__", "conftest"):
                    continue
                with contextlib.suppress(Exception):
                    importlib.import_module(name.replace("/", ".").removesuffix(".__init__"))
        patients = importlib.import_module("tests.doctor.patients")
        with contextlib.suppress(AttributeError):
            patients._healthy()
        for found in gc.get_objects():
            if isinstance(found, FunctionType) and "/src/normscope/" in found.__code__.co_filename:
                key = found.__code__.co_filename.rpartition("/src/")[2], found.__code__.co_qualname
                self._functions[key].append(found)
        gc.freeze()

    def _patched(self, mutant: drawing.Mutant) -> list[tuple[FunctionType, CodeType]] | None:
        """Return the functions that hold the change and their new code; None: it is in none."""
        file = mutant.module.removeprefix("src/")
        before = (drawing.ROOT / mutant.module).read_text(encoding="utf-8")
        old, new = (_codes(compile(text, file, "exec")) for text in (before, mutant.source()))
        if old.keys() != new.keys():
            return None
        differ = [name for name in old if _meaning(old[name]) != _meaning(new[name])]
        if not differ or "<module>" in differ or len(differ) > 1:
            return None
        functions = self._functions[file, differ[0]]
        code = new[differ[0]]
        if any(f.__code__.co_freevars != code.co_freevars for f in functions):
            return None
        return [(function, code) for function in functions] or None

    _change: list[tuple[FunctionType, CodeType]] | None = None
    _apart = False

    @contextlib.contextmanager
    def holding(self, mutant: drawing.Mutant) -> Iterator[None]:
        """Have the mutant in place of its file."""
        path = self.root / mutant.module
        original = drawing.ROOT / mutant.module
        path.write_text(mutant.source(), encoding="utf-8")
        self._change = self._patched(mutant)
        self._apart = self._change is None
        try:
            yield
        finally:
            self._change, self._apart = None, False
            shutil.copy2(original, path)

    def run(self, tests: list[str], limit: float) -> tuple[str, str]:
        """Run tests; return "passed", "failed", "time" or "crash", and what says why."""
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                self._child(tests, output.fileno())
            end = time.monotonic() + limit
            status = None
            try:
                while status is None and time.monotonic() < end:
                    done, state = os.waitpid(child, os.WNOHANG)
                    status = state if done else None
                    time.sleep(0.02)
            finally:  # also after Ctrl-C: nothing that a mutant started stays
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
                if status is None:
                    os.waitpid(child, 0)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if status is None:
            return "time", f"more than {limit:.0f} s"
        if os.WIFSIGNALED(status):
            return "crash", f"signal {os.WTERMSIG(status)}"
        code = os.WEXITSTATUS(status)
        why = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))]
        if code not in (0, 1, 2):  # the run itself went wrong, which says nothing of the tests
            return "nothing", said[-500:]
        return ("passed" if code == 0 else "failed"), (why[-1][:300] if why else said[-300:])

    def collected(self, tests: Iterable[str]) -> set[str]:
        """Return the names of all tests of the files of TESTS, as they are now."""
        files = sorted({name.partition("::")[0] for name in tests})
        here = [name for name in files if (self.root / name).exists()]
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *here]
        said = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        return set(said.stdout.splitlines())

    def _child(self, tests: list[str], output: int) -> None:
        code = 70
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.dont_write_bytecode = True
            if self._apart:
                os.execv(sys.executable, [sys.executable, "-m", "pytest", *QUIET, *tests])
            for function, changed in self._change or ():
                function.__code__ = changed
            import pytest

            code = int(pytest.main([*QUIET, *tests]))
        except BaseException as error:
            os.write(2, f"ERROR {error!r}\n".encode())
        finally:
            os._exit(code)


def _codes(module: CodeType) -> dict[str, CodeType]:
    """Return the code of the module, of its classes and of their functions, by qualified name."""
    found, left = {"<module>": module}, [module]
    while left:
        for inner in left.pop().co_consts:
            if isinstance(inner, CodeType) and "<locals>" not in inner.co_qualname:
                found[inner.co_qualname] = inner
                if not inner.co_flags & inspect.CO_OPTIMIZED:  # a class
                    left.append(inner)
    return found


def _meaning(code: CodeType) -> tuple[object, ...]:
    """Return what tells codes apart; of a module and of classes without what is told apart itself.

    Functions stand in the constants of what holds them.
    """
    inside = code.co_flags & inspect.CO_OPTIMIZED
    constants = tuple(
        (_meaning(c) if inside or "<" in c.co_name else c.co_name)
        if isinstance(c, CodeType)
        else (type(c), c)
        for c in code.co_consts
    )
    return code.co_code, code.co_names, code.co_varnames, repr(constants)


def stages(
    module: str, tests: list[str], seconds: dict[str, float], budget: float
) -> Iterator[list[str]]:
    """Yield tests of BUDGET seconds in three parts; most mutants die in the first, which is short.

    The file that mirrors the module's comes first (`tests/probe/test_run.py` of `probe/run.py`),
    then those whose path has the most of the module's words, then those whose tests run the fewest
    lines. Of a parametrised test two cases come in their place, and the others behind its file's.
    """
    place = Path(module).relative_to("src/normscope")
    mirror = (Path("tests") / place.parent / f"test_{place.name}").as_posix()
    words = set(re.findall(r"[a-z]+", place.with_suffix("").as_posix()))
    taken: Counter[str] = Counter()
    files: defaultdict[str, list[str]] = defaultdict(list)  # in the order of their first tests
    cases: defaultdict[str, list[str]] = defaultdict(list)
    for name in tests:
        function = name.partition("[")[0]
        taken[function] += 1
        (files if taken[function] <= 2 else cases)[name.partition("::")[0]].append(name)
    ranked = sorted(
        files, key=lambda file: (file != mirror, -len(words & set(re.findall(r"[a-z]+", file))))
    )
    left, rest = [(name, file) for file in ranked for name in files[file] + cases[file]], budget
    for limit, most in ((4.0, 2), (12.0, 6), (rest, 1000)):
        part: list[str] = []
        used: set[str] = set()
        spent = 0.0
        for name, file in left:
            if spent + seconds[name] <= min(limit, rest) and (file in used or len(used) < most):
                part.append(name)
                used.add(file)
                spent += seconds[name]
        rest -= spent
        if not part and left and limit == 4.0:
            part = [left[0][0]]  # a single long test
        if part:
            chosen = set(part)
            left = [pair for pair in left if pair[0] not in chosen]
            yield part
