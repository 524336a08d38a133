"""The worked example and the trap: what batch normalisation does to classes of plain numbers."""

from normscope.lesson.stages import WORKED_BETA, WORKED_CLASSES, WORKED_GAMMA, lesson
from normscope.lesson.threshold import best_thresholds

__all__ = [
    "WORKED_BETA",
    "WORKED_CLASSES",
    "WORKED_GAMMA",
    "best_thresholds",
    "explain",
    "lesson",
]

explain = lesson  # its name at the top of the package
