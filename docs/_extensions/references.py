"""Pages that are made of the program: one of each check, and the reference of the commands."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from generated import write
from sphinx.application import Sphinx

from normscope.cli import app as commands
from normscope.doctor.checks import CHECKS, Check
from normscope.report.messages import catalogue, say

NEEDS = {
    "checkpoint": "a checkpoint alone",
    "model": "the model",
    "data": "the model and data",
}
ROOT = Path(__file__).parents[2]
# what is marked already, calls such as eval() or normscope.guard(model, use="stored"), options
CODE = re.compile(
    r"(`[^`]+`|(?<![\w.])[\w.]*\w\([^()\s]*(?:, [^()\s]+)*\)|(?<![\w-])--[a-z][a-z-]+)"
)


def write_pages(app: Sphinx, config: Any) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    docs = Path(app.srcdir)
    pages = {f"{code}.md": check_page(code, check) for code, check in CHECKS.items()}
    write(docs / "checks", pages | {"index.md": check_index()}, (".md",))
    write(docs / "reference" / "commands", {"index.md": command_page()}, (".md",))


def title(code: str) -> str:
    """Return the title of a check, without its full stop."""
    return say("en", f"doctor.{code}.title").rstrip(".")


def check_page(code: str, check: type[Check]) -> str:
    """Write the page of one check, from its class and its messages."""
    body = say("en", f"doctor.{code}.explain")
    file = Path(inspect.getsourcefile(check) or "").resolve().relative_to(ROOT)
    line = inspect.getsourcelines(check)[1]
    fresh = check()
    facts = [
        ("Family", file.stem),
        ("Needs", NEEDS[check.needs]),
        ("Threshold", _thresholds(fresh)),
        ("Why that", check.source),
        ("Remedy of `repair`", f"`{check.repair}`" if check.repair else "none: advice only"),
        ("Code", f"`{file}`, line {line}"),
    ]
    rows = "\n".join(f"| {name} | {_cell(text)} |" for name, text in facts)
    advice = [say("en", key) for key in _keys(f"doctor.{code}.do")]
    found = [say("en", key) for key in _keys(f"doctor.{code}.found")]
    seen = [re.sub(r"{(\w+)}", r"<\1>", line) for line in found]
    chinese = [say("zh", f"doctor.{code}.{part}") for part in ("title", "explain", "do")]
    return f"""# {code}: {title(code)}

{_prose(body)}

## What to do

{_list(advice)}

## What a finding says

{_list(seen)}

In angle brackets stand the numbers of the case at hand.

## Facts

| | |
| --- | --- |
{rows}

In the terminal: `normscope explain {code}`. To ask only this: `normscope diagnose --select {code}`.

## 中文

**{_prose(chinese[0])}**

{_prose(chinese[1])}

{_prose(chinese[2])}
"""


def check_index() -> str:
    """Write the table of all checks."""
    rows = "\n".join(
        f"| [{code}]({code}.md) | {_cell(title(code))} | {NEEDS[check.needs]} | "
        f"{f'`{check.repair}`' if check.repair else ''} |"
        for code, check in CHECKS.items()
    )
    toc = "\n".join(CHECKS)
    return f"""# The checks of the doctor

`normscope diagnose` asks {len(CHECKS)} questions. What a check needs and does not get makes it
*not run*, never *passed*. Each page below is made of the check itself and of what it says.

| code | title | needs | remedy |
| --- | --- | --- | --- |
{rows}

```{{toctree}}
:hidden:

{toc}
```
"""


def command_page() -> str:
    """Write the reference of the command line, from the application's own help."""
    root: Any = typer.main.get_command(commands)
    parts = ["# Command line\n", f"{root.help}\n", f"{root.epilog}\n"]
    parts.append("| command | what it does |\n| --- | --- |")
    for name, command in root.commands.items():
        parts.append(f"| [`{name}`](#normscope-{name}) | {_cell(_summary(command))} |")
    for name, command in root.commands.items():
        parts += ["", *_command(name, command)]
    return "\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = " ".join(_place(p) for p in arguments)
    yield f"## normscope {name}\n"
    yield f"{_prose(inspect.cleandoc(command.help or ''))}\n"
    yield f"```text\nnormscope {name} {usage}{' ' if usage else ''}[OPTIONS]\n```\n"
    if arguments:
        yield "| argument | meaning |\n| --- | --- |"
        for parameter in arguments:
            yield f"| `{parameter.name.upper()}` | {_cell(parameter.help or '')} |"
        yield ""
    yield "| option | default | meaning |\n| --- | --- | --- |"
    for parameter in options:
        names = ", ".join(f"`{o}`" for o in [*parameter.opts, *parameter.secondary_opts])
        yield f"| {names} | {_default(parameter)} | {_cell(parameter.help or '')} |"


def _place(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _summary(command: Any) -> str:
    return inspect.cleandoc(command.help or "").partition("\n\n")[0]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if parameter.name == "lang":
        return "by locale"  # not that of whoever builds the documentation
    if value is None or value is False or value in ((), [], ""):
        return ""
    value = getattr(value, "value", value)
    return f"`{value}`"


def _thresholds(check: Check) -> str:
    warn = "every case is reported" if check.warn == 0 else f"reported above {check.warn:g}"
    return warn if check.fail == float("inf") else f"{warn}, an error above {check.fail:g}"


def _keys(start: str) -> list[str]:
    return sorted(k for k in catalogue() if k == start or k.startswith(f"{start}."))


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {_prose(line[:1].upper() + line[1:])}" for line in lines)


def _prose(text: str) -> str:
    """Keep formulas from being read as Markdown, and show calls, options and code as code."""
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"([*_<>|$\[\]])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part.strip('`')}`" for part in parts[1::2]]
    return "".join(parts)


def _cell(text: str) -> str:
    return _prose(text).replace("\n", " ")


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("config-inited", write_pages)
    return {"parallel_read_safe": True}
