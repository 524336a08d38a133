"""How a record shows itself: what the methods of `records.Record` call.

Records stand below reports and know no other part of them.
"""

from typing import TYPE_CHECKING

from normscope.errors import InputError, MissingExtraError
from normscope.records import Record
from normscope.report import document_of, html
from normscope.report.brief import brief, lines
from normscope.report.charts import vega
from normscope.report.messages import Lang, locale_language
from normscope.report.sounds import Sounds, with_sounds

if TYPE_CHECKING:
    import altair as alt


def text(record: Record) -> str:
    """Say the verdict in a few lines."""
    return "\n".join(lines(document_of(record, part="opening"), locale_language()))


def fragment(record: Record) -> str:
    """Write what a notebook shows."""
    return html.fragment(brief(document_of(record, part="brief")), locale_language())


def page(record: Record, lang: Lang | None, sounds: Sounds | None = None) -> str:
    """Write the page, with sounds of its classes where there are some."""
    document = document_of(record)
    if sounds:
        document = with_sounds(document, record, sounds)
    return html.page(document, lang or locale_language())


def chart(record: Record, which: int) -> "alt.TopLevelMixin":
    """Make an Altair chart of one of the pictures."""
    try:
        import altair as alt
    except ImportError as problem:
        raise MissingExtraError(
            "plot() needs altair: pip install 'normscope[plot]'; save_html() needs nothing"
        ) from problem
    found = vega.specifications(document_of(record), locale_language())
    if not found:
        raise InputError(f"a {record.kind} has no pictures; to_frame() and save_html() show it")
    if not 0 <= which < len(found):
        titles = "; ".join(f"{place}: {spec['title']}" for place, spec in enumerate(found))
        raise InputError(f"there is no picture {which}; there are {titles}")
    made: alt.TopLevelMixin = alt.Chart.from_dict(found[which])
    return made
