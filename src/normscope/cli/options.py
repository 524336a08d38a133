"""Options that several commands have, each written down once."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any


def with_options(kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as options; it gets them as its first argument."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(kind, eval_str=True).parameters
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        names = {field.name for field in fields(kind)}

        @wraps(command)
        def run(**values: Any) -> None:
            given = kind(**{name: values.pop(name) for name in names})
            command(given, **values)

        # required ones may follow those with a default: all are given by name
        both = [p.replace(kind=p.KEYWORD_ONLY) for p in (*shared.values(), *own)]
        run.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in both}
        return run

    return decorated
