"""Documents as HTML: one offline file with everything in it, or a part for a notebook.

The policy of a page forbids every request and every script but the ones that came with it; texts
reach the page escaped or as text nodes, numbers as JSON, and all of them harmless.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import count, groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from normscope.errors import shown
from normscope.records import plain
from normscope.report import document as doc
from normscope.report.bilingual import Text, Words, read, tr
from normscope.report.charts import picture_template
from normscope.report.charts.lanes import lanes
from normscope.report.charts.numberline import drawn as number_line
from normscope.report.charts.still import WIDTH, drawing
from normscope.report.embedded import with_images
from normscope.report.messages import Lang, catalogue

# in this order one script, then what single parts of the page need, then what starts the page
SCRIPTS = ("numbers", "draw", "channels", "glossary", "tables")
LAST = "scripts/page.js"


def page(document: doc.Document, lang: Lang) -> str:
    """Write a document as one file that opens in `lang` and switches between both languages."""
    blocks = list(doc.parts(document))
    return render("document.html.j2", lang, blocks, document.title, document=document)


def fragment(document: doc.Document, lang: Lang) -> str:
    """Write a document as a part of another page, as a notebook: in one language, no script."""
    digest = hashlib.sha256(repr(document).encode("utf-8", "replace")).hexdigest()
    prefix = f"normscope-{digest[:8]}-"
    environment = _environment(lang, live=False, prefix=prefix)
    written = environment.get_template("fragment.html.j2").render(
        lang=lang, document=document, style=Markup(asset("fragment.css"))
    )
    return with_images(written)


def render(template: str, lang: Lang, blocks: list[doc.Block], title: Text, **context: Any) -> str:
    """Fill the template of a page that is closed to the outside."""
    charts = [block.spec for block in blocks if isinstance(block, doc.Chart)]
    channels = [block.data for block in blocks if isinstance(block, doc.ChannelPlot)]
    sounds = any(isinstance(block, doc.Sound) for block in blocks)
    moving = [block for block in blocks if isinstance(block, doc.Interactive)]
    keys = ("live.", *(key for part in moving for key in part.messages))
    data = {
        "lang": lang,
        "messages": {key: text for key, text in catalogue().items() if key.startswith(keys)},
        "chartConfig": picture_template("config"),
        **_harmless(plain({"charts": charts, "channels": channels})),
        **_harmless(plain({name: part.data[name] for part in moving for name in part.data})),
    }
    own = [asset(f"scripts/{name}.js") for name in SCRIPTS]
    own += [script for part in moving for script in part.scripts]
    # strict mode and a scope of its own
    scripts = ['"use strict";\n{\n' + "\n".join([*own, asset(LAST)]) + "}\n"]
    if charts:
        scripts.insert(0, asset("vendor/vega.js"))
    style = asset("drawing.css") + asset("page.css") + "".join(part.style for part in moving)
    return (
        _environment(lang)
        .get_template(template)
        .render(
            lang=lang,
            title=title,
            policy=_policy(scripts, style, sound=sounds),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            data=Markup(_json(data)),
            **context,
        )
    )


def _policy(scripts: list[str], style: str, *, sound: bool) -> str:
    """Forbid all but the scripts and the style sheet of this page, and the sounds in it."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; "
        f"{'media-src data:; ' if sound else ''}base-uri 'none'; form-action 'none'"
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
    """Write JSON that can stand inside a script element whatever the texts in it are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", text)


@cache
def asset(name: str) -> str:
    """Read a script, a style sheet or a template of the pages."""
    return files("normscope.report").joinpath("assets", name).read_text(encoding="utf-8")


def _environment(lang: Lang, *, live: bool = True, prefix: str = "") -> Environment:
    environment = Environment(
        loader=PackageLoader("normscope.report", "assets/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else _harmless(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def both(text: Text) -> Markup:
        """Write the attributes from which the page switches an element's text."""
        return Markup('data-en="{}" data-zh="{}"').format(shown(text.en), shown(text.zh))

    def put(words: Words) -> Markup:
        if isinstance(words, Text) and live:
            return Markup("<span {}>{}</span>").format(both(words), shown(words.read(lang)))
        return Markup("{}").format(shown(read(words, lang)))

    def embed(part: doc.Interactive) -> Markup:
        if not live:
            return Markup()
        return Markup(environment.get_template(part.template).render(part.values))

    environment.filters |= {
        "both": both,
        "put": put,
        "read": lambda words: read(words, lang),
        "groups": _groups,
        "embed": embed,
        "still": lambda chart: drawing(chart.spec, lang, _wide(chart)),
        "lanes": lambda data: lanes(data, lang),
        "number_line": number_line,
    }
    environment.globals |= {
        "text": tr,
        "say": lambda key, **values: put(tr(key, **values)),
        "number_next": count().__next__,
        "chart_next": count().__next__,
        "channel_next": count().__next__,
        "live": live,
        "prefix": prefix,
    }
    return environment


def _wide(chart: doc.Chart | doc.Drawing) -> int:
    """Choose the width without scripts: across, one of a few beside it, or a small card."""
    if isinstance(chart, doc.Drawing):
        return 340
    return WIDTH if chart.across else 300 if chart.value else 440


def _groups(blocks: Sequence[doc.Block]) -> Iterator[tuple[str, list[doc.Block]]]:
    """Yield blocks for a page by their kind; findings that follow one another are together."""
    numbers = count()
    found = doc.for_medium(blocks, "page")
    together = groupby(found, lambda b: -1 if isinstance(b, doc.Finding) else next(numbers))
    for _, group in together:
        members = list(group)
        yield type(members[0]).__name__, members
