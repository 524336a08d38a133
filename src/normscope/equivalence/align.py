"""Which norm of one run is which of the other: by name, else by place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from normscope.equivalence.sites import Run, Site, gap


@dataclass(frozen=True, eq=False)
class Aligned:
    """One norm of the first run and what the second has in its place.

    Attributes:
        first: the norm.
        second: the same norm there, or the module of its name; None where there is neither.
        before, behind: the linear layers on its two sides, in both runs, as far as they are there.
    """

    first: Site
    second: Site | None
    before: tuple[Site | None, Site | None]
    behind: tuple[Site | None, Site | None]


def aligned(first: Run, second: Run) -> tuple[list[Aligned], list[Site]]:
    """Every norm of the first run with its partner; and the norms of the second that have none.

    Norms of one name belong together. Those without a partner of their name are paired by their
    order and number of channels. Linear layers are paired in the same way.
    """
    norms = first.of("norm")
    partners = _paired(norms, second.of("norm"))
    taken = {id(site) for site in partners.values()}
    others = {site.name: site for site in second.of("other")}
    lines = first.of("linear")
    linear = _paired(lines, second.of("linear"))
    found = []
    for norm in norms:
        partner = partners.get(id(norm)) or others.get(norm.name)
        ahead = next((s for s in reversed(lines) if s.order < norm.order), None)
        # with another norm between, the layer belongs to that one
        if ahead and any(ahead.order < n.order < norm.order for n in norms):
            ahead = None
        after = next((s for s in lines if s.order > norm.order), None)
        if after and any(norm.order < n.order < after.order for n in norms):
            after = None
        found.append(
            Aligned(
                norm,
                partner,
                (ahead, linear.get(id(ahead))),
                (after, linear.get(id(after))),
            )
        )
    return found, [s for s in second.of("norm") if id(s) not in taken and id(s) not in _of(found)]


def linear_pairs(first: Run, second: Run) -> list[tuple[Site, Site | None]]:
    """Every linear layer of the first run with its partner, in the order of execution."""
    lines = first.of("linear")
    paired = _paired(lines, second.of("linear"))
    return [(line, paired.get(id(line))) for line in lines]


def _of(found: Sequence[Aligned]) -> set[int]:
    return {id(pair.second) for pair in found}


def _paired(first: Sequence[Site], second: Sequence[Site]) -> dict[int, Site]:
    """By the id of a site of the first: the site of the second."""
    by_name = {_plain(s.name): s for s in second if s.name}
    paired = {id(s): by_name[_plain(s.name)] for s in first if s.name and _plain(s.name) in by_name}
    taken = {id(s) for s in paired.values()}
    left = [s for s in first if id(s) not in paired]
    free = [s for s in second if id(s) not in taken]
    # names that both sides give and that differ are no reason against a pair of the same place
    for mine, other in _in_order(left, free):
        paired[id(mine)] = other
    return paired


def _in_order(left: list[Site], free: list[Site]) -> list[tuple[Site, Site]]:
    """The longest series of pairs in order that have one shape; of those, the nearest values."""
    if len(left) == len(free):
        return list(zip(left, free, strict=True))
    # classic longest common subsequence, quadratic in what has no name
    table = [[0.0] * (len(free) + 1) for _ in range(len(left) + 1)]
    scores: dict[tuple[int, int], float] = {}
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(free) - 1, -1, -1):
            if left[i].after.shape == free[j].after.shape:
                near = gap(left[i].after, free[j].after)
                scores[i, j] = 1 + 0.5 / (1 + near) / max(len(left), 1)
            paired = table[i + 1][j + 1] + scores.get((i, j), 0.0)
            table[i][j] = max(table[i + 1][j], table[i][j + 1], paired)
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(free):
        score = scores.get((i, j), 0.0)
        if score and table[i][j] == table[i + 1][j + 1] + score:
            pairs.append((left[i], free[j]))
            i, j = i + 1, j + 1
        elif table[i][j] == table[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def _plain(name: str) -> str:
    """A name without what wrappers and exporters put into it."""
    name = re.sub(r"^(L__self___|p_|b_|self\.|_?module\.)", "", name)
    return re.sub(r"[._/]+", "_", name).strip("_")
