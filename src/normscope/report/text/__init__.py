"""Records as text for a terminal, in English or Chinese: one file per record."""

from normscope.report.text.lesson import print_lesson

__all__ = [
    "print_lesson",
]
