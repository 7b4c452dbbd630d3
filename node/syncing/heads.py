"""Asks peers which heads they hold: all that differ at the first meeting, afterwards only what changed since.

The answers carry a token of the answerer; with it the next question costs as much as what changed meanwhile, however many
members there are. At the first question, and whenever ours have changed since the last one to that peer, the fingerprints of our
own heads go along: two nodes that hold the same send each other nothing, and news that came another way is not told by each
neighbour again. Who does not speak the newer protocol is asked with the old one. Knows no schedule: it is told whom to ask.
Invariant: a token is kept only when every head before it was taken or found unwanted, and is given up when one of the unwanted
is wanted after all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ledger import checkpoint
from ledger.checkpoint import Head
from ledger.store import Store
from node.errors_network import PeerUnreachable
from node.syncing.exchange import NOT_SPOKEN, Asker
from node.syncing.feeds import Feeds
from protocol import fingerprints, wire
from protocol.binding import Binding
from protocol.ids import CollectiveId, MemberId, PeerId

MAX_SKIPPED: Final = 1024
_SALT_S: Final = 30.0  # how long one salt is used: with another one all heads are hashed again
_ROUNDS: Final = 8  # answers in a row to one question that filled the list


@dataclass(slots=True, kw_only=True)
class _Peer:
    """What one connected peer has told."""

    token: str = ""
    number: int = -1  # the change number of our store when it was asked last
    old: bool = False  # speaks only the first version
    own: Head | None = None  # the longest head of our own feed that it showed
    skipped: set[MemberId] = field(default_factory=set)


class Heads:
    """The asking side of head vectors."""

    def __init__(
        self,
        *,
        store: Store,
        collective: CollectiveId,
        asker: Asker,
        feeds: Feeds,
        me: MemberId,
        wants: Callable[[MemberId], bool],
        salt: Callable[[], bytes],
        clock: Callable[[], float],
    ) -> None:
        """`salt` draws 8 bytes anew each time; `clock` in seconds."""
        self._store, self._collective, self._asker, self._feeds = store, collective, asker, feeds
        self._me, self._wants, self._salt = me, wants, salt
        self._peers: dict[PeerId, _Peer] = {}
        self._clock = clock
        self._prints: tuple[int, float, bytes] = (-1, 0.0, b"")  # change number of the store, until when, fingerprints
        self._prefix = f"fishernet/{collective}/".encode("ascii")
        self.notes = self.asked = 0

    async def ask(self, peer: PeerId, met: Callable[[Binding], None]) -> None:
        """Ask one peer and take what it says; `met` hears who it is before anything else is believed of it.

        Raises:
            PeerRefused, Refused: a no, or bytes that are no answer.
            PeerUnreachable, StreamEnded.
        """
        known = self._peers.setdefault(peer, _Peer())
        self.asked += 1
        for _ in range(_ROUNDS):
            bound, notes, token = await self._question(peer, known)
            met(bound)
            skipped = await self._take(peer, known, notes)
            known.skipped |= skipped
            known.token = token if len(known.skipped) <= MAX_SKIPPED else ""
            if len(notes) < wire.MAX_HEADS or not token:
                return

    def own(self, peer: PeerId) -> Head | None:
        """The longest head of our own feed that a connected peer showed."""
        known = self._peers.get(peer)
        return None if known is None else known.own

    def forget(self, peer: PeerId) -> None:
        """It is gone; when it comes back, it is asked for everything that differs."""
        self._peers.pop(peer, None)

    def named(self, note: bytes) -> MemberId | None:
        """The member whose feed of our collective the note speaks of, when we want that feed; nothing is verified."""
        member = self._member(note)
        return member if member is not None and self._wanted(member) else None

    def size_in(self, note: bytes) -> int:
        """The size that a note states; 0 when it states none. Nothing is verified."""
        text = note.split(b"\n", 2)[1:2]
        return int(text[0]) if text and len(text[0]) <= 16 and text[0].isdigit() else 0

    def _member(self, note: bytes) -> MemberId | None:
        if not note.startswith(self._prefix) or len(note) > wire.MAX_NOTE:
            return None
        at = len(self._prefix)
        return MemberId(note[at : at + 64].decode("ascii", errors="replace"))

    def _wanted(self, member: MemberId) -> bool:
        return self._feeds.room_for(member) and (member == self._me or self._wants(member))

    async def _question(self, peer: PeerId, known: _Peer) -> tuple[Binding, tuple[bytes, ...], str]:
        if any(self._wanted(member) for member in known.skipped):
            known.token, known.skipped = "", set()  # what was passed over is asked for again
        if not known.old:
            number = self._number()
            have = b"" if known.token and known.number == number else self._fingerprints(number)
            known.number = number
            try:
                told = await self._asker.changes(peer, known.token, have)
            except PeerUnreachable as e:
                if NOT_SPOKEN not in str(e):
                    raise
                known.old = True
            else:
                return told.binding, told.notes, told.token
        answer = await self._asker.heads(peer)
        return answer.binding, answer.notes, ""

    def _number(self) -> int:
        return self._store.changes(self._collective, 1 << 62)[1]

    def _fingerprints(self, number: int) -> bytes:
        """Those of our own heads; many peers met at once get the same ones. A feed that is still being pulled is left out."""
        if self._prints[0] != number or self._clock() >= self._prints[1]:
            heads = self._store.heads(self._collective)
            level = [(x.member, x.size, x.root) for x in heads if self._feeds.size(x.member) >= x.size]
            self._prints = (number, self._clock() + _SALT_S, fingerprints.fingerprints(self._salt(), level))
        return self._prints[2]

    async def _take(self, peer: PeerId, known: _Peer, notes: tuple[bytes, ...]) -> set[MemberId]:
        """Believe what is signed; the members whose feeds we do not want now."""
        seen: set[MemberId] = set()
        skipped: set[MemberId] = set()
        for note in notes:
            member = self._member(note)
            if member is None or member in seen:
                continue
            seen.add(member)
            if not self._wanted(member):
                skipped.add(member)
                continue
            head = checkpoint.parse(note)
            if member == self._me and (known.own is None or head.size > known.own.size):
                known.own = head
            self.notes += 1
            await self._feeds.learn(head, peer)
        return skipped
