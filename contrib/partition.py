"""Splits one pool of labelled items over members that are unlike each other, as private data is.

Knows no rows: labels in, positions out. Invariants: every item goes to exactly one member; no member is left with fewer than
`least` items; the same labels, members, concentration and generator give the same split.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from contrib.errors import BadJob


def dirichlet(
    labels: Sequence[Hashable], members: int, alpha: float, rng: np.random.Generator, *, least: int = 1
) -> list[list[int]]:
    """Positions of the items of each member, ascending: for each label its shares are drawn from a Dirichlet distribution.

    Small `alpha` gives each member few labels, a large one gives everybody the same mixture (Hsu, Qi and Brown 2019,
    arXiv 1909.06335). Members that came off with less than `least` get items of the one that has most.

    Args:
        labels: of every item: where it comes from, or its class.
        members: how many parts.
        alpha: concentration, over 0; equal for all members.
        rng: where the draw comes from.
        least: items that every member has at least.

    Raises:
        BadJob: no members, an `alpha` not over 0, or too few items.
    """
    if members < 1 or not 0 < alpha < float("inf"):
        raise BadJob("couldn't split items: members from 1, alpha over 0")
    if len(labels) < members * least:
        raise BadJob(f"couldn't split items: {len(labels)} are too few for {members} members with {least} each")
    parts: list[list[int]] = [[] for _ in range(members)]
    for label in sorted(set(labels), key=str):
        places = np.array([i for i, each in enumerate(labels) if each == label])
        rng.shuffle(places)
        shares = rng.dirichlet(np.full(members, alpha))
        if not np.isfinite(shares).all():  # every draw underflowed: all weight is somewhere, so let it be anywhere
            shares = np.eye(members)[int(rng.integers(members))]
        ends = np.round(np.cumsum(shares)[:-1] * len(places)).astype(np.int64)
        for part, taken in zip(parts, np.split(places, ends), strict=True):
            part += [int(i) for i in taken]
    for part in parts:
        while len(part) < least:
            richest = max(parts, key=len)
            part.append(richest.pop(int(rng.integers(len(richest)))))
    return [sorted(part) for part in parts]
