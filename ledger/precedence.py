"""Which of two contributions came first, by what their authors had signed; never by a clock.

Pure over the fold. One came first when the author of the other had named it in its own feed by the time it published, or
when a decision covered the one and not the other. Of two that neither shows, none came first: both may be honest.
"""

from __future__ import annotations

from ledger.collective import Collective, Contribution


def came_first(collective: Collective, one: Contribution, other: Contribution) -> bool:
    """Whether `one` is shown to have been published before `other`."""
    if one.member == other.member:
        return one.source.seq < other.source.seq
    known = collective.seen_by_publish.get(other.event, {})
    if one.source.seq < known.get(one.member, 0):
        return True
    return any(
        one.source.seq < d.value.place.size_of(one.member) and other.source.seq >= d.value.place.size_of(other.member)
        for d in collective.decisions
    )
