"""Records as text for terminals, as pages and for notebooks, in English and Chinese."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normscope.records.base import Record
    from normscope.report.document import Document

_OF = {  # the kind of a record -> the module and the function that make its document
    "bench": ("bench", "document"),
    "claims": ("claims", "document"),
    "conversion": ("conversion", "document"),
    "diagnosis": ("diagnosis", "document"),
    "difference": ("difference", "document"),
    "inspection": ("inspection", "document"),
    "lesson": ("lesson", "document"),
    "parity": ("parity", "document"),
    "passport": ("passport", "document"),
    "passport_check": ("passport", "document"),
    "repair": ("repair", "document"),
    "run": ("run", "document"),
}


def document_of(record: "Record", *others: "Record") -> "Document":
    """Make the document of a record; what `repair` did can follow the diagnosis."""
    module, name = _OF[record.kind]
    made: Document = getattr(import_module(f"normscope.report.{module}"), name)(record, *others)
    return made
