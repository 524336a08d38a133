"""The checks, by code; one small class each, in files by family. Every file here is read."""

import pkgutil
from importlib import import_module

from normscope.doctor.checks.base import CHECKS, Check, CheckContext, Skip

__all__ = ["CHECKS", "Check", "CheckContext", "Skip"]

for module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
for code in sorted(CHECKS):  # in the order of their codes
    CHECKS[code] = CHECKS.pop(code)
