"""Says in our feed that this node serves a member no longer: once a day and member, so no flood of faults floods the feed.

Strangers are nobody's matter but our log's. Knows no network; the guard decides, this only tells. Invariant: at most one
`peer.banned` for each member in 24 hours, over restarts too, and none while nothing may be written.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from ledger import events
from node.collective.seat import Seat
from node.guarding.bans import Ban
from protocol.errors import Fatal, FishernetError
from protocol.ids import MemberId

log = logging.getLogger(__name__)

DAY_MS: Final = 86_400_000
_STATE: Final = "guard.told"  # in the ledger's state: member -> when we said so last, in ms


class Banning:
    """Our own words about bans."""

    def __init__(self, seat: Seat) -> None:
        """Remember over a restart what was said in the last day."""
        self._seat = seat
        saved = seat.store.get_state(_STATE)
        self._said: dict[MemberId, int] = {} if saved is None else json.loads(saved)

    def tell(self, ban: Ban) -> bool:
        """Write the event when it is due; whether it was written."""
        member, now = ban.member, self._seat.now_ms()
        if member is None or member == self._seat.me or not self._seat.may_read(member):
            return False
        said = {m: at for m, at in self._said.items() if now - DAY_MS < at <= now}
        if member in said:
            return False
        said[member] = now
        until = None if ban.until is None else int(ban.until * 1000)
        event = events.PeerBanned(member=member, peer=ban.peer, reason=ban.code, until=until)
        try:
            self._seat.append(event, {_STATE: json.dumps(said, sort_keys=True).encode("ascii")})
        except FishernetError as e:
            if isinstance(e, Fatal):
                raise
            log.warning("event=ban-not-told member=%s code=%s", member[:12], e.code)
            return False
        self._said = said
        return True
