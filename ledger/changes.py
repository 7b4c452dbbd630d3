"""Numbers the changes of feeds in one life of a ledger, so that who was told up to a number can ask what came after it.

Knows no feed and no disk; may be asked from any thread. Invariant: a feed stands once, with the number of its last change.
"""

from __future__ import annotations

import threading

from protocol.ids import CollectiveId, MemberId


class Changes:
    """The last change of each feed."""

    def __init__(self) -> None:
        """Begin at 0: what was there before is no change."""
        self._lock = threading.Lock()  # held for a moment only
        self._newest = 0
        self._numbers: dict[tuple[CollectiveId, MemberId], int] = {}  # oldest change first

    def note(self, collective: CollectiveId, member: MemberId) -> None:
        """This feed was written to."""
        with self._lock:
            self._newest += 1
            self._numbers.pop((collective, member), None)
            self._numbers[collective, member] = self._newest

    def since(self, collective: CollectiveId, number: int) -> tuple[list[tuple[MemberId, int]], int]:
        """The feeds changed after change `number` with the number of each one's last change, ascending; and the newest one."""
        found: list[tuple[MemberId, int]] = []
        with self._lock:
            for (where, member), changed in reversed(self._numbers.items()):
                if changed <= number:
                    break
                if where == collective:
                    found.append((member, changed))
            return found[::-1], self._newest
