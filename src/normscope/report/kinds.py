"""Of a record of any kind: what has room in a notebook, and what says its verdict."""

from normscope.records import Inspection, Record
from normscope.report import document_of, inspection
from normscope.report.brief import brief
from normscope.report.document import Document


def brief_of(record: Record) -> Document:
    """Make what has room in a notebook."""
    if isinstance(record, Inspection):  # of which the whole document takes seconds
        return brief(inspection.brief(record))
    return brief(document_of(record))


def answer_of(record: Record) -> Document:
    """Make a document that begins as the whole one does; the rest may be missing."""
    return inspection.answer(record) if isinstance(record, Inspection) else document_of(record)
