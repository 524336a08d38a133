"""Records as text for terminals, as pages and for notebooks, in English and Chinese."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normscope.records.base import Record
    from normscope.report.document import Document


def document_of(record: "Record", *others: "Record", part: str = "document") -> "Document":
    """Make the document of a record.

    Args:
        record: of any kind; the file of its name makes the document.
        others: what `repair` did can follow the diagnosis.
        part: "brief" is what has room in a notebook, "opening" what begins as the whole document
            does, of records of which the whole takes seconds; of others all three are the same.
    """
    module = import_module(f"normscope.report.{record.kind.removesuffix('_check')}")
    made: Document = getattr(module, part, module.document)(record, *others)
    return made
