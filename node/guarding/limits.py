"""What one peer may cost us: rates by kind of cost, streams at once, and how many points each fault has.

Values only. A member is judged by itself; peers that are not known as members share one small account, so that many fresh peer
ids together get no more than one. Units: requests and streams are counted, `in` and `out` are bytes, `verify` are signature
checks (about 0.1 ms each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from protocol import wire
from protocol.errors import Refused

MIB: Final = 1 << 20
Kind: TypeAlias = Literal["requests", "in", "out", "verify", "gossip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So much a second for ever, and so much at once."""

    per_s: float
    burst: float


def _requests() -> Mapping[str, Rate]:
    """By the first part of a protocol's name: all its versions share one bucket."""
    return MappingProxyType(
        {
            family(wire.HEADS): Rate(per_s=10, burst=200),
            family(wire.FEED): Rate(per_s=200, burst=2000),
            family(wire.BLOB): Rate(per_s=1000, burst=5000),
            family(wire.HAVE): Rate(per_s=50, burst=500),
        }
    )


def family(protocol: str) -> str:
    """A protocol's name without its version: `/fishernet/blob/2` and `/fishernet/blob/1` cost from one purse."""
    return protocol.rstrip("0123456789").rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The rates of one account. `requests` by protocol family; `other` for every other protocol."""

    requests: Mapping[str, Rate]
    other: Rate
    received: Rate  # bytes
    sent: Rate  # bytes
    verify: Rate  # signature checks
    gossip: Rate  # announcements

    def rate(self, kind: Kind, protocol: str) -> Rate:
        """The rate for one kind of cost."""
        if kind == "requests":
            return self.requests.get(family(protocol), self.other)
        return {"in": self.received, "out": self.sent, "verify": self.verify, "gossip": self.gossip}[kind]


MEMBER: Final = Quota(
    requests=_requests(),
    other=Rate(per_s=50, burst=500),
    received=Rate(per_s=64 * MIB, burst=256 * MIB),
    sent=Rate(per_s=512 * MIB, burst=1024 * MIB),
    verify=Rate(per_s=200, burst=1000),
    gossip=Rate(per_s=50, burst=500),
)
STRANGERS: Final = Quota(  # all of them together
    requests=MappingProxyType({}),
    other=Rate(per_s=10, burst=60),
    received=Rate(per_s=128 * 1024, burst=MIB),
    sent=Rate(per_s=128 * 1024, burst=MIB),
    verify=Rate(per_s=10, burst=60),
    gossip=Rate(per_s=10, burst=60),
)
STRANGER: Final = Quota(  # one of them
    requests=MappingProxyType({}),
    other=Rate(per_s=2, burst=30),
    received=Rate(per_s=64 * 1024, burst=MIB // 2),
    sent=Rate(per_s=64 * 1024, burst=MIB // 2),
    verify=Rate(per_s=2, burst=30),
    gossip=Rate(per_s=2, burst=30),
)


_REFUSALS: Final = Rate(per_s=20, burst=2000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Everything that can be set. A ban comes after `threshold` points, and each further one lasts four times longer."""

    streams: int = 512  # open at once; most of them are idle
    streams_per_peer: int = 32
    streams_strangers: int = 16  # of all strangers together
    streams_per_stranger: int = 4
    strangers_connected: int = 128
    held: int = 64 * MIB  # bytes of answers in memory at once
    held_per_peer: int = 8 * MIB
    held_strangers: int = MIB  # of all strangers together
    member: Quota = MEMBER
    strangers: Quota = STRANGERS
    stranger: Quota = STRANGER
    refusals: Rate = _REFUSALS  # who asks on after so many refusals is a flood
    threshold: float = 100.0  # points; at half of them a member gets a stranger's share
    half_life_s: float = 600.0  # of points
    first_ban_s: float = 300.0
    longest_ban_s: float = 7 * 86_400.0


def limits_of(
    *, streams: int, requests_per_s: int, member_mib_per_s: int, stranger_requests_per_s: int, first_ban_s: int
) -> Limits:
    """The limits that a configuration asks for; bursts keep their proportion to the rate."""
    blob, feed = requests_per_s, requests_per_s / 5
    requests = {
        **MEMBER.requests,
        family(wire.BLOB): Rate(per_s=blob, burst=5 * blob),
        family(wire.FEED): Rate(per_s=feed, burst=10 * feed),
    }
    sent = Rate(per_s=member_mib_per_s * MIB, burst=2 * member_mib_per_s * MIB)
    crowd = Rate(per_s=stranger_requests_per_s, burst=6 * stranger_requests_per_s)
    one = Rate(per_s=max(1.0, stranger_requests_per_s / 5), burst=3 * stranger_requests_per_s)
    return Limits(
        streams=streams,
        member=replace(MEMBER, requests=MappingProxyType(requests), sent=sent),
        strangers=replace(STRANGERS, other=crowd),
        stranger=replace(STRANGER, other=one),
        first_ban_s=float(first_ban_s),
    )


class Fault(Enum):
    """What a peer did wrong: a code for logs and events, and its points.

    A fault of 0 points is counted and shown, and never leads to a ban: a link, a crash or a restart causes it as well.
    """

    MALFORMED = ("malformed", 10.0)  # bytes that no version of ours sends
    BAD_SIGNATURE = ("bad-signature", 20.0)
    BAD_BLOB = ("bad-blob", 34.0)  # whole, and not the bytes of the digest
    LYING_LENGTH = ("lying-length", 20.0)
    WRONG_PEER = ("wrong-peer", 20.0)  # a binding of somebody else
    REPLAY = ("replay", 0.0)  # gossip repeats old announcements by itself
    FLOOD = ("flood", 100.0)  # went on after thousands of refusals
    STALLED = ("stalled", 0.0)
    UNREACHABLE = ("unreachable", 0.0)

    def __init__(self, code: str, points: float) -> None:
        """Keep both parts of the value by name."""
        self.code, self.points = code, points


_BY_CODE: Final = {
    "malformed": Fault.MALFORMED,
    "not-canonical": Fault.MALFORMED,
    "bad-chain": Fault.MALFORMED,
    "bad-commitment": Fault.MALFORMED,
    "too-large": Fault.LYING_LENGTH,
    "bad-signature": Fault.BAD_SIGNATURE,
    "bad-key": Fault.BAD_SIGNATURE,
    "wrong-proof": Fault.BAD_SIGNATURE,
    "wrong-peer": Fault.WRONG_PEER,
    "blob-corrupt": Fault.BAD_BLOB,
    "blob-too-large": Fault.LYING_LENGTH,
}


def fault_of(error: Exception) -> Fault | None:
    """The fault of the peer whose bytes raised `error`; None where an honest peer may cause it too, or where it is another's."""
    return _BY_CODE.get(getattr(error, "code", "")) if isinstance(error, Refused) else None
