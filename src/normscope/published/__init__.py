"""Published statements about batch norm, put to the test on this machine, offline."""

from normscope.published.running import claims, names

__all__ = ["claims", "names"]
