"""Decisions on API keys on their way into the ledger: counted together, written now and then as `access.served`.

Knows no HTTP; the daemon says when and writes. What could not be appended stays here, and at a stop in a file of the home:

    <home>/served.json   counts that no event holds yet; written when the node stops, read and deleted when it starts; ours

Invariant: every decision is in exactly one event, in the file, or here; a crash loses at most `EVERY_S` seconds of counts. No
word of a prompt, an answer or a key comes here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ledger import events
from ledger.events import MAX_SERVED, AccessServed, Served
from ledger.events.grants import MAX_LINKS
from node.files import write_new
from protocol.errors import FishernetError
from protocol.ids import Digest, EventId

log = logging.getLogger("fishernet.serving")

EVERY_S: Final = 60.0
MOST_DECISIONS: Final = 256  # in one event


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One decision: a refusal at once, an answer when it has ended and its tokens are known."""

    key: str
    purpose: str
    model: Digest
    reason: str = ""
    grants: tuple[str, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0


class AccessLog:
    """Counts since the last event."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now = now_ms
        self._since = 0
        self._kinds: dict[tuple[str, str, str, str, tuple[EventId, ...]], Served] = {}
        self._ready: list[AccessServed] = []  # events that are full

    def add(self, counted: Counted) -> None:
        """Count a decision."""
        now = self._now()
        one = Served(
            key=counted.key,
            purpose=counted.purpose,
            model=counted.model,
            reason=counted.reason,
            grants=tuple(sorted(EventId(grant) for grant in set(counted.grants)))[:MAX_LINKS],
            requests=1,
            prompt_tokens=counted.prompt_tokens,
            answer_tokens=counted.answer_tokens,
        )
        if not self._kinds:
            self._since = now
        before = self._kinds.get(one.kind)
        if before is not None:
            one = replace(
                one,
                requests=one.requests + before.requests,
                prompt_tokens=one.prompt_tokens + before.prompt_tokens,
                answer_tokens=one.answer_tokens + before.answer_tokens,
            )
        self._kinds[one.kind] = one
        if len(self._kinds) >= MAX_SERVED or sum(each.requests for each in self._kinds.values()) >= MOST_DECISIONS:
            self._close(now)

    @property
    def due(self) -> bool:
        """Whether something should be written now."""
        return bool(self._ready) or (bool(self._kinds) and self._now() - self._since >= EVERY_S * 1000)

    @property
    def waiting(self) -> bool:
        """Whether there is anything that no event holds."""
        return bool(self._ready or self._kinds)

    def write(self, append: Callable[[events.Event], Any]) -> int:
        """Append everything that waits, oldest first; returns how many events. What `append` raises ends it: the rest waits."""
        self._close(self._now())
        written = 0
        while self._ready:
            append(self._ready[0])
            del self._ready[0]
            written += 1
        return written

    def keep(self, path: Path) -> None:
        """Put what waits into a file, or delete an old one."""
        self._close(self._now())
        if not self._ready:
            path.unlink(missing_ok=True)
            return
        write_new(path, json.dumps([each.to_json() for each in self._ready]).encode(), mode=0o600)

    def take_up(self, path: Path) -> None:
        """Take back what a stop had left in a file."""
        try:
            found = [events.parse(AccessServed.TYPE, body) for body in json.loads(path.read_bytes())]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, FishernetError) as e:
            log.warning("event=served-counts-unreadable error=%s", type(e).__name__)
            return
        self._ready = [each for each in found if isinstance(each, AccessServed)] + self._ready
        path.unlink()

    def _close(self, now: int) -> None:
        """Make an event of what was counted."""
        if self._kinds:
            kinds = sorted(self._kinds.values(), key=lambda each: each.kind)
            self._ready.append(AccessServed(since=min(self._since, now), until=now, served=tuple(kinds)))
        self._kinds = {}
