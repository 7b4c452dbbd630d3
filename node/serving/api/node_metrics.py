"""What Prometheus reads of the node around the API: network, sync, guard, storage, ledger, log; as each part counts it.

A part gives a flat mapping of numbers, `fishernet_<section>_<name>` is made of each; names that are counted here are counters,
all others are levels. The only label is a member's name in the charter, so there are at most as many as seats. Knows no part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Numbers = Mapping[str, Any]
Read = Callable[[], Mapping[str, Numbers]]
MEMBERS: Final = "members"  # the section whose values are rows: {name: {what: number}}

_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,60}\Z")
_COUNTERS: Final = re.compile(
    r"(fault_|refused_|bytes_|streams_(served|opened|reused)|blobs_fetched|heads_|answers|pages|hedged|lives|dropped"
    r"|handler_errors|bans_made|lines_lost|pruned|lost|fetched|dials|found_)"
)
_LEVELS: Final = frozenset({"bytes_held", "bytes_db", "bytes_wal", "bytes_blobs", "bytes_free"})
_TEXTS: Final = {
    "swarm_up": "1 while the network daemon answers.",
    "swarm_peers": "Connected peers.",
    "swarm_missing": "Peers that should be connected and are not.",
    "swarm_lives": "Times the network daemon was started.",
    "sync_behind": "Entries that others are known to hold and this node does not.",
    "sync_quarantined": "Peers that are not asked for a while.",
    "sync_blobs_waiting": "Blobs that are being fetched or wait for it.",
    "guard_bans": "Bans that stand.",
    "ledger_entries": "Entries of all feeds held here.",
    "ledger_own_entries": "Entries of this node's own feed.",
    "ledger_pending": "Contributions that no release has decided on.",
    "ledger_releases": "Releases decided.",
    "ledger_height": "Decisions taken by the collective.",
    "ledger_paused": "1 while this node writes nothing into its feed.",
    "ledger_forks": "Members proven to have signed two histories.",
    "ledger_bytes_db": "Bytes of the ledger file.",
    "ledger_bytes_wal": "Bytes of the ledger's write-ahead log.",
    "log_lines_lost": "Log lines that the disk had no room for.",
}
_ROWS: Final = {
    "entries": "Entries of this member's feed held here.",
    "behind": "Entries of this member's feed that others are known to hold and this node does not.",
    "connected": "1 while somebody who speaks for this member is connected.",
    "frozen": "1 when this member's feed is proven forked.",
}


class NodeMeters:
    """A collector for `prometheus_client`: asks the node at each look and keeps nothing."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing beforehand: the numbers differ with what the node does."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The newest values."""
        for section, numbers in sorted(self._read().items()):
            if section == MEMBERS:
                yield from _rows(numbers)
                continue
            for name, value in sorted(numbers.items()):
                if (number := _number(value)) is None or not _WORD.match(f"{section}_{name}"):
                    continue
                text = _TEXTS.get(
                    f"{section}_{name}", f"{name.replace('_', ' ')} of this node's {section}.".capitalize()
                )
                counted = _COUNTERS.match(name) and name not in _LEVELS
                family = CounterMetricFamily if counted else GaugeMetricFamily
                yield family(f"fishernet_{section}_{name}", text, value=number)


def _rows(members: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    for what, text in _ROWS.items():
        family = GaugeMetricFamily(f"fishernet_member_{what}", text, labels=["member"])
        for name, numbers in sorted(members.items()):
            if (number := _number(numbers.get(what))) is not None:
                family.add_metric([name], number)
        yield family


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
