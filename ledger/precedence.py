"""Which of two contributions came first, by what their authors had signed; never by a clock.

Pure over the fold. One came first when the author of the other had named it in its own feed by the time it published, or
when a decision covered the one and not the other. Of two that neither shows, none came first: both may be honest.
"""

from __future__ import annotations

from collections.abc import Callable

from ledger.collective import Collective, Contribution


def came_first(collective: Collective, one: Contribution, other: Contribution) -> bool:
    """Whether `one` is shown to have been published before `other`."""
    return earlier_than(collective, other)(one)


def earlier_than(collective: Collective, other: Contribution) -> Callable[[Contribution], bool]:
    """`came_first` for many, asked about one `other`: heads of decisions only grow, so the last without it says most."""
    known = collective.seen_by_publish.get(other.event, {})
    places = (d.value.place for d in reversed(collective.decisions))
    last = next((p for p in places if other.source.seq >= p.size_of(other.member)), None)

    def first(one: Contribution) -> bool:
        seq = one.source.seq
        if one.member == other.member:
            return seq < other.source.seq
        return seq < known.get(one.member, 0) or (last is not None and seq < last.size_of(one.member))

    return first
