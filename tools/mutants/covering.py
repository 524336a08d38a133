"""Which tests run a line: read from the coverage that `contexts.py` measured."""

import ast
import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import drawing
from coverage import CoverageData


class Covering:
    """Lines of source and the tests that run them."""

    def __init__(self, folder: Path) -> None:
        """Read what was measured in FOLDER."""
        follow(folder)
        self._data = CoverageData(basename=str(folder / ".coverage"))
        self._data.read()
        self._users: defaultdict[str, set[str]] = defaultdict(set)
        for path in folder.glob("users-*.json"):
            for context, tests in json.loads(path.read_text()).items():
                self._users[context] |= set(tests)
        self.seconds: dict[str, float] = {}
        for line in (folder / "seconds.jsonl").read_text().splitlines():
            name, seconds = json.loads(line)
            self.seconds[name] = seconds
        self._contexts: defaultdict[str, defaultdict[int, list[str]]]  # module -> line -> contexts
        self._contexts = defaultdict(lambda: defaultdict(list))
        self.lines: Counter[str] = Counter()  # how many of the mutated rooms each test runs
        for name in self._data.measured_files():  # of one copy of the tree or another
            for line, contexts in self._data.contexts_by_lineno(name).items():
                self._contexts[_module(name)][line] += contexts
        for lines in self._contexts.values():
            for tests in map(self._tests, lines.values()):
                self.lines.update(tests)

    def keep(self, tests: Collection[str]) -> None:
        """Forget the tests that are not among TESTS: some have gone or have another name."""
        self.seconds = {name: self.seconds[name] for name in self.seconds if name in tests}

    def _tests(self, contexts: Iterable[str]) -> set[str]:
        found: set[str] = set()
        left, seen = set(contexts), set[str]()
        while left:
            context = left.pop()
            if context in seen:
                continue
            seen.add(context)
            if context in self.seconds:
                found.add(context)
            left |= self._users.get(context, set())
        return found

    def of(self, mutant: drawing.Mutant) -> list[str]:
        """Return the tests that run what MUTANT changes, those that run the fewest lines first.

        A line of a function is its own; a line that runs at import belongs to the tests of the
        function or class that it heads, else to those of the functions that name what it binds.
        Where none of them is known, all of its file are taken.
        """
        contexts = self._contexts[mutant.module]
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
        # what only processes of a test run is known of none
        found = found or collect({x for body in bodies.values() for x in body})
        return sorted(found, key=lambda name: (self.lines[name], self.seconds[name], name))


def follow(folder: Path) -> None:
    """Move what was measured in FOLDER to the lines of the source as it is now."""
    path, measured = folder / "source.json", folder / ".coverage"
    now = {_module(str(file)): file.read_text(encoding="utf-8") for file in drawing.modules()}
    then = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    if measured.exists() and then != now:
        old, new = CoverageData(basename=str(measured)), CoverageData(basename=f"{measured}.moved")
        old.read()
        found: defaultdict[str, defaultdict[str, set[int]]]
        found = defaultdict(lambda: defaultdict(set))
        for name in old.measured_files():
            module = _module(name)
            places = _moves(then.get(module, ""), now.get(module, ""))
            for line, contexts in old.contexts_by_lineno(name).items():
                for context in contexts:
                    found[context][name] |= set(places.get(line, ()))
        for context, lines in found.items():
            new.set_context(context)
            new.add_lines(lines)
        new.write()
        old.close()
        new.close()
        Path(f"{measured}.moved").replace(measured)
    path.write_text(json.dumps(now), encoding="utf-8")


def _moves(before: str, after: str) -> dict[int, range]:
    """Return the lines of AFTER that each line of BEFORE has become."""
    found: dict[int, range] = {}
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        for line in range(a, b):
            same = c + line - a
            found[line + 1] = range(same + 1, same + 2) if tag == "equal" else range(c + 1, d + 1)
    return found


def _module(name: str) -> str:
    """Return a file's path in the tree, of one tree or another."""
    return name[name.rindex("src/normscope/") :]


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
