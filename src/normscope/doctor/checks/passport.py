"""What the passport of a checkpoint says, against what is there."""

from collections.abc import Iterator

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.equivalence import compare_to_passport
from normscope.records import Finding


@register("NS032")
class NotAsInPassport(Check):
    """Norms that are not what the checkpoint's passport says."""

    source = "the passport, made where the checkpoint was saved"

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if case.passport is None:
            raise Skip("doctor.skip.passport")
        subject = case.state if case.subject is None else case.subject
        for found in compare_to_passport(subject, case.passport):
            yield self.finding(
                found.norm, "warning" if found.code == "momentum" else "error", found.amount,
                kind=found.code, passport=found.passport, found=found.found, amount=found.amount,
            )  # fmt: skip
