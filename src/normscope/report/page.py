"""The page of `playground`: a small network that trains in it."""

from normscope.report import playground
from normscope.report.bilingual import said
from normscope.report.html import Drawn, render
from normscope.report.messages import Lang


def render_playground(lang: Lang) -> str:
    """The page of `playground`: a small network that trains in it."""
    drawn = Drawn()
    part = playground.block()
    drawn.take(part)
    return render("network_page.html.j2", lang, drawn, said("network.title"), **part.values)
