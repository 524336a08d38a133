"""The symbols of the pages: what each means, and which way is better."""

from typing import Final, Literal

from normscope.report.bilingual import tr
from normscope.report.document import Details, Term, Terms

Better = Literal["up", "down", ""]

# as the symbol is written, and as its message is called
SYMBOLS: Final[dict[str, tuple[str, Better]]] = {
    "x": ("x", ""),
    "μ": ("mu", ""),
    "σ": ("sigma", ""),
    "z": ("z", ""),
    "γ": ("gamma", ""),
    "β": ("beta", ""),
    "y": ("y", ""),
    "ReLU": ("relu", ""),
    "η²": ("eta2", "up"),
    "J": ("J", "up"),
    "NCM": ("ncm", "up"),
    "D": ("D", "down"),
    "CDNV": ("cdnv", "down"),
    "κ": ("kappa", "down"),
}


def folded() -> Details:
    """List all symbols; the page's script shows each where it stands in a text."""
    terms = tuple(
        Term(symbol, tr(f"glossary.{name}"), better) for symbol, (name, better) in SYMBOLS.items()
    )
    return Details(tr("page.glossary.open"), (Terms(terms),), id="glossary")
