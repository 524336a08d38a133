"""What the passport of a checkpoint says, against what is there."""

from collections.abc import Iterator

from normscope.doctor.checks.base import Check, CheckContext, Skip, register
from normscope.equivalence import compare_to_passport
from normscope.records import Finding


@register
class NotAsInPassport(Check):
    """Norms that are not what the checkpoint's passport says.

    A passport is made where a checkpoint is saved. It says eps and momentum of every norm, which
    a state dict cannot carry, and knows the statistics again. A model that was rebuilt with
    another eps computes something else from the same tensors; statistics that were overwritten
    since (by an init, a forward in train(), a converter) are no longer those of the training
    data. Set eps and momentum with apply_passport(model, passport), and load the statistics of
    the checkpoint again, or recalibrate.
    """

    code = "NS032"
    family = "buffers"
    needs = "checkpoint"
    source = "the passport, made where the checkpoint was saved"

    def find(self, case: CheckContext) -> Iterator[Finding]:
        if case.passport is None:
            raise Skip("doctor.skip.passport")
        subject = case.state if case.subject is None else case.subject
        for found in compare_to_passport(subject, case.passport):
            grave = found.code != "momentum"
            yield self.finding(
                found.norm, "error" if grave else "warning", found.amount, 0.0, kind=found.code,
                passport=found.passport, found=found.found, amount=found.amount,
            )  # fmt: skip
