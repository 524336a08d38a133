"""Forwards that do the same operations in every call, as their source shows."""

import ast
import inspect
import textwrap
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from normscope.conversion.kinds import Refusal

STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.If, ast.Expr, ast.Pass)
EXPRESSIONS = (
    *(ast.Name, ast.Attribute, ast.Call, ast.keyword, ast.Constant, ast.BinOp, ast.UnaryOp),
    *(ast.Compare, ast.BoolOp, ast.IfExp, ast.Tuple, ast.List, ast.Subscript, ast.Slice),
)
MARKS = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
SIMPLE = (bool, int, float, str, type(None))
# what torch answers about itself, which a trace would fix
ASKING = ("is_", "get_", "set_", "_", "jit", "compiler", "utils", "random", "rand", "overrides")
Fact = tuple[Any, ...]


def read_straight(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes of a module on which the course of its forward may depend.

    Raises:
        Refusal: the forward takes more than one input, loops, calls functions that are not
            torch's, writes to the module, or reads what can change unseen.
    """
    forward: Any = type(module).forward
    if not isinstance(forward, FunctionType) or "forward" in module.__dict__:
        raise Refusal("its forward is no plain method")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward))).body[0]
    except (OSError, TypeError, SyntaxError) as problem:
        raise Refusal("the source of its forward cannot be read") from problem
    if not isinstance(tree, ast.FunctionDef) or tree.decorator_list or forward.__closure__:
        raise Refusal("its forward is no plain method")
    given = tree.args
    rest = (given.vararg, given.kwarg, *given.kwonlyargs, *given.defaults, *given.posonlyargs)
    if len(given.args) != 2 or any(part is not None for part in rest):
        raise Refusal("its forward takes more than one input")
    reader = _Reader(forward, given.args[0].arg)
    for statement in tree.body:
        reader.read(statement)
    names = tuple(dict.fromkeys(name for name in reader.own if name != "training"))
    for name in names:
        fact(module, name)
    return names


def fact(module: nn.Module, name: str) -> Fact:
    """Return what the course of a forward can depend on in an attribute.

    Raises:
        Refusal: it may be anything.
    """
    if name in module._modules:
        inner: Any = module._modules[name]
        if inner is None:
            return type(None), None
        size = len(inner) if hasattr(type(inner), "__len__") else None
        return type(inner), size, inner.__dict__.get("negative_slope")
    for table in (module._parameters, module._buffers):
        if name in table:
            return (table[name] is None,)
    value = module.__dict__.get(name, getattr(type(module), name, NotImplemented))
    if type(value) not in SIMPLE:
        raise Refusal(f"its forward uses {name!r}, which may change")
    return type(value), value


class _Reader:
    def __init__(self, forward: FunctionType, own_name: str) -> None:
        self.own_name, self.names = own_name, forward.__globals__
        self.local = set(forward.__code__.co_varnames)
        self.own: list[str] = []  # attributes of the module

    def read(self, node: ast.AST) -> None:
        """Note the attributes that a statement or expression uses."""
        if isinstance(node, MARKS):
            return
        if not isinstance(node, (*STATEMENTS, *EXPRESSIONS)):
            raise Refusal(f"its forward has a {type(node).__name__}")
        if isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Name):
            self._name(node)
        else:
            for child in ast.iter_child_nodes(node):
                if not (isinstance(node, ast.AnnAssign) and child is node.annotation):
                    self.read(child)

    def _attribute(self, node: ast.Attribute) -> None:
        path, base = [node.attr], node.value
        while isinstance(base, ast.Attribute):
            path, base = [base.attr, *path], base.value
        if not isinstance(node.ctx, ast.Load):
            raise Refusal(f"its forward writes to {'.'.join(path)!r}")
        if isinstance(base, ast.Name) and base.id == self.own_name:
            self.own.append(path[0])
            path = path[1:]
            if path:
                raise Refusal(f"its forward looks into {self.own[-1]!r}")
        elif isinstance(base, ast.Name):
            self._name(base)
        else:
            self.read(base)
        if any(part.startswith(ASKING) for part in path):
            raise Refusal(f"its forward asks for {'.'.join(path)!r}")

    def _name(self, node: ast.Name) -> None:
        if node.id == self.own_name:
            raise Refusal("its forward hands the module itself on")
        if node.id in self.local:
            return
        value = self.names.get(node.id)
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        if home != "torch" and not str(home).startswith("torch."):
            raise Refusal(f"its forward uses {node.id!r}, which is not torch's")
        if node.id.startswith(ASKING):
            raise Refusal(f"its forward asks for {node.id!r}")
