"""What a question to a peer costs it when it fails: everybody who asks ends a failed one here, in the same way.

Bytes that no honest peer sends are its fault, and it is left alone in that matter for long; after passing trouble for a moment.
Knows no protocol. Invariant: a matter that failed is left alone, for longer each time, until something comes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

from node.finding.backoff import HOSTILE_S, PASSING_S, Backoff
from protocol.errors import Refused, Retry
from protocol.ids import PeerId

log = logging.getLogger(__name__)


class Failures:
    """The failed questions of one sync."""

    def __init__(self, backoff: Backoff, faulty: Callable[[PeerId, Exception], None]) -> None:
        """`faulty` hears of errors that may be the peer's fault, and decides that itself."""
        self._backoff, self._faulty = backoff, faulty
        self.last = ""  # in the words of `fishernet status`

    def note(
        self,
        what: str,
        peer: PeerId,
        matter: Hashable,
        error: Refused | Retry,
        pause: tuple[float, float] | None = None,
    ) -> None:
        """A question to `peer` ended with `error`: it is left alone in `matter`, for `pause` (first, longest; s) if given."""
        self.tell(what, peer, error)
        hostile = isinstance(error, Refused)
        if hostile:
            self._faulty(peer, error)
        self._backoff.fail(matter, pause or (HOSTILE_S if hostile else PASSING_S))

    def tell(self, what: str, peer: PeerId, error: Exception) -> None:
        """Something failed, and not because of the peer."""
        self.last = f"{what} from {peer[-6:]}: {error}"
        log.debug("event=sync-trouble what=%s peer=%s error=%s", what, peer[-6:], error)
