"""Options of commands, from their signatures and docstrings."""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any

import typer

SECTION = re.compile(r"\n\n(?:Args|Attributes):\n(.*)", re.DOTALL)
ENTRY = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", re.DOTALL | re.MULTILINE)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make options of the parameters of a command; its docstring describes them.

    A parameter whose annotation is a dataclass is filled with one of these, made of its options;
    the docstring of the dataclass describes those.
    """
    own = _parameters(command)
    kinds: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}

    @wraps(command)
    def run(**values: Any) -> None:
        given = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in kinds.items()
        }
        command(**given, **values)

    described = _described(command)
    every: list[inspect.Parameter] = []
    for parameter in own:
        kind = kinds.get(parameter.name)
        every += [_option(parameter, described)] if kind is None else _of_fields(kind)
    # required ones may follow those with a default: all are given by name
    every = [p.replace(kind=p.KEYWORD_ONLY) for p in every]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in every}
    run.__doc__ = SECTION.sub("", inspect.getdoc(command) or "")
    return run


def _of_fields(kind: type) -> list[inspect.Parameter]:
    """Return the options of a dataclass, in its group of the help unless they name another one."""
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        described |= _described(base)
    shared = [_option(parameter, described) for parameter in _parameters(kind)]
    for parameter in shared:
        option = parameter.annotation.__metadata__[0]
        option.rich_help_panel = option.rich_help_panel or getattr(kind, "PANEL", None)
    return shared


def _parameters(source: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(source, eval_str=True).parameters.values())


def _described(source: Any) -> dict[str, str]:
    """Read the section of a docstring that describes arguments."""
    found = SECTION.search(inspect.cleandoc(source.__doc__ or ""))
    entries = ENTRY.findall(found[1] + "\n") if found else []
    return {name: " ".join(text.split()) for name, text in entries}


def _option(parameter: inspect.Parameter, described: dict[str, str]) -> inspect.Parameter:
    """Return a parameter as an option with its help; what is off by default is a plain flag."""
    annotation = parameter.annotation
    if not hasattr(annotation, "__metadata__"):
        annotation = Annotated[annotation, typer.Option()]
    option = annotation.__metadata__[0]
    named = option.param_decls or option.default is not ...  # by its first argument
    if parameter.default is False and not named:
        option.param_decls = (f"--{parameter.name.replace('_', '-')}",)
    option.help = option.help or described[parameter.name]
    return parameter.replace(annotation=annotation)
