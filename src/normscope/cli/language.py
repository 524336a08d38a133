"""The language of the command line, and its sentences in Chinese.

The keys of messages/*.zh.json are the English texts as the source has them, with {} for what is
filled in; {0}, {1} in the Chinese take the same values. A text without an entry stays English.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from normscope.report.messages import LANGUAGES, Lang, locale_language

UNKNOWN = "（此句暂无中文）"


def spoken(arguments: Sequence[str] | None = None) -> Lang:
    """Return the language of --lang, else of NORMSCOPE_LANG or the locale.

    It is known before options are parsed, so that errors of parsing are in this language too.

    Args:
        arguments: of the command line; None: those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for place, argument in enumerate(given):
        name, sign, value = argument.partition("=")
        if name == "--lang":
            value = value if sign else "".join(given[place + 1 : place + 2])
            for known in LANGUAGES:
                if value == known:
                    return known
    return locale_language()


@cache
def catalogue(name: str) -> dict[str, str]:
    """Read the Chinese texts by their English ones: of "help", or of "errors"."""
    text = files("normscope.cli").joinpath("messages", f"{name}.zh.json")
    found: dict[str, str] = json.loads(text.read_text(encoding="utf-8"))
    return found


def helped(text: str, language: Lang) -> str:
    """Translate a text of the help."""
    return text if language == "en" else catalogue("help").get(text, text)


def sentence(text: str, language: Lang) -> str:
    """Translate an error; the values in it are translated too where they have an entry."""
    if language == "en":
        return text
    found = _matched(text)
    return UNKNOWN + text if found is None else found


def _matched(text: str) -> str | None:
    for pattern, chinese in _patterns():
        match = pattern.fullmatch(text)
        if match:
            values = (_matched(value) or value for value in match.groups())
            return chinese.format(*values)
    return None


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return patterns, the longest first, because a text may also match a more general one."""
    return [
        (re.compile("(.*?)".join(map(re.escape, parts)), re.DOTALL), chinese)
        for parts, chinese in sorted(_split(catalogue("errors").items()), key=_looseness)
    ]


def _split(entries: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    return [(english.split("{}"), chinese) for english, chinese in entries]


def _looseness(entry: tuple[list[str], str]) -> int:
    return -len("".join(entry[0]))
