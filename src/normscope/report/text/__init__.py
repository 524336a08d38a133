"""Records as text for a terminal, in English or Chinese: one file per record."""

from normscope.report.text.run import print_run

__all__ = [
    "print_run",
]
