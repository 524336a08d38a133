"""Documents as HTML: one offline file with everything in it, or a part for a notebook.

The policy of a page forbids every request and every script but the ones that came with it; texts
reach the page escaped or as text nodes, numbers as JSON, and all of them harmless.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import count, groupby
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from normscope.errors import shown
from normscope.records import plain
from normscope.report.bilingual import Text, Words, read, said
from normscope.report.charts.base import CONFIG
from normscope.report.charts.bells import curves
from normscope.report.charts.lanes import lanes
from normscope.report.charts.numberline import drawn as number_line
from normscope.report.charts.still import WIDTH, drawing
from normscope.report.document import (
    Block,
    ChannelPlot,
    Chart,
    Document,
    Finding,
    Interactive,
    for_medium,
    parts,
)
from normscope.report.embedded import with_images
from normscope.report.messages import Lang, catalogue

# in this order one script, then what single parts of the page need, then what starts the page
SCRIPTS = (
    "numbers",
    "draw",
    "channels",
    "glossary",
    "tables",
)
LAST = "scripts/page.js"


@dataclass
class Drawn:
    """What the scripts of one page draw, numbered in the order in which it was added."""

    charts: list[Chart] = field(default_factory=list)
    channels: list[Mapping[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)  # of single parts, before the last one
    styles: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=lambda: ["live."])

    def take(self, part: Interactive) -> None:
        """Add what a part with a script of its own needs."""
        self.data |= part.data
        self.scripts.extend(part.scripts)
        self.styles.append(part.style)
        self.messages.extend(part.messages)


def page(document: Document, lang: Lang) -> str:
    """Write a document as one file that opens in `lang` and switches between both languages."""
    drawn = Drawn()
    for block in parts(document):
        if isinstance(block, Chart):
            drawn.charts.append(block)
        elif isinstance(block, ChannelPlot):
            drawn.channels.append(block.data)
        elif isinstance(block, Interactive):
            drawn.take(block)
    return render("document.html.j2", lang, drawn, document.title, document=document)


def fragment(document: Document, lang: Lang) -> str:
    """Write a document as a part of another page, as a notebook: in one language, no script."""
    digest = hashlib.sha256(repr(document).encode("utf-8", "replace")).hexdigest()
    prefix = f"normscope-{digest[:8]}-"
    environment = _environment(lang, live=False, prefix=prefix)
    written = environment.get_template("fragment.html.j2").render(
        lang=lang, document=document, style=Markup(asset("fragment.css"))
    )
    return with_images(written)


def render(template: str, lang: Lang, drawn: Drawn, title: Text, **context: Any) -> str:
    """Fill the template of a page that is closed to the outside."""
    data = {
        "lang": lang,
        "messages": {k: v for k, v in catalogue().items() if k.startswith(tuple(drawn.messages))},
        "charts": [_harmless(plain(chart.spec)) for chart in drawn.charts],
        "chartConfig": CONFIG,
        "channels": [_harmless(plain(channel)) for channel in drawn.channels],
        **_harmless(plain(drawn.data)),
    }
    scripts = [asset("vendor/vega.js")] if drawn.charts else []
    # strict mode and a scope of its own
    own = "\n".join([*(asset(f"scripts/{n}.js") for n in SCRIPTS), *drawn.scripts, asset(LAST)])
    scripts.append(f'"use strict";\n{{\n{own}}}\n')
    style = asset("page.css") + "".join(drawn.styles)
    return (
        _environment(lang)
        .get_template(template)
        .render(
            lang=lang,
            title=title,
            policy=_policy(scripts, style),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=Markup(_json(data)),
            **context,
        )
    )


def _policy(scripts: list[str], style: str) -> str:
    """Nothing may be loaded, and only the scripts and the style sheet of this page may run."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _harmless(value: Any) -> Any:
    """Make every text in a value harmless; all else stays."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: _harmless(item) for key, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    """JSON that can stand inside a script element whatever the texts in it are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


@cache
def asset(name: str) -> str:
    """Read a script, a style sheet or a template of the pages."""
    return files("normscope.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _templates() -> dict[str, str]:
    folder = files("normscope.report").joinpath("assets", "templates")
    return {part.name: part.read_text(encoding="utf-8") for part in folder.iterdir()}


def _environment(lang: Lang, *, live: bool = True, prefix: str = "") -> Environment:
    environment = Environment(
        loader=DictLoader(_templates()),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else _harmless(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def both(text: Text) -> Markup:
        """The attributes from which the page switches an element's text."""
        return Markup('data-en="{}" data-zh="{}"').format(shown(text.en), shown(text.zh))

    def put(words: Words) -> Markup:
        if isinstance(words, Text) and live:
            return Markup("<span {}>{}</span>").format(both(words), shown(words.read(lang)))
        return Markup("{}").format(shown(read(words, lang)))

    def embed(part: Interactive) -> Markup:
        if not live:
            return Markup()
        return Markup(environment.get_template(part.template).render(part.values))

    environment.filters |= {
        "both": both,
        "put": put,
        "read": lambda words: read(words, lang),
        "groups": _groups,
        "embed": embed,
        "curves": curves,
        "still": lambda chart: drawing(chart.spec, lang, _wide(chart)),
        "lanes": lambda data: lanes(data, lang),
        "number_line": number_line,
    }
    environment.globals |= {
        "text": said,
        "say": lambda key, **values: put(said(key, **values)),
        "number_next": count().__next__,
        "chart_next": count().__next__,
        "channel_next": count().__next__,
        "live": live,
        "prefix": prefix,
    }
    return environment


def _wide(chart: Chart) -> int:
    """How wide a chart is without scripts: across, one of a few beside it, or a small card."""
    return WIDTH if chart.across else 300 if chart.value else 440


def _groups(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Blocks for a page with the name of their kind; findings that follow one another together."""
    numbers = count()
    found = for_medium(blocks, "page")
    together = groupby(found, lambda b: -1 if isinstance(b, Finding) else next(numbers))
    for _, group in together:
        members = list(group)
        yield type(members[0]).__name__, members
