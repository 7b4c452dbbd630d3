"""What the node decides for its sync: whom we serve, whose feeds we take, what peers may cost, what happens with news.

Values and functions only; every default is the answer of a node without a ledger's view, without a guard and without quotas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from ledger.entry import Record
from ledger.forks import Fork
from node.guarding.limits import Fault, Kind
from protocol.binding import Binding
from protocol.ids import Digest, MemberId, PeerId

UNLIMITED: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRules:
    """What the node decides.

    `wants` is `allowed` unless given (a joiner serves nobody yet, but takes the founder's feed). `peers` says which peer
    speaks for which member by the feeds, so that members find each other whom no configuration introduced. `farewell`
    says how many entries of a feed a former member may still read, `serves` which members may fetch blobs here, `outdated`
    whether a member has bound another transport key after the one of a binding.

    What peers may cost: `fault` and `faulty` hear of bytes that no honest node sends (a fault, or the error they caused; an error
    that an honest node may cause is none); `banned(peer, member)` says who gets and is asked nothing; `spend(peer, protocol,
    kind, amount)` takes one more request of a kept stream and `hold(peer, bytes)` memory for an answer, both raise OverQuota.
    `attached(record)` names the blob (digest, size) that goes with an entry: a small one comes and goes together with it.
    `follows`: the members that are connected are asked to send what they write by themselves (`node.syncing.following`).
    `room(member)` is how many more entries of a feed may be taken now, `took(member, entries, bytes)` hears of them.
    """

    allowed: Callable[[MemberId], bool]
    on_records: Callable[[MemberId, Sequence[Record]], None]
    wants: Callable[[MemberId], bool] | None = None
    on_fork: Callable[[Fork], None] | None = None
    farewell: Callable[[MemberId, MemberId], int] = lambda _reader, _feed: 0
    peers: Callable[[], Mapping[PeerId, MemberId]] | None = None
    serves: Callable[[MemberId], bool] = lambda _member: True
    outdated: Callable[[Binding], bool] = lambda _binding: False
    attached: Callable[[Record], tuple[Digest, int] | None] | None = None
    follows: bool = False
    fault: Callable[[PeerId, Fault], None] = lambda _peer, _fault: None
    faulty: Callable[[PeerId, Exception], None] = lambda _peer, _error: None
    banned: Callable[[PeerId, MemberId | None], bool] = lambda _peer, _member: False
    spend: Callable[[PeerId, str, Kind, float], None] = lambda _peer, _protocol, _kind, _amount: None
    hold: Callable[[PeerId, int], AbstractContextManager[None]] = lambda _peer, _size: contextlib.nullcontext()
    room: Callable[[MemberId], int] = lambda _member: UNLIMITED
    took: Callable[[MemberId, int, int], None] = lambda _member, _entries, _size: None

    def known(self, member: MemberId) -> bool:
        """Whether we serve or follow a member."""
        return self.allowed(member) or (self.wants is not None and self.wants(member))
