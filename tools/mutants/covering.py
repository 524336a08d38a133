"""Which tests run a line: read from the coverage that `contexts.py` measured."""

import ast
import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import drawing
from coverage import CoverageData

FAMILIAR = {"moments": "test_moments", "functional": "test_functional"}


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

        A line of a function is its own; a line that runs at import belongs to the tests of the function
        or class that it heads, else to those of the functions that name what it binds, else to all of
        its file.
        """
        path = drawing.ROOT / mutant.module
        key = next((name for p, name in self._files.items() if p.as_posix().endswith(mutant.module)), "")
        contexts: dict[int, list[str]] = self._data.contexts_by_lineno(key) if key else {}
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        bodies = {n: range(n.body[0].lineno, (n.end_lineno or 0) + 1) for n in functions}

        def collect(lines: set[int]) -> set[str]:
            return self._tests({c for line in lines for c in contexts.get(line, ())})

        inside = [n for n in functions if mutant.start[0] in bodies[n]]
        if inside:
            statement = _statement(inside[-1], mutant.start[0])
            found = collect(set(range(statement[0], statement[1] + 1)))
        else:
            lines: set[int] = set()
            head = [
                n
                for n in ast.walk(tree)
                if isinstance(n, ast.FunctionDef | ast.ClassDef)
                and min([n.lineno, *(d.lineno for d in n.decorator_list)])
                <= mutant.start[0]
                <= (n.end_lineno or 0)
            ]
            if head:
                last = head[-1]
                lines = {x for n in functions for x in bodies[n] if last.lineno <= x <= (last.end_lineno or 0)}
            else:
                bound = {
                    t.id
                    for n in tree.body
                    if n.lineno <= mutant.start[0] <= (n.end_lineno or 0)
                    for t in ast.walk(n)
                    if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)
                }
                lines = {
                    x
                    for n in functions
                    if bound & {t.id for t in ast.walk(n) if isinstance(t, ast.Name)}
                    for x in bodies[n]
                }
            found = collect(lines) or collect({x for body in bodies.values() for x in body})
        return sorted(found, key=lambda name: (self.seconds[name], name))

    def uncovered(self, path: Path) -> set[int]:
        """Return the lines of a file that no test runs, by what coverage calls a statement."""
        from coverage.python import PythonParser  # type: ignore[attr-defined]

        parser = PythonParser(text=path.read_text(encoding="utf-8"))
        parser.parse_source()
        name = path.relative_to(drawing.ROOT).as_posix()
        key = next((n for p, n in self._files.items() if p.as_posix().endswith(name)), "")
        ran = set(self._data.lines(key) or ()) if key else set()
        return set(parser.statements) - set(parser.first_lines(ran)) - set(parser.excluded)


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
