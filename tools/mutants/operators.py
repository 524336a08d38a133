"""The ways in which a source file is changed: those of cosmic-ray, and four that it has not.

Strings are not changed: they are keys of messages, names of layers and texts, which other tests hold.
Of the replacements of an operator those are left out that no float or tensor takes (`<<` for `+`),
because a TypeError is no merit of a test.
"""

from collections.abc import Iterator
from typing import Any

import parso
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword, Name

Position = tuple[tuple[int, int], tuple[int, int]]

BINARY = {  # operator -> what may stand in its place
    "Add": ("Sub", "Mul"),
    "Sub": ("Add",),
    "Mul": ("Div", "Add"),
    "Div": ("Mul", "FloorDiv"),
    "FloorDiv": ("Div", "Mul"),
    "Mod": ("FloorDiv",),
    "Pow": ("Mul",),
    "BitOr": ("BitAnd",),
    "BitAnd": ("BitOr",),
}
NEIGHBOURS = {  # names of functions whose neighbour has the same signature
    "min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin",
    "sum": "mean", "mean": "sum", "append": "remove", "floor": "ceil", "ceil": "floor",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "zeros": "ones", "ones": "zeros",
    "new_zeros": "new_ones", "new_ones": "new_zeros", "sqrt": "square", "square": "sqrt",
    "exp": "log", "log": "exp", "isfinite": "isnan", "isnan": "isfinite", "train": "eval",
    "startswith": "endswith", "endswith": "startswith", "minimum": "maximum", "maximum": "minimum",
}  # fmt: skip


class NodeOperator(Operator):  # type: ignore[misc]
    """A change of one node, where `matches` says so."""

    def matches(self, node: Any) -> bool:
        """Say whether the operator changes NODE."""
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        """Yield the position of a node that is changed in one way."""
        if self.matches(node):
            yield node.start_pos, node.end_pos

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Return no examples: cosmic-ray tests its own operators with them."""
        return ()


class RemoveStatement(NodeOperator):
    """`pass` for a call, for `a.b = ...`, `a[b] = ...` and `a += ...`."""

    def matches(self, node: Any) -> bool:
        """Take statements that work by what they change, not by a name that they bind."""
        if node.parent is None or node.parent.type != "simple_stmt":
            return False
        if node.type in ("atom_expr", "power"):
            return True
        return node.type == "expr_stmt" and (
            node.children[0].type in ("atom_expr", "power")
            or node.children[1].type in ("augassign", "operator")
            and node.children[1].get_code().strip() not in ("=", ":")
        )

    def mutate(self, node: Any, index: int) -> Any:
        """Put `pass` there."""
        return Keyword("pass", node.start_pos, prefix=node.get_first_leaf().prefix)


class ReturnNone(NodeOperator):
    """`return None` for `return` of anything else."""

    def matches(self, node: Any) -> bool:
        """Take returns of a value."""
        return node.type == "return_stmt" and node.children[1].get_code().strip() != "None"

    def mutate(self, node: Any, index: int) -> Any:
        """Put None there."""
        node.children[1:] = [Keyword("None", node.start_pos, prefix=" ")]
        return node


class RemoveArgument(NodeOperator):
    """A call without one of its arguments by name, so with the default."""

    def matches(self, node: Any) -> bool:
        """Take `name=value` in a call."""
        return (
            node.type == "argument"
            and node.children[1].type == "operator"
            and node.children[1].value == "="
            and node.parent.type == "arglist"
        )

    def mutate(self, node: Any, index: int) -> Any:
        """Put `**{}` there: no argument, and the commas stay right."""
        return parso.parse(node.get_first_leaf().prefix + "**{}").children[0]


class ReplaceMembership(NodeOperator):
    """`in` for `not in` and the other way round."""

    def matches(self, node: Any) -> bool:
        """Take the two operators of membership in a comparison."""
        if node.parent is None or node.parent.type != "comparison":
            return False
        return node.get_code().split() in (["in"], ["not", "in"])

    def mutate(self, node: Any, index: int) -> Any:
        """Turn it round."""
        return Keyword("not in" if node.get_code().strip() == "in" else "in", node.start_pos, " ")


class ReplaceNeighbour(NodeOperator):
    """`max` for `min`, `all` for `any`, and others with the same arguments."""

    def matches(self, node: Any) -> bool:
        """Take the name of a function that is called."""
        if not isinstance(node, Name) or node.value not in NEIGHBOURS:
            return False
        after = node.get_next_leaf()
        return after is not None and after.value == "(" and node.parent.type != "funcdef"

    def mutate(self, node: Any, index: int) -> Any:
        """Call its neighbour."""
        return Name(NEIGHBOURS[node.value], node.start_pos, node.prefix)


OWN = {
    operator.__name__: operator
    for operator in (
        RemoveStatement, ReturnNone, RemoveArgument, ReplaceMembership, ReplaceNeighbour,
    )
}  # fmt: skip


def by_name() -> dict[str, Operator]:
    """Return all operators, cosmic-ray's first."""
    found: dict[str, Operator] = {}
    for name in sorted(operator_names()):
        words = name.partition("/")[2].split("_")
        if words[0] in ("VariableInserter", "VariableReplacer"):
            continue  # they replace by a random name or number
        if words[0] == "ReplaceBinaryOperator" and words[2] not in BINARY.get(words[1], ()):
            continue
        if words[0] == "ReplaceComparisonOperator" and (
            {"Is", "IsNot"} & set(words[1:]) and set(words[1:]) != {"Is", "IsNot"}
        ):
            continue  # no order of objects; and `==` of enums, None and modules is `is`
        found[name.partition("/")[2]] = get_operator(name)()
    return found | {name: operator() for name, operator in OWN.items()}


def family(name: str) -> str:
    """Return the name without what is replaced by what."""
    return name.partition("_")[0]


