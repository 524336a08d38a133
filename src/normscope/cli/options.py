"""Options that several commands have, each written down once."""

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make options of the fields of every dataclass that a command takes.

    A parameter whose annotation is a dataclass is filled with one of these, made of its options.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    kinds: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}

    @wraps(command)
    def run(**values: Any) -> None:
        given = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in kinds.items()
        }
        command(**given, **values)

    every: list[inspect.Parameter] = []
    for parameter in own:
        kind = kinds.get(parameter.name)
        every += [parameter] if kind is None else _of_fields(kind)
    # required ones may follow those with a default: all are given by name
    every = [p.replace(kind=p.KEYWORD_ONLY) for p in every]
    run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in every}
    return run


def _of_fields(kind: type) -> list[inspect.Parameter]:
    """Return the options of a dataclass, in its group of the help unless they name another."""
    shared = list(inspect.signature(kind, eval_str=True).parameters.values())
    for parameter in shared:
        option = parameter.annotation.__metadata__[0]
        option.rich_help_panel = option.rich_help_panel or getattr(kind, "PANEL", None)
    return shared
