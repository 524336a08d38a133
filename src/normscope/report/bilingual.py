"""A text in both languages: pages carry both, so that the reader can switch without a server."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from normscope.report.messages import Lang, catalogue, say

NAMED = 3  # layers that a sentence names; the others are counted


@dataclass(frozen=True)
class Text:
    """The same sentence in English and Chinese."""

    en: str
    zh: str

    def read(self, lang: Lang) -> str:
        """Return the sentence in one language."""
        return self.en if lang == "en" else self.zh


Words = str | Text  # the same in both languages, or not


def read(words: Words, lang: Lang) -> str:
    """Return words in one language."""
    return words if isinstance(words, str) else words.read(lang)


def tr(key: str, **values: object) -> Text:
    """Return a message in both languages; values that are texts are put in by language."""

    def filled(lang: Lang) -> str:
        own = {n: v.read(lang) if isinstance(v, Text) else v for n, v in values.items()}
        return say(lang, key, **own)

    return Text(filled("en"), filled("zh"))


def known(*keys: str) -> str:
    """Return the first key that has a message, else the last."""
    return next((key for key in keys if key in catalogue()), keys[-1])


def joined(words: Iterable[Words], en: str = ", ", zh: str = "，") -> Text:
    """Join words by what stands between them in each language."""
    found = list(words)
    return Text(en.join(read(w, "en") for w in found), zh.join(read(w, "zh") for w in found))


def sentences(*texts: Words) -> Text:
    """Put sentences one after the other; Chinese needs no space between them."""
    return joined(texts, " ", "")


def few(names: Sequence[str]) -> Words:
    """List the first few layers, and count the others."""
    shown, more = ", ".join(names[:NAMED]), len(names) - NAMED
    return joined((shown, tr("page.more", count=more)), " ", " ") if more > 0 else shown


def labelled(name: Words, text: Words) -> Text:
    """Put a name and a colon before a text."""
    return joined((name, text), ": ", "：")
