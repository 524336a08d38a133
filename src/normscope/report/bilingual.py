"""A text in both languages: pages carry both, so that the reader can switch without a server."""

from dataclasses import dataclass

from normscope.report.messages import Lang, say


@dataclass(frozen=True)
class Text:
    """The same sentence in English and Chinese."""

    en: str
    zh: str

    def read(self, lang: Lang) -> str:
        """The sentence in one language."""
        return self.en if lang == "en" else self.zh


Words = str | Text  # the same in both languages, or not


def read(words: Words, lang: Lang) -> str:
    """Words in one language."""
    return words if isinstance(words, str) else words.read(lang)


def said(key: str, **values: object) -> Text:
    """The message `key` in both languages; values that are texts are put in by language."""

    def spoken(lang: Lang) -> str:
        read = {n: v.read(lang) if isinstance(v, Text) else v for n, v in values.items()}
        return say(lang, key, **read)

    return Text(spoken("en"), spoken("zh"))


def several(texts: list[Text]) -> Text:
    """Sentences one after the other; Chinese needs no space between them."""
    return Text(" ".join(t.en for t in texts), "".join(t.zh for t in texts))
