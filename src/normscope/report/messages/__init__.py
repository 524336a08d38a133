"""Every sentence that a person reads, in English and Chinese side by side.

The JSON files beside this one hold `{"key": {"en": "...", "zh": "..."}}`; placeholders are those
of `str.format`. `lesson.json` serves `explain`, `run.json` training and comparison, `lens.json`
the inspection, `page.json` what only the pages say.

A message that is a list has parts: `doctor.NS001` is the title of a check, its explanation, the
advice and the source of its thresholds, read as `doctor.NS001.title`, `.explain`, `.do`, `.source`.
"""

import json
import os
import re
from functools import cache
from importlib.resources import files
from typing import Literal

Lang = Literal["en", "zh"]
LANGUAGES: tuple[Lang, ...] = ("en", "zh")
PARTS = ("title", "explain", "do", "source")
COUNTED = (
    "batches|channels|checks|forms|forwards|gates|groups|images|layers|networks|norms|numbers|"
    "readers|samples|seeds|settings|starts|steps|thresholds|values"
)
SINGLE = {" are": " is", " have": " has", " were": " was"}
_ONE = re.compile(rf"(?<![\w.,])1 ({COUNTED})\b( are\b| have\b| were\b)?")


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """All messages: key -> language -> text."""
    merged: dict[str, dict[str, str]] = {}
    for part in sorted(p.name for p in files(__name__).iterdir() if p.name.endswith(".json")):
        for key, text in json.loads(files(__name__).joinpath(part).read_text("utf-8")).items():
            if isinstance(text["en"], str):
                merged[key] = text
                continue
            for place, name in enumerate(PARTS):
                merged[f"{key}.{name}"] = {lang: text[lang][place] for lang in LANGUAGES}
    return merged


def say(lang: Lang, key: str, **values: object) -> str:
    """Return the text of `key` in `lang` with its placeholders filled."""
    text = catalogue()[key][lang]
    if not values:
        return text
    said = text.format(**values)
    return _ONE.sub(_single, said) if lang == "en" else said


def _single(found: re.Match[str]) -> str:
    """Write the noun, and the verb next to it, for one thing."""
    noun, verb = found[1], found[2] or ""
    return f"1 {noun[: -2 if noun.endswith('ches') else -1]}{SINGLE.get(verb, verb)}"


def locale_language() -> Lang:
    """Return the user's language: that of NORMSCOPE_LANG, else of the locale.

    It is "zh" where the value begins so, as in zh_CN.UTF-8, otherwise "en".
    """
    for name in ("NORMSCOPE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name)
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"
