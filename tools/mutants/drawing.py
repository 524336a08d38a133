"""Which mutants there are, and a draw of them.

A draw is stratified: every file gets a share by its lines of code, a line of the file is drawn,
then one of the kinds of change that the line allows, then one change. So a long expression counts
as much as a short one, and five replacements of one `<` as much as the one removal of a call.
"""

import ast
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import operators
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("moments*.py", "functional.py", "probe/**/*.py", "doctor/**/*.py", "conversion/**/*.py")

# What is left out of a draw, because no user could see the change.
SAYS = frozenset({"warn", "warning"})
DECLARES = frozenset({"dataclass", "overload", "cache", "lru_cache", "cached_property", "wraps"})
SELF_CHECKS = frozenset({"strict", "stacklevel", "slots", "frozen", "kw_only", "init", "repr"})


@dataclass(frozen=True)
class Mutant:
    """A change of one place of one file."""

    module: str
    operator: str
    occurrence: int
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def name(self) -> str:
        """A name that stays while the file stays."""
        return f"{self.module}:{self.start[0]}:{self.operator}:{self.occurrence}"

    def source(self) -> str:
        """Return the changed file."""
        before = (ROOT / self.module).read_text(encoding="utf-8")
        after = mutate_code(before, operators.by_name()[self.operator], self.occurrence)
        assert after is not None
        return str(after)

    def to_dict(self) -> dict[str, object]:
        """Return what a line of the results holds."""
        return {"name": self.name, **asdict(self)}


def modules() -> list[Path]:
    """Return the files that are mutated."""
    source = ROOT / "src" / "normscope"
    return sorted({path for room in ROOMS for path in source.glob(room)})


def digest(paths: Iterable[Path]) -> str:
    """Return what tells a state of the files from another."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else node
    return getattr(function, "attr", None) or getattr(function, "id", "")


def excluded(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the parts of a file in which a change says nothing about the tests.

    Annotations; docstrings and other strings, so the texts of errors and warnings; imports and what
    stands under TYPE_CHECKING; `__all__`; what dataclasses declare; caches; the file's checks of
    itself (`assert`, `zip(strict=True)`); what raises AssertionError or NotImplementedError.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from filter(None, [node.returns])
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from (d for d in node.decorator_list if _called(d) in DECLARES)
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
            yield node
        if isinstance(node, ast.Raise) and node.exc is not None:
            if _called(node.exc) in ("AssertionError", "NotImplementedError"):
                yield node
            elif isinstance(node.exc, ast.Call):
                yield from (*node.exc.args, *node.exc.keywords)
        if isinstance(node, ast.Call) and _called(node) in SAYS:
            yield node
        if isinstance(node, ast.If) and _called(node.test) == "TYPE_CHECKING":
            yield node
        if isinstance(node, ast.keyword) and node.arg in SELF_CHECKS:
            yield node
        if isinstance(node, ast.Assign) and _called(node.targets[0]) == "__all__":
            yield node


def of_file(path: Path) -> list[Mutant]:
    """Return all mutants of a file that change its meaning."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)

    def place(line: int, offset: int) -> tuple[int, int]:  # ast counts bytes, parso characters
        return line, len(lines[line - 1].encode()[:offset].decode())

    outside = [
        (place(n.lineno, n.col_offset), place(n.end_lineno, n.end_col_offset))
        for n in excluded(tree)
    ]
    found: list[Mutant] = []
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators.by_name().items():
        occurrence = 0
        for node in nodes:
            for start, end in operator.mutation_positions(node):
                at = start
                if name == "RemoveDecorator":  # parso counts from the @, ast from the name
                    at = (start[0], start[1] + 1)
                marks = node.parent is not None and node.parent.type == "parameters"  # def f(*, a)
                if not marks and not any(a <= at and at < b for a, b in outside):
                    module = path.relative_to(ROOT).as_posix()
                    found.append(Mutant(module, name, occurrence, start, end))
                occurrence += 1
    return found


def is_change(mutant: Mutant) -> bool:
    """Say whether the mutant is Python, and another program than the original."""
    original = (ROOT / mutant.module).read_text(encoding="utf-8")
    try:
        return ast.dump(ast.parse(mutant.source())) != ast.dump(ast.parse(original))
    except SyntaxError:
        return False


def draw(count: int, seed: int, rooms: Sequence[str] = ()) -> list[Mutant]:
    """Draw COUNT mutants; of files whose path has one of ROOMS in it, where any are given."""
    chance = random.Random(seed)
    drawn_from = [
        p for p in modules() if not rooms or any(f"normscope/{r}" in str(p) for r in rooms)
    ]
    files = {path: of_file(path) for path in drawn_from}
    files = {path: mutants for path, mutants in files.items() if mutants}
    weights = {path: len({mutant.start[0] for mutant in m}) for path, m in files.items()}
    exact = {path: count * weight / sum(weights.values()) for path, weight in weights.items()}
    shares = {path: int(share) for path, share in exact.items()}
    rest = sorted(exact, key=lambda path: shares[path] - exact[path])
    for path in rest[: count - sum(shares.values())]:
        shares[path] += 1
    drawn: list[Mutant] = []
    for path, share in shares.items():
        places: dict[int, dict[str, list[Mutant]]] = defaultdict(lambda: defaultdict(list))
        for mutant in files[path]:
            places[mutant.start[0]][operators.family(mutant.operator)].append(mutant)
        lines = sorted(places)
        chance.shuffle(lines)
        taken = 0
        for line in lines:
            if taken == share:
                break
            kinds = places[line]
            mutant = chance.choice(kinds[chance.choice(sorted(kinds))])
            if is_change(mutant):
                drawn.append(mutant)
                taken += 1
    return drawn
