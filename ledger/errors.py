"""The error tree of `ledger`, hung under the three kinds of `protocol.errors`.

    Refused
    ├── BadCommitment               a body is not the one its entry commits to
    ├── BadChain                    entries that do not continue the feed they claim to belong to
    ├── BadCharter                  a charter or amendment that breaks a rule of its own form
    ├── BadEvent                    an event body that is not what its type says
    ├── BadBundle                   a proof that something was forgotten does not show it
    ├── BadValue                    a proposed decision (release cut or amendment) that does not parse
    ├── ForkSeen                    two signed statements of one feed that cannot both be true; carries the proof
    └── FeedFrozen                  the feed was proven forked before: nothing of it is taken any more
    Retry
    ├── FeedBehind                  a longer copy of our own feed exists elsewhere: fetch it before appending
    ├── StoreBusy                   another program keeps the database locked; nothing was written
    ├── StoreFull                   no room on the disk; nothing was written
    └── EraseUnfinished             bodies are deleted, but their bytes may still stand in the raw file (a reader, no room)
    Fatal
    ├── StoreLocked                 another process uses this ledger
    └── StoreBroken                 the database cannot be read or written

Message form: "couldn't <verb> <thing>: <cause>".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from protocol.errors import Fatal, Refused, Retry

if TYPE_CHECKING:
    from ledger.forks import Fork


class BadCommitment(Refused):
    """The body does not match the salted hash in the entry's header."""

    code: ClassVar[str] = "bad-commitment"


class BadChain(Refused):
    """A gap, a wrong previous leaf, or an entry of another feed."""

    code: ClassVar[str] = "bad-chain"


class BadCharter(Refused):
    """The charter, or an amendment of it, is not valid."""

    code: ClassVar[str] = "bad-charter"


class BadEvent(Refused):
    """The event's type is unknown or its body malformed."""

    code: ClassVar[str] = "bad-event"


class BadBundle(Refused):
    """The file is no proof that something was forgotten, or a part of it does not show what it should."""

    code: ClassVar[str] = "bad-bundle"


class BadValue(Refused):
    """The proposed decision does not parse."""

    code: ClassVar[str] = "bad-value"


class ForkSeen(Refused):
    """A member signed two histories; `fork` is a proof that convinces anybody."""

    code: ClassVar[str] = "fork"

    def __init__(self, message: str, fork: Fork) -> None:
        """Keep the proof beside the message."""
        super().__init__(message)
        self.fork = fork


class FeedFrozen(Refused):
    """The feed was proven forked; its member returns only with a new feed."""

    code: ClassVar[str] = "feed-frozen"


class FeedBehind(Retry):
    """Somebody holds a signed head of this feed beyond what we hold: appending now would fork it."""

    code: ClassVar[str] = "feed-behind"


class StoreBusy(Retry):
    """Another program held the database's write lock for longer than we wait."""

    code: ClassVar[str] = "store-busy"


class EraseUnfinished(Retry):
    """Deleted bodies may still stand in the raw file; asking again finishes the work."""

    code: ClassVar[str] = "erase-unfinished"


class StoreFull(Retry):
    """The disk or the database's limit is full."""

    code: ClassVar[str] = "store-full"


class StoreLocked(Fatal):
    """Another daemon or command has this ledger open for writing."""

    code: ClassVar[str] = "store-locked"


class StoreBroken(Fatal):
    """The database file is damaged, unreadable or of an unknown version."""

    code: ClassVar[str] = "store-broken"
