"""The help of commands, in English or Chinese: options in groups, at most 80 columns."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from typer import Exit
from typer.core import TyperCommand, TyperGroup

from normscope.cli.language import helped, spoken
from normscope.report.messages import Lang
from normscope.report.terminal import wrapped

NAMES = 26  # columns of names; the text of a longer one begins in the next line
KINDS = {  # what versions of Typer call the type of a value, and what a reader understands
    "<str>": "TEXT",
    "<path>": "PATH",
    "<int>": "N",
    "<int range>": "N",
    "<float>": "X",
    "<float range>": "X",
    "<list[str]>": "TEXT",
    "INTEGER RANGE": "N",
    "FLOAT RANGE": "X",
    "INTEGER": "N",
    "FLOAT": "X",
}
WORDS = ("Usage: ", "[OPTIONS]", "COMMAND [ARGS]...", ":", " ", "; ", "default: {}", "required")
PANELS = ("Arguments", "Options", "Output")  # the first, those without a title, the last


class Command(TyperCommand):
    """A command whose help is in the user's language."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into the formatter."""
        formatter.write("\n".join(lines(self, ctx, formatter.width)) + "\n")


class Stopped(Exception):
    """Ctrl-C or SIGTERM came, and the command had nothing of its own to say."""


@contextmanager
def stopped() -> Iterator[None]:
    """Raise Stopped for an interruption, also for one that others turned into an error of theirs.

    Typer would end on it without a word.
    """
    try:
        yield
    except Exit:
        raise
    except BaseException as problem:
        seen: BaseException | None = problem
        while seen is not None:
            if isinstance(seen, KeyboardInterrupt):
                raise Stopped from problem
            seen = seen.__cause__ or seen.__context__
        raise


class Group(TyperGroup):
    """The application, whose help is in the user's language too."""

    language: Lang = "en"

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options; see `stopped`."""
        with stopped():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see `stopped`."""
        with stopped():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, **settings: Any) -> Any:  # type: ignore[override]
        """Run the command that the arguments name."""
        self.language = spoken(args)
        return super().main(args, **settings)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into the formatter."""
        formatter.write("\n".join(lines(self, ctx, formatter.width)) + "\n")


def lines(command: Any, context: Any, width: int) -> Iterator[str]:
    """Write the help of a command, line by line."""
    language = context.find_root().command.language
    pieces = (re.sub("[{}]", "", piece) for piece in command.collect_usage_pieces(context))
    usage = [context.command_path, *(helped(piece, language) for piece in pieces)]
    yield helped("Usage: ", language) + " ".join(usage)
    for paragraph in (command.help or "").split("\n\n"):
        yield ""
        yield from wrapped(helped(" ".join(paragraph.split()), language), width)
    panels = _options(command, context, language)
    if isinstance(command, TyperGroup):
        panels = _commands(command, context, language) | panels
    for title, rows in panels.items():
        yield ""
        yield helped(title, language) + helped(":", language)
        names = min(NAMES, max(cell_len(name) for name, _ in rows) + 2)
        for name, text in rows:
            first = f"  {name}"
            for line in wrapped(text, width - names - 2):
                gap = names + 2 - cell_len(first)
                if gap < 1:
                    yield first
                    first, gap = "", names + 2
                yield first + " " * gap + line
                first = ""
            if first:
                yield first
    if command.epilog:
        yield ""
        yield from wrapped(helped(command.epilog, language), width)


def texts(command: Any, context: Any) -> Iterator[str]:
    """Yield every English text in the help of a command, as a key of the translations."""
    yield from (" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n"))
    yield from filter(None, [command.epilog, command.rich_help_panel])
    if isinstance(command, TyperGroup):
        yield from (*PANELS, *WORDS)
    for parameter in command.get_params(context):
        yield from filter(None, [getattr(parameter, "help", None), _panel(parameter)])
        shown = getattr(parameter, "show_default", None)
        if isinstance(shown, str) and (" " in shown or shown.isalpha()):  # no number
            yield shown


def _panel(parameter: Any) -> str:
    """Return the group of an option; one without a group is of this command alone."""
    named: str | None = getattr(parameter, "rich_help_panel", None)
    first, others, last = PANELS
    if parameter.name == "help":
        return last
    return named or (first if parameter.param_type_name == "argument" else others)


def _options(command: Any, context: Any, language: Lang) -> dict[str, list[tuple[str, str]]]:
    panels: dict[str, list[tuple[str, str]]] = {PANELS[0]: []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, whole = record
        english = parameter.help or ""
        more = whole.removeprefix(english).strip().strip("\\[]")
        text = helped(english, language)
        if more:
            said = (_fact(fact, language) for fact in more.split("; "))
            text += f"{helped(' ', language)}[{helped('; ', language).join(said)}]"
        for kind, shown in KINDS.items():
            name = name.replace(kind, shown)
        panel = _panel(parameter)
        panels.setdefault(panel, []).append(
            (name.partition(" ")[0] if panel == PANELS[0] else name, text)
        )
    last = panels.pop(PANELS[-1])
    return {title: rows for title, rows in panels.items() if rows} | {PANELS[-1]: last}


def _fact(fact: str, language: Lang) -> str:
    """Translate a default, a range, or that an option is required."""
    word, sign, value = fact.partition(": ")
    if not sign:
        return helped(fact, language)
    return helped(f"{word}: {{}}", language).format(helped(value.strip("()"), language))


def _commands(group: Any, context: Any, language: Lang) -> dict[str, list[tuple[str, str]]]:
    panels: dict[str, list[tuple[str, str]]] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        summary = (command.help or "").partition("\n\n")[0]
        rows = panels.setdefault(command.rich_help_panel or "Commands", [])
        rows.append((name, helped(" ".join(summary.split()), language)))
    return panels
