"""Which norm or linear layer of one run is which of the other: by name, else by place."""

import re
from collections.abc import Sequence
from typing import Any

from normscope.equivalence.sites import Run, Site, gap

Both = tuple[Site | None, Site | None]  # a layer in the first run and in the second


class Alignment:
    """The sites of two runs, paired.

    Sites of one name belong together. Those without a partner of their name are paired by their
    order and number of channels. A norm without a partner may have a product and a sum of its name
    instead.

    Attributes:
        extra: norms of the second run that no norm of the first is paired with.
        complete: whether each norm is paired with a norm.
    """

    def __init__(self, first: Run, second: Run) -> None:
        self._sites = [site for site in first.sites if site.kind != "other"]
        norms, theirs = first.of("norm"), second.of("norm")
        self._pairs = _paired(norms, theirs) | _paired(first.of("linear"), second.of("linear"))
        # a folded norm with an activation of its own keeps both in one module
        others = {site.name.removesuffix(".norm"): site for site in second.of("other")}
        for norm in norms:
            if norm.name in others:
                self._pairs.setdefault(norm, others[norm.name])
        taken = set(self._pairs.values())
        self.extra = tuple(norm.label for norm in theirs if norm not in taken)
        self.complete = len(norms) == len(theirs) == len(taken & set(theirs))

    def partner(self, site: Site) -> Site | None:
        """Return what the second run has in the place of a site; None where it has nothing."""
        return self._pairs.get(site)

    def before(self, norm: Site) -> Both:
        """Return the linear layer before a norm, in both runs, as far as it is there."""
        return self._beside(norm, -1)

    def behind(self, norm: Site) -> Both:
        """Return the linear layer behind a norm likewise."""
        return self._beside(norm, 1)

    def later(self, norm: Site) -> tuple[Site, Site] | None:
        """Return the next norm or linear layer that both runs have."""
        for site in self._sites[self._sites.index(norm) + 1 :]:
            other = self._pairs.get(site)
            if other is not None and other.kind != "other":
                return site, other
        return None

    def linear(self) -> list[Both]:
        """Return every linear layer of the first run with its partner."""
        return [(site, self._pairs.get(site)) for site in self._sites if site.kind == "linear"]

    def _beside(self, norm: Site, step: int) -> Both:
        place = self._sites.index(norm) + step
        found = self._sites[place] if 0 <= place < len(self._sites) else norm
        # with another norm between, the layer belongs to that one
        return (found, self._pairs.get(found)) if found.kind == "linear" else (None, None)


def _paired(first: Sequence[Site], second: Sequence[Site]) -> dict[Site, Site]:
    by_name = {_plain(site.name): site for site in second if site.name}
    names = {site: _plain(site.name) for site in first if site.name}
    paired = {site: by_name[name] for site, name in names.items() if name in by_name}
    taken = set(paired.values())
    # names that both sides give and that differ are no reason against a pair of the same place
    left = [site for site in first if site not in paired]
    return paired | _in_order(left, [site for site in second if site not in taken])


def _in_order(left: list[Site], free: list[Site]) -> dict[Site, Site]:
    """Find the longest series of pairs in order that have one shape; of those, the nearest."""
    if len(left) == len(free):
        return dict(zip(left, free, strict=True))
    # longest common subsequence: of the rest of both lists the score and the pairs, as a chain
    best: list[tuple[float, Any]] = [(0.0, None)] * (len(free) + 1)
    for mine in reversed(left):
        row = best[-1:]
        for place in reversed(range(len(free))):
            options = [best[place], row[-1]]
            if mine.after.shape == free[place].after.shape:
                near = 0.5 / (1 + gap(mine.after, free[place].after)) / len(left)
                score, chain = best[place + 1]
                options.append((score + 1 + near, (mine, free[place], chain)))
            row.append(max(options, key=lambda option: option[0]))
        best = row[::-1]
    pairs, chain = {}, best[0][1]
    while chain is not None:
        mine, other, chain = chain
        pairs[mine] = other
    return pairs


def _plain(name: str) -> str:
    """Strip from a name what wrappers and exporters put into it."""
    name = re.sub(r"^(L__self___|p_|b_|self\.|_?module\.)", "", name)
    return re.sub(r"[._/]+", "_", name).strip("_")
