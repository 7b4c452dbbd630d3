"""What one node asks another: eight requests in canonical JSON, each with the asker's binding, each read back strictly.

Every stream protocol has one kind of request; its name stands in `KINDS`. A reader verifies the binding's signatures (those it
verified lately it remembers); whether it is that of the authenticated remote peer is the desk's matter. Knows no stream,
no store and no members. Law: `parse_request(x.to_bytes()) == x`, and nothing else has these bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TypeAlias

from protocol import fingerprints
from protocol.binding import Binding
from protocol.binding import verify as verify_binding
from protocol.canon import Json, decode_object, encode
from protocol.errors import Malformed
from protocol.ids import CollectiveId, Digest, MemberId, as_hex

HEADS = "/fishernet/heads/1"
FEED = "/fishernet/feed/1"
BLOB = "/fishernet/blob/1"
CHANGES = "/fishernet/heads/2"
RANGE = "/fishernet/feed/2"
FOLLOW = "/fishernet/feed/3"
PART = "/fishernet/blob/2"
HAVE = "/fishernet/have/1"

MAX_REQUEST = 8 * 1024
MAX_HAVE_REQUEST = 64 * 1024
MAX_DIGESTS = 1024  # that one request asks after
MAX_PART = 16 << 20  # bytes of a blob that one request asks for
MAX_TOKEN = 64
MAX_ATTACHED = 1 << 20  # bytes of blobs that come with records

_TOKEN = re.compile(rf"[0-9A-Za-z_-]{{0,{MAX_TOKEN}}}\Z")
_RAW = 32  # bytes of a digest


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsRequest:
    """Which heads do you hold in this collective?"""

    collective: CollectiveId
    binding: Binding

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return _request("heads", self.collective, self.binding, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRequest:
    """Give me the records of `member` from `start` on."""

    collective: CollectiveId
    binding: Binding
    member: MemberId
    start: int

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return _request("feed", self.collective, self.binding, {"member": self.member, "start": self.start})


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRequest:
    """Give me the blob `digest` from `offset` on."""

    collective: CollectiveId
    binding: Binding
    digest: Digest
    offset: int

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return _request("blob", self.collective, self.binding, {"digest": self.digest, "offset": self.offset})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesRequest:
    """Which heads have changed since you gave me the token `since`?

    `have` are the fingerprints of my own heads (264 bytes), so that only heads in buckets that differ need to be sent; empty: I
    hold none, or with a token, nothing has changed here since I got it.
    """

    collective: CollectiveId
    binding: Binding
    since: str = ""
    have: bytes = b""

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        fields: dict[str, Json] = {"since": self.since, "have": base64.b64encode(self.have).decode("ascii")}
        return _request("changes", self.collective, self.binding, fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeRequest:
    """Give me the records of `member` from `start` on, and with them blobs that they name, at most `attach` bytes in all."""

    collective: CollectiveId
    binding: Binding
    member: MemberId
    start: int
    attach: int

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        fields: dict[str, Json] = {"member": self.member, "start": self.start, "attach": self.attach}
        return _request("range", self.collective, self.binding, fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowRequest:
    """Give me the records of your own feed from `start` on as they come, each time with at most `attach` bytes of blobs."""

    collective: CollectiveId
    binding: Binding
    start: int
    attach: int

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return _request("follow", self.collective, self.binding, {"start": self.start, "attach": self.attach})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRequest:
    """Give me `length` bytes of the blob `digest` from `offset` on."""

    collective: CollectiveId
    binding: Binding
    digest: Digest
    offset: int
    length: int

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        fields: dict[str, Json] = {"digest": self.digest, "offset": self.offset, "length": self.length}
        return _request("part", self.collective, self.binding, fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class HaveRequest:
    """Which of these blobs, 1 to 1024, do you hold?"""

    collective: CollectiveId
    binding: Binding
    digests: tuple[Digest, ...]

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        raw = b"".join([bytes.fromhex(digest) for digest in self.digests])
        fields: dict[str, Json] = {"digests": base64.b64encode(raw).decode("ascii")}
        return _request("have", self.collective, self.binding, fields, limit=MAX_HAVE_REQUEST)


Request: TypeAlias = (
    HeadsRequest | FeedRequest | BlobRequest | ChangesRequest | RangeRequest | FollowRequest | PartRequest | HaveRequest
)

KINDS: dict[str, type[Request]] = {
    HEADS: HeadsRequest,
    FEED: FeedRequest,
    BLOB: BlobRequest,
    CHANGES: ChangesRequest,
    RANGE: RangeRequest,
    FOLLOW: FollowRequest,
    PART: PartRequest,
    HAVE: HaveRequest,
}
_FIELDS = {
    "heads": frozenset[str](),
    "feed": frozenset({"member", "start"}),
    "blob": frozenset({"digest", "offset"}),
    "changes": frozenset({"since", "have"}),
    "range": frozenset({"member", "start", "attach"}),
    "follow": frozenset({"start", "attach"}),
    "part": frozenset({"digest", "offset", "length"}),
    "have": frozenset({"digests"}),
}


def max_request(protocol: str) -> int:
    """How long a request of `protocol` may be, in bytes."""
    return MAX_HAVE_REQUEST if protocol == HAVE else MAX_REQUEST


def parse_request(data: bytes, *, max_bytes: int = MAX_REQUEST) -> Request:
    """Read a request of any kind; its binding is verified, but not yet compared with the remote peer.

    `max_bytes` is `max_request` of the protocol it came over.

    Raises:
        Refused: malformed, too large, or a binding that does not verify.
    """
    value = decode_object(data, max_bytes=max_bytes)
    kind = value.get("ask")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if (
        fields is None
        or value.keys() != {"v", "ask", "collective", "binding"} | fields
        or value["v"] != 1
        or value["v"] is True
    ):
        raise Malformed("couldn't read request: the fields are not those of a request")
    collective = CollectiveId(as_hex(value["collective"], "collective"))
    match kind:
        case "feed":
            member, start = MemberId(as_hex(value["member"], "member")), _natural(value["start"])
            bound = verify_binding(value["binding"])
            return FeedRequest(collective=collective, binding=bound, member=member, start=start)
        case "blob":
            digest, offset = Digest(as_hex(value["digest"])), _natural(value["offset"])
            bound = verify_binding(value["binding"])
            return BlobRequest(collective=collective, binding=bound, digest=digest, offset=offset)
        case "changes":
            since, have = _token(value["since"]), _prints(value["have"])
            bound = verify_binding(value["binding"])
            return ChangesRequest(collective=collective, binding=bound, since=since, have=have)
        case "range":
            member, start = MemberId(as_hex(value["member"], "member")), _natural(value["start"])
            attach, bound = _attach(value["attach"]), verify_binding(value["binding"])
            return RangeRequest(collective=collective, binding=bound, member=member, start=start, attach=attach)
        case "follow":
            start, attach = _natural(value["start"]), _attach(value["attach"])
            bound = verify_binding(value["binding"])
            return FollowRequest(collective=collective, binding=bound, start=start, attach=attach)
        case "part":
            digest, offset, length = (
                Digest(as_hex(value["digest"])),
                _natural(value["offset"]),
                _length(value["length"]),
            )
            bound = verify_binding(value["binding"])
            return PartRequest(collective=collective, binding=bound, digest=digest, offset=offset, length=length)
        case "have":
            digests = _digests(value["digests"])
            return HaveRequest(collective=collective, binding=verify_binding(value["binding"]), digests=digests)
        case _:
            return HeadsRequest(collective=collective, binding=verify_binding(value["binding"]))


def check_token(text: str) -> str:
    """Return `text` when it may be a token.

    Raises:
        Malformed: longer than 64 characters, or others than letters, digits, `-` and `_`.
    """
    if not _TOKEN.match(text):
        raise Malformed("couldn't read token: at most 64 letters and digits are expected")
    return text


def _request(
    kind: str, collective: str, binding: Binding, fields: dict[str, Json], *, limit: int = MAX_REQUEST
) -> bytes:
    value: dict[str, Json] = {"v": 1, "ask": kind, "collective": collective, "binding": binding.to_json(), **fields}
    return encode(value, max_bytes=limit)


def _natural(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed("couldn't read request: a count from 0 on is expected")
    return value


def _length(value: Json) -> int:
    length = _natural(value)
    if not 1 <= length <= MAX_PART:
        raise Malformed(f"couldn't read request: a part has 1 to {MAX_PART} bytes")
    return length


def _attach(value: Json) -> int:
    size = _natural(value)
    if size > MAX_ATTACHED:
        raise Malformed(f"couldn't read request: at most {MAX_ATTACHED} bytes are attached")
    return size


def _token(value: Json) -> str:
    if not isinstance(value, str):
        raise Malformed("couldn't read token: text is expected")
    return check_token(value)


def _prints(value: Json) -> bytes:
    raw = _raw(value)
    if len(raw) not in {0, fingerprints.SIZE}:
        raise Malformed(f"couldn't read fingerprints: none or {fingerprints.SIZE} bytes are expected")
    return raw


def _digests(value: Json) -> tuple[Digest, ...]:
    raw = _raw(value)
    if not raw or len(raw) % _RAW or len(raw) > MAX_DIGESTS * _RAW:
        raise Malformed(f"couldn't read digests: 1 to {MAX_DIGESTS} of {_RAW} bytes each are expected")
    return tuple([Digest(raw[at : at + _RAW].hex()) for at in range(0, len(raw), _RAW)])


def _raw(value: Json) -> bytes:
    if not isinstance(value, str):
        raise Malformed("couldn't read request: base64 text is expected")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("couldn't read request: not base64") from None
    if base64.b64encode(raw).decode("ascii") != value:
        raise Malformed("couldn't read request: base64 with a second spelling")
    return raw
