"""What the fold finds out: contributions, decisions, requests for amendments, and entries it could not take.

Frozen values; knows no rule and no feed. Each names the entry it came from, so that whoever doubts it can look.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.charter import Charter
from ledger.cuts import Value
from ledger.tally import Source
from protocol.canon import Json
from protocol.ids import Digest, EventId, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A published contribution; its blob is elsewhere."""

    source: Source
    epoch: Digest
    number: int
    blob: Digest
    size: int

    @property
    def event(self) -> EventId:
        """The event that published it."""
        return self.source.event

    @property
    def member(self) -> MemberId:
        """Whose it is."""
        return self.source.member


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a height decided, with its certificate: the commits of a quorum."""

    height: int
    attempt: int
    digest: Digest
    value: Value
    charter: Charter
    proposal: Source
    commits: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An amendment somebody proposed."""

    source: Source
    change: dict[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """An entry that the fold could not take as it stands."""

    source: Source
    code: str
    text: str
