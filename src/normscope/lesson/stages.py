"""The stages of the lesson, in their order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normscope.environment import threads
from normscope.errors import InputError
from normscope.lesson.composition import composition
from normscope.lesson.example import Example, read_affine, read_example
from normscope.lesson.learning import (
    Learned,
    Readers,
    for_classification,
    jointly,
    returned,
    towards_distribution,
)
from normscope.records import Lesson, Posterior, Stage

WORKED_CLASSES = ((50.0, 52.0, 54.0, 56.0), (2.0, 4.0, 6.0, 8.0))
WORKED_GAMMA = (5.0, 2.0)
WORKED_BETA = (10.0, 3.0)


def lesson(
    classes: Sequence[Sequence[float]] = WORKED_CLASSES,
    gamma: Sequence[float] | None = WORKED_GAMMA,
    beta: Sequence[float] | None = WORKED_BETA,
    *,
    eps: float = 0.0,
    seeds: int = 20,
    steps: int = 200,
) -> Lesson:
    """Follow classes of numbers through every way of normalising them, stage by stage.

    mu_k and var_k are a class's own mean and population variance, mu and var those of all values.

    ======================== ===================================================================
    input                    x
    joint                    (x - mu) / sqrt(var + eps): batch norm as it is
    joint_scaled_shifted     the first given gamma and beta, for all classes
    activated                ReLU after joint batch norm with gamma 1 and beta 0
    learned_joint            ReLU after joint batch norm with one learned gamma and beta
    standardised_per_class   z = (x - mu_k) / sqrt(var_k + eps): the fear
    scaled_shifted           gamma_k z + beta_k with the given gamma and beta
    learned_distribution     the same, learned towards the distribution of the input
    identity                 gamma_k = sqrt(var_k + eps), beta_k = mu_k: x again
    learned_classification   gamma_k z + beta_k, learned for the classification
    unlabelled               what that does to values without a label: mu, var and the mean of
                             the learned gammas and betas, as ConditionalBatchNorm does with
                             missing="pooled"
    inferred                 the same, with the class that the posterior picks for each value
    ======================== ===================================================================

    The learned stages show the first start; `recoveries` hold every start, step by step.

    Facts of the stages: `learned_*`: starts, and how many of them reached the aim: back (mean and
    deviation of every class within 1 % of the input's), apart (thresholds classify every value),
    right (the head classifies every value). `activated`, `learned_joint`: gate (the z above which
    values pass) and passes_1, passes_2, ...: the share of each class that passes.
    `standardised_per_class`: largest_difference of the sorted values of two classes. `identity`,
    `learned_distribution`: largest_error, relative to the largest value. `unlabelled`: over all
    starts, reader_accuracy without labels, readers and how many of them stay right for every
    value; follows_label is how often the reader answers the label handed to the layer when that
    label is wrong (class k's values, standardised by themselves, with the gamma and beta of class
    k + 1). `inferred`: picked_right, reader_accuracy of the first start.

    `posteriors` weigh the classes by their Gaussians N(mu_k, var_k + eps), equally likely before.
    `composition` is the share of the class means' signal that batches of m values leave after
    subtracting their own mean, (1 - r)(1 - 1/m) beside a simulation; empty where the class means
    hardly differ (eta squared below 0.001).

    Args:
        classes: K >= 2 classes of n >= 2 numbers each.
        gamma: K scales; None: ones, as in a fresh layer.
        beta: K shifts; None: zeros.
        eps: added to the variance; 0 as in the textbook example.
        seeds: how many random starts learn gamma and beta.
        steps: of gradient descent.

    Raises:
        InputError: too few classes or values, classes of different length, not-finite or huge
            numbers, gamma or beta that do not match the classes, a variance of 0 with eps = 0.

    >>> import normscope
    >>> classes = [[50, 52, 54, 56], [2, 4, 6, 8]]
    >>> record = normscope.explain(classes, gamma=[5, 2], beta=[10, 3], seeds=1)
    >>> {stage.name: stage.threshold_accuracy for stage in record.stages}["standardised_per_class"]
    0.5
    """
    example = read_example(classes, eps)
    scale = read_affine("gamma", gamma, example.num_classes, 1.0)
    shift = read_affine("beta", beta, example.num_classes, 0.0)
    for name, count in (("seeds", seeds), ("steps", steps)):
        if count < 1:
            raise InputError(f"{name} is {count}; at least 1 is needed")

    with threads(1):
        return _tell(example, scale, shift, seeds, steps)


def _tell(example: Example, scale: Tensor, shift: Tensor, seeds: int, steps: int) -> Lesson:
    back = towards_distribution(example, seeds, steps)
    readers = for_classification(example, seeds, steps)
    joint = jointly(example, seeds, steps)
    return Lesson(
        eps=example.eps,
        stages=(
            example.stage("input", example.x),
            example.stage("joint", example.joint()),
            _joint_scaled_shifted(example, scale, shift),
            _gated(example, "activated", *_fresh()),
            _learned_joint(example, joint),
            _standardised(example),
            example.stage("scaled_shifted", example.per_class(scale, shift), scale, shift),
            _learned_distribution(example, back),
            _identity(example),
            _learned_classification(example, readers),
            _unlabelled(example, readers),
            _inferred(example, readers),
        ),
        recoveries=(back.recovery, readers.recovery, joint.recovery),
        posteriors=_posteriors(example),
        composition=composition(example),
    )


def _standardised(example: Example) -> Stage:
    z = example.per_class()
    rows = z.view(example.num_classes, -1).sort(1).values
    spread = rows.max(0).values - rows.min(0).values
    return example.stage("standardised_per_class", z, largest_difference=spread.max().item())


def _identity(example: Example) -> Stage:
    gamma, beta = (example.own.var(correction=0) + example.eps).sqrt(), example.own.mean
    y = example.per_class(gamma, beta)
    return example.stage("identity", y, gamma, beta, largest_error=_largest_error(example, y))


def _largest_error(example: Example, y: Tensor) -> float:
    largest = example.x.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return ((y - example.x).abs().max() / largest).item()


def _learned_distribution(example: Example, learned: Learned) -> Stage:
    y = example.per_class(*learned.first)
    back = returned(example, learned)
    return example.stage(
        "learned_distribution",
        y,
        *learned.first,
        starts=len(back),
        back=back.sum().item(),
        largest_error=_largest_error(example, y),
    )


def _learned_classification(example: Example, readers: Readers) -> Stage:
    starts = readers.recovery.learning
    return example.stage(
        "learned_classification",
        example.per_class(*readers.first),
        *readers.first,
        starts=len(starts),
        apart=sum(start.accuracy[-1] == 1 for start in starts),
    )


def _learned_joint(example: Example, learned: Learned) -> Stage:
    starts = learned.recovery.learning
    return _gated(
        example,
        "learned_joint",
        *learned.first,
        starts=len(starts),
        right=sum(start.accuracy[-1] == 1 for start in starts),
        head_accuracy=starts[0].accuracy[-1],
    )


def _fresh() -> tuple[Tensor, Tensor]:
    return torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)


def _gated(example: Example, name: str, gamma: Tensor, beta: Tensor, **facts: float) -> Stage:
    """Apply ReLU after joint batch norm with one gamma and beta, (1, 1) each."""
    y = example.joint(gamma[0], beta[0]).relu()
    passes = (y > 0).view(example.num_classes, -1).double().mean(1)
    shares = {f"passes_{k}": share for k, share in enumerate(passes.tolist(), 1)}
    gate = (-beta / gamma).item() + 0.0  # no minus before a zero
    same = _for_all(example, gamma, beta)
    return example.stage(name, y, *same, **{"gate": gate} | facts | shares)


def _for_all(example: Example, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    shape = (example.num_classes, 1)
    return gamma[:1].expand(shape), beta[:1].expand(shape)


def _joint_scaled_shifted(example: Example, gamma: Tensor, beta: Tensor) -> Stage:
    y = example.joint(gamma[0], beta[0])
    return example.stage("joint_scaled_shifted", y, *_for_all(example, gamma, beta))


def _unlabelled(example: Example, learned: Readers) -> Stage:
    gamma, beta = learned.gamma.mean(0), learned.beta.mean(0)
    y = example.joint(gamma, beta)
    right = learned.answers(y) == example.labels.unsqueeze(1)
    # row k of the rolled tables is what class k + 1 learned
    swapped = example.per_class(learned.gamma.roll(-1, 0), learned.beta.roll(-1, 0))
    handed = (example.labels + 1) % example.num_classes
    follows = learned.answers(swapped) == handed.unsqueeze(1)
    return example.stage(
        "unlabelled",
        y[:, :1],
        *(t[:1].expand(example.num_classes, 1) for t in (gamma, beta)),
        reader_accuracy=right.double().mean().item(),
        readers=right.shape[1],
        readers_right=right.all(0).sum().item(),
        follows_label=follows.double().mean().item(),
    )


def _inferred(example: Example, learned: Readers) -> Stage:
    picked = _probability(example).argmax(1)
    y = example.per_class(*learned.first, picked=picked)
    right = learned.answers(y)[:, 0] == example.labels
    return example.stage(
        "inferred",
        y,
        *learned.first,
        picked_right=(picked == example.labels).double().mean().item(),
        reader_accuracy=right.double().mean().item(),
    )


def _probability(example: Example) -> Tensor:
    """Return (N, K): the posterior of each class under its stored Gaussian statistics."""
    var = example.own.var(correction=0).T + example.eps
    log_density = -((example.x - example.own.mean.T) ** 2) / (2 * var) - var.log() / 2
    return log_density.softmax(1)


def _posteriors(example: Example) -> tuple[Posterior, ...]:
    rows = zip(
        example.x[:, 0].tolist(),
        example.labels.tolist(),
        _probability(example).tolist(),
        strict=True,
    )
    return tuple(Posterior(value=v, truth=k, probability=tuple(p)) for v, k, p in rows)
