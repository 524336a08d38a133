"""Which tests run a line: read from the coverage that `contexts.py` measured."""

import ast
import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import drawing
from coverage import CoverageData


class Covering:
    """Lines of source and the tests that run them."""

    def __init__(self, folder: Path) -> None:
        """Read what was measured in FOLDER."""
        self._data = CoverageData(basename=str(folder / ".coverage"))
        self._data.read()
        self._files = {Path(name): name for name in self._data.measured_files()}
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        for path in folder.glob("users-*.json"):
            for context, tests in json.loads(path.read_text()).items():
                self._users[context] |= set(tests)
        self.seconds: dict[str, float] = {}
        for line in (folder / "seconds.jsonl").read_text().splitlines():
            name, seconds = json.loads(line)
            self.seconds[name] = seconds

    @cached_property
    def _known(self) -> set[str]:
        """Tests that are still there: a file may have lost some since it was measured."""
        texts: dict[str, str] = {}
        known = set()
        for name in self.seconds:
            path, _, test = name.partition("::")
            if path not in texts:
                file = drawing.ROOT / path
                texts[path] = file.read_text(encoding="utf-8") if file.exists() else ""
            if f"def {test.rpartition('::')[2].partition('[')[0]}(" in texts[path]:
                known.add(name)
        return known

    def _tests(self, contexts: set[str]) -> set[str]:
        found: set[str] = set()
        left, seen = set(contexts), set()
        while left:
            context = left.pop()
            if context in seen:
                continue
            seen.add(context)
            if context in self._known:
                found.add(context)
            left |= self._users.get(context, set())
        return found

    def of(self, mutant: drawing.Mutant) -> list[str]:
        """Return the tests that run what MUTANT changes, the quickest first.

        A line of a function is its own; a line that runs at import belongs to the tests of the
        function or class that it heads, else to those of the functions that name what it binds,
        else to all of its file.
        """
        contexts = self._contexts(mutant.module)
        tree = ast.parse((drawing.ROOT / mutant.module).read_text(encoding="utf-8"))
        line = mutant.start[0]
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        bodies = {n: range(n.body[0].lineno, (n.end_lineno or 0) + 1) for n in functions}

        def collect(lines: set[int]) -> set[str]:
            return self._tests({c for line in lines for c in contexts.get(line, ())})

        if inside := [n for n in functions if line in bodies[n]]:
            first, last = _statement(inside[-1], line)
            found = collect(set(range(first, last + 1)))
        else:
            if heads := [n for n in ast.walk(tree) if _heads(n, line)]:
                span = range(heads[-1].lineno, (heads[-1].end_lineno or 0) + 1)
                users = [n for n in functions if n.lineno in span]
            else:
                bound = {
                    name.id
                    for n in tree.body
                    if n.lineno <= line <= (n.end_lineno or 0)
                    for name in ast.walk(n)
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
                }
                users = [n for n in functions if bound & _names(n)]
            found = collect({x for n in users for x in bodies[n]})
            found = found or collect({x for body in bodies.values() for x in body})
        return sorted(found, key=lambda name: (self.seconds[name], name))

    def _contexts(self, module: str) -> dict[int, list[str]]:
        found: defaultdict[int, list[str]] = defaultdict(list)
        for path, name in self._files.items():
            if path.as_posix().endswith(module):  # of one tree or another
                for line, contexts in self._data.contexts_by_lineno(name).items():
                    found[line] += contexts
        return found


def _heads(node: ast.AST, line: int) -> bool:
    """Say whether LINE is of a function or class, decorators included."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        return False
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return first <= line <= (node.end_lineno or 0)


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def _statement(function: ast.FunctionDef, line: int) -> tuple[int, int]:
    """Return the lines of the innermost statement that has LINE, of a block only its head."""
    best = (line, line)
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            last = (node.end_lineno or 0) if not body else body[0].lineno - 1
            if node is not function and line <= max(last, node.lineno):
                best = (node.lineno, max(last, node.lineno))
    return best
