"""Run tests against one mutant: in a child of a process that has imported torch, with a time limit.

The mutants live in a copy of the tree, so nothing of the tree itself is ever changed, and commands
that a test starts see the mutant too.
"""

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import drawing

HEAVY = (
    "torch", "torch.fx", "torch.export", "torch.utils.data", "torch.func", "numpy", "scipy.stats",
    "scipy.optimize", "scipy.linalg", "sklearn.preprocessing", "sklearn.model_selection", "typer",
    "rich.console", "jinja2", "safetensors.torch",
    "xml.dom.minidom", "pandas", "pyarrow", "PIL.Image", "importlib.metadata",
    "pytest", "pytest_timeout", "hypothesis.strategies", "_hypothesis_pytestplugin", "unittest.mock",
)  # fmt: skip
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
        for name in HEAVY:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        assert "normscope" not in sys.modules, "a child must import its own"
        # bytecode of the package and of the tests, rewritten asserts too
        self.run(["--collect-only", "tests"], 300)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    @contextlib.contextmanager
    def holding(self, mutant: drawing.Mutant) -> Iterator[None]:
        """Have the mutant in place of its file."""
        path = self.root / mutant.module
        original = drawing.ROOT / mutant.module
        path.write_text(mutant.source(), encoding="utf-8")
        try:
            yield
        finally:
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

    def _child(self, tests: list[str], output: int) -> None:
        code = 70
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.root)
            sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
            sys.path[:0] = [str(self.root), str(self.root / "src")]
            import pytest

            code = int(pytest.main([*QUIET, *tests]))
        except BaseException as error:
            os.write(2, f"ERROR {error!r}\n".encode())
        finally:
            os._exit(code)


def stages(
    module: str, tests: list[str], seconds: dict[str, float], budget: float
) -> Iterator[list[str]]:
    """Yield tests of BUDGET seconds in three parts; most mutants die in the first, which is short.

    The files whose path has the module's words come first, then those with many of the tests. Of a
    parametrised test the two quickest are taken.
    """
    words = set(re.findall(r"[a-z]+", module)) - {"src", "normscope", "py"}
    taken: Counter[str] = Counter()
    files: defaultdict[str, list[str]] = defaultdict(list)
    for name in tests:  # the quickest first
        function = name.partition("[")[0]
        taken[function] += 1
        if taken[function] <= 2:
            files[name.partition("::")[0]].append(name)
    ranked = sorted(
        files, key=lambda file: (-len(words & set(re.findall(r"[a-z]+", file))), -len(files[file]))
    )
    left, rest = [(name, file) for file in ranked for name in files[file]], budget
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
