"""Run the code of documentation pages, and compare what it prints with what the pages say.

    python tools/documented.py                       # every page
    python tools/documented.py docs/howto/eval.md    # this one
    python tools/documented.py --write docs/faq.md   # put in what is printed now

Blocks of a page that run, one after the other in one namespace:

- ```python: its output, where it prints, stands in the ```text block that follows.
- ```console: lines that begin with "$ " are commands of normscope; their output follows each.
- `<!-- run: ... -->`: Python that readers do not see; of its output they do, in the same way.

Where text or a line is left out stands "...". Numbers may differ by 5 % (or 0.02), words may not.
Code that is to be read and not run is a ```py block.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = ("_build", "tutorials", "checks", "commands")
LEFT = ("parity.md", "speed.md")  # their examples are of models and machines that are not here
BLOCK = re.compile(
    r"(?:<!-- run: *(?P<hidden>.*?) *-->\n|^```(?P<kind>python|console)\n(?P<code>.*?)^```\n)"
    r"(?P<gap>\n*)(?P<told>^```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
WIDTH = 92  # columns of a terminal, as the pages show it


def pages() -> list[Path]:
    """Return every page that is written by hand."""
    found = sorted(DOCS.rglob("*.md"))
    return [p for p in found if not {*GENERATED, *LEFT} & {*p.relative_to(DOCS).parts}]


def runs(page: Path) -> bool:
    """Tell whether a page has code that runs."""
    return BLOCK.search(page.read_text(encoding="utf-8")) is not None


def check(page: Path, *, write: bool = False) -> list[str]:
    """Run a page.

    Args:
        page: a Markdown file.
        write: put the outputs into the page, instead of comparing.

    Returns:
        What differs from the page, one text each.
    """
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    problems: list[str] = []
    pieces, end = [], 0
    with _prepared():
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            where = f"{page.relative_to(ROOT)}:{line}"
            pieces.append(text[end : found.start()])
            end = found.end()
            new = found[0]
            if found["kind"] == "console":
                new = "```console\n" + "".join(_session(found["code"], where, problems)) + "```\n"
                new += found["gap"] + (found["told"] or "")
            else:
                printed = _run(found["hidden"] or found["code"], names, where, problems)
                expected = found["output"]
                silent = found["hidden"] is not None and not printed  # the text is not its output
                if expected is not None and not silent and not alike(expected, printed):
                    problems.append(_difference(where, expected, printed))
                    start = found.start("output") - found.start()
                    new = found[0][:start] + printed + found[0][start + len(expected) :]
                elif expected is None and printed.strip() and not found["hidden"]:
                    problems.append(f"{where} prints, but no text block follows:\n{printed}")
                    new = (
                        f"{found[0][: len(found[0]) - len(found['gap'])]}\n```text\n{printed}```\n"
                    )
                    new += found["gap"]
            pieces.append(new)
    if write:
        page.write_text("".join(pieces) + text[end:], encoding="utf-8")
    return problems


def alike(expected: str, printed: str) -> bool:
    """Tell whether an output is what a page says, up to its "..." and the last digits."""
    left, right = (
        [line.rstrip() for line in t.strip("\n").splitlines()] for t in (expected, printed)
    )
    return _lines_alike(left, right)


def _lines_alike(left: list[str], right: list[str]) -> bool:
    if not left:
        return not right
    if left[0].strip() == "...":
        return any(_lines_alike(left[1:], right[i:]) for i in range(len(right) + 1))
    return bool(right) and _line_alike(left[0], right[0]) and _lines_alike(left[1:], right[1:])


def _line_alike(left: str, right: str) -> bool:
    if "..." in left:
        start, _, rest = left.partition("...")
        return right.startswith(start) and right.endswith(rest)
    # columns are as wide as their numbers
    words = [" ".join(NUMBER.sub("#", t).split()) for t in (left, right)]
    if re.sub(r"-{2,}", "--", words[0]) != re.sub(r"-{2,}", "--", words[1]):
        return False
    numbers = zip(NUMBER.findall(left), NUMBER.findall(right), strict=True)
    return all(_close(_value(a), _value(b)) for a, b in numbers)


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= max(0.02, 0.05 * max(abs(a), abs(b)))


def _session(code: str, where: str, problems: list[str]) -> Iterator[str]:
    for part in re.split(r"^(?=\$ )", code, flags=re.MULTILINE):
        command, _, expected = part.partition("\n")
        if not command.startswith("$ "):
            yield part
            continue
        printed = _command(command[2:])
        gap = expected[len(expected.rstrip("\n")) + 1 :]
        if not alike(expected, printed):
            problems.append(_difference(f"{where} {command}", expected, printed))
            expected = printed.strip("\n") + "\n" + gap
        yield f"{command}\n{expected}"


def _command(line: str) -> str:
    """Run a command in this process, where torch is loaded already."""
    words = shlex.split(line, comments=True)
    assert words[0] == "normscope", f"only commands of normscope run here, not {line!r}"
    from normscope.cli import main

    out = io.StringIO()
    before = sys.argv
    sys.argv = words
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit:
        pass
    finally:
        sys.argv = before
    return out.getvalue()


def _run(code: str, names: dict[str, Any], where: str, problems: list[str]) -> str:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(code, where, "exec"), names)
    except Exception:
        problems.append(f"{where} failed\n{traceback.format_exc(limit=-2)}")
    return out.getvalue()


def _difference(where: str, expected: str, printed: str) -> str:
    return f"{where} prints something else\n--- the page\n{expected}--- now\n{printed}"


@contextlib.contextmanager
def _prepared() -> Iterator[None]:
    """Run in an empty folder that has the examples; a seed; no colours, a known width, English."""
    import torch

    settings = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "NORMSCOPE_LANG": "en"}
    before = {name: os.environ.get(name) for name in settings}
    here = Path.cwd()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        os.environ.update(settings)
        os.chdir(folder)
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            os.chdir(here)
            torch.set_num_threads(threads)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def main() -> None:
    """Run the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="put in what is printed now")
    given = parser.parse_args()
    failed = False
    for page in [p.resolve() for p in given.pages] or pages():
        if runs(page):
            problems = check(page, write=given.write)
            failed |= bool(problems)
            print(f"{page.relative_to(ROOT)}: {len(problems) or 'as it says'}")
            if not given.write or any(" failed\n" in p for p in problems):
                print("\n".join(problems))
    sys.exit(failed and not given.write)


if __name__ == "__main__":
    main()
