"""How fast the link to each peer is, and so how long an answer of so many bytes may take: f(bytes), never one number for all.

Rate and answer time are moving averages of what streams measured. A deadline is a multiple of what the link would need, at
least `FLOOR_S`, at most what `SLOWEST` bytes a second would need: a slow link gets the time that it needs, and one who
trickles bytes to hold our memory and streams does not. A missed deadline halves the rate, so that a link that became slow is
given more time at the next try. Knows no stream and no clock: it is told. Invariant: at most `MAX_PEERS` links are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from protocol.ids import PeerId

SLOWEST: Final = 2 * 1024  # bytes a second that a stream must reach over a whole transfer
FLOOR_S: Final = 8.0  # a peer that swaps, checks a large blob or restarts its daemon is silent for seconds
SLACK_S: Final = 12.0  # for the way there and back on the worst link, and for a loss or two
MAX_PEERS: Final = 2048
_MARGIN: Final = 6.0  # times what the link should need: other streams share it
_SAMPLE: Final = 16 * 1024  # bytes from which a transfer says something about the rate
_WEIGHT: Final = 0.25  # of a new measurement


class _Link:
    __slots__ = ("rate", "rtt")

    def __init__(self) -> None:
        self.rate: float | None = None
        self.rtt: float | None = None


class Links:
    """What was measured of each peer's link."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._links: OrderedDict[PeerId, _Link] = OrderedDict()

    def note(self, peer: PeerId, size: int, seconds: float) -> None:
        """`size` bytes came in `seconds`; few bytes say nothing about the rate and are ignored."""
        if size < _SAMPLE:
            return
        link = self._link(peer)
        link.rate = _mixed(link.rate, size / max(seconds, 1e-4))

    def answered(self, peer: PeerId, seconds: float) -> None:
        """The first bytes of an answer came `seconds` after the question."""
        link = self._link(peer)
        link.rtt = _mixed(link.rtt, seconds)

    def missed(self, peer: PeerId, size: int, seconds: float) -> None:
        """`size` bytes did not come within `seconds`: the link is slower than we thought."""
        link = self._link(peer)
        known = size / seconds if link.rate is None else link.rate
        link.rate = max(min(known / 2, size / seconds), SLOWEST / 4)

    def deadline(self, peer: PeerId, size: int) -> float:
        """Seconds that `size` bytes to or from `peer` may take: law: from `FLOOR_S` to `SLACK_S` + size / `SLOWEST`."""
        longest = SLACK_S + size / SLOWEST
        link = self._links.get(peer)
        if link is None or (link.rate is None and size >= _SAMPLE):
            return longest
        needed = (link.rtt or 0.0) + (size / link.rate if link.rate is not None else 0.0)
        return min(max(FLOOR_S, _MARGIN * needed), longest)

    def rate(self, peer: PeerId) -> float | None:
        """Bytes a second of one stream, lately; None: not measured."""
        link = self._links.get(peer)
        return None if link is None else link.rate

    def rtt(self, peer: PeerId) -> float | None:
        """Seconds until an answer begins, lately; None: not measured."""
        link = self._links.get(peer)
        return None if link is None else link.rtt

    def _link(self, peer: PeerId) -> _Link:
        link = self._links.setdefault(peer, _Link())
        self._links.move_to_end(peer)
        while len(self._links) > MAX_PEERS:
            self._links.popitem(last=False)
        return link


def _mixed(known: float | None, new: float) -> float:
    return new if known is None else (1 - _WEIGHT) * known + _WEIGHT * new
