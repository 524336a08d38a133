"""Records as text for a terminal, in English or Chinese: one file per record."""

from normscope.report.text.bench import print_bench
from normscope.report.text.difference import print_difference
from normscope.report.text.inspection import print_inspection
from normscope.report.text.lesson import print_lesson
from normscope.report.text.run import print_run

__all__ = [
    "print_bench",
    "print_difference",
    "print_inspection",
    "print_lesson",
    "print_run",
]
