"""One event of a feed: its header, its signature, its salted body, and the one canonical line that carries them.

The line is `{"e":header,"s":signature}`; it is the leaf of the feed's RFC 6962 tree, and its leaf hash is the `prev` of
the next entry. The body stands beside it under a salted commitment, so it can be erased while the line stays. This
module knows neither stores nor the meaning of event types. Invariant: an `Entry` made by `parse` or `make` carries a
valid signature of its member.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Final

from ledger.errors import BadCommitment
from protocol import canon, keys
from protocol.canon import MAX_INT, Json
from protocol.errors import Malformed, NotCanonical, TooLarge
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, as_hex, digest
from protocol.merkle import leaf_hash

VERSION: Final = 1
DOMAIN: Final = "entry"
MAX_LINE: Final = 32 * 1024  # headers are forever and every member keeps them: they stay small
MAX_BODY: Final = 768 * 1024  # charters and cuts name every member and feed: a body may be larger than a line
MAX_SEEN: Final = 64
SALT_BYTES: Final = 16

_BEFORE_HEADER: Final = b'{"e":'
_AFTER_HEADER: Final = len(b',"s":""}') + 88  # a signature is 88 base64 digits
SIGNED: Final = slice(len(_BEFORE_HEADER), -_AFTER_HEADER)  # of a line: its header
_MEMBER: Final = attrgetter("member")
# The header as its keys sort, and a language of lines in which every line is canonical. What it does not match may still be
# an entry (a number of 16 digits): then the JSON reader decides. Matching takes a tenth of the time of reading JSON.
HEX, NUMBER, KIND, BASE64 = (
    "[0-9a-f]{64}",
    "(?:0|[1-9][0-9]{0,14})",
    "[a-z][a-z0-9._-]{0,63}",
    "[A-Za-z0-9+/]{85}[AQgw]==",
)
_SEEN_ROW = rf'\["{HEX}",{NUMBER},"{HEX}"\]'
SEEN = rf"(?:{_SEEN_ROW}(?:,{_SEEN_ROW}){{0,{MAX_SEEN - 1}}})?"
PLAIN: Final = re.compile(
    rf'\{{"e":\{{"body":"({HEX})","collective":"({HEX})","member":"({HEX})","prev":"({HEX})","seen":\[({SEEN})\],'
    rf'"seq":({NUMBER}),"ts":({NUMBER}),"type":"({KIND})","v":1\}},"s":"({BASE64})"\}}'.encode()
)
_TYPE = re.compile(rf"{KIND}\Z")
_FIELDS: Final = frozenset({"v", "collective", "member", "seq", "prev", "ts", "type", "seen", "body"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A foreign head that the author had verified: entry `seq` of `member` has the leaf hash `leaf`."""

    member: MemberId
    seq: int
    leaf: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is signed and kept forever. `ts` (ms) is the author's claim; `seen` is ascending by member, each once."""

    collective: CollectiveId
    member: MemberId
    seq: int
    prev: Digest
    ts: int
    type: str
    seen: tuple[Seen, ...]
    body_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The content of an event: canonical bytes of an object, and the salt that keeps the commitment unguessable."""

    salt: bytes
    data: bytes
    _read: tuple[str, object] | None = field(default=None, init=False, repr=False, compare=False)  # see `remember`

    def remember(self, type_: str, event: object) -> None:
        """Keep what `data` was read as under an event type, for whoever reads it next; it is never changed."""
        object.__setattr__(self, "_read", (type_, event))

    def remembered(self, type_: str) -> object | None:
        """What was remembered for this type."""
        return self._read[1] if self._read is not None and self._read[0] == type_ else None

    def value(self) -> dict[str, Json]:
        """The object that `data` encodes."""
        return canon.decode_object(self.data, max_bytes=MAX_BODY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A signed header: `line` is its exact bytes, `leaf` their RFC 6962 leaf hash, `event` the digest of the header."""

    header: Header
    signature: bytes
    line: bytes
    leaf: Digest
    event: EventId


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An entry with its body; `body` is None when it was erased or withheld."""

    entry: Entry
    body: Body | None


def make(
    key: keys.SigningKey,
    *,
    collective: CollectiveId,
    seq: int,
    prev: Digest,
    ts: int,
    type: str,
    seen: Iterable[Seen],
    body: Json,
    salt: bytes,
) -> Record:
    """Sign one event of the feed of `key`.

    Law: what is made parses back, `parse(record.entry.line) == record.entry`.

    Raises:
        Malformed: a field is outside the format (TooLarge: over a limit).
    """
    if not isinstance(body, dict):
        raise Malformed("couldn't make entry: a body is an object")
    if len(salt) != SALT_BYTES:
        raise Malformed(f"couldn't make entry: a salt has {SALT_BYTES} bytes")
    content = Body(salt=salt, data=canon.encode(body, max_bytes=MAX_BODY))
    header = Header(
        collective=collective,
        member=keys.member_id(key),
        seq=seq,
        prev=prev,
        ts=ts,
        type=type,
        seen=tuple(sorted(seen, key=_MEMBER)),
        body_hash=body_hash(content),
    )
    signed = _signed(header)
    signature = keys.sign(key, DOMAIN, signed)
    line = _line(signed, signature)
    if not (PLAIN.fullmatch(line) and len(line) <= MAX_LINE and _holds(header)) and _read(line)[0] != header:
        raise Malformed("couldn't make entry: a field is outside the format")  # what we sign, others read as we mean it
    return Record(entry=_entry(header, signed, signature, line), body=content)


def parse(line: bytes) -> Entry:
    """Read a line of another party: limits first, then format, then the signature.

    Raises:
        TooLarge, Malformed, NotCanonical: not the one spelling of an entry.
        BadKey, BadSignature: not signed by the member it names.
    """
    header, signed, signature = _read(line)
    keys.verify(header.member, DOMAIN, signed, signature)
    return _entry(header, signed, signature, line)


def parse_stored(line: bytes) -> Entry:
    """Like `parse` without the signature check: for lines of our store, and for those on their way into `pages.read`."""
    header, signed, signature = _read(line)
    return _entry(header, signed, signature, line)


def signed_part(line: bytes) -> bytes:
    """The canonical header inside a line that is an entry; their digest is the event id."""
    return line[SIGNED]


def body_hash(body: Body) -> Digest:
    """The commitment to a body: SHA-256(salt || data)."""
    return Digest(hashlib.sha256(body.salt + body.data).hexdigest())


def check_body(entry: Entry, body: Body) -> None:
    """Check that `body` is what `entry` commits to, and readable.

    Raises:
        BadCommitment: it is another body.
        Malformed: it is not the canonical bytes of an object (TooLarge: over a limit).
    """
    if len(body.data) > MAX_BODY:
        raise TooLarge(f"couldn't take body: {len(body.data)} bytes, the limit is {MAX_BODY}")
    if len(body.salt) != SALT_BYTES:
        raise Malformed(f"couldn't take body: a salt has {SALT_BYTES} bytes")
    if body_hash(body) != entry.header.body_hash:
        raise BadCommitment(f"couldn't take body of entry {entry.header.seq}: the entry commits to another one")
    body.value()


def _entry(header: Header, signed: bytes, signature: bytes, line: bytes) -> Entry:
    leaf = Digest(leaf_hash(line).hex())
    return Entry(header=header, signature=signature, line=line, leaf=leaf, event=EventId(digest(signed)))


def _signed(header: Header) -> bytes:
    """The canonical bytes of a header whose fields keep the format."""
    seen = ",".join([f'["{s.member}",{s.seq},"{s.leaf}"]' for s in header.seen])
    return (
        f'{{"body":"{header.body_hash}","collective":"{header.collective}","member":"{header.member}",'
        f'"prev":"{header.prev}","seen":[{seen}],"seq":{header.seq},"ts":{header.ts},"type":"{header.type}",'
        f'"v":{VERSION}}}'
    ).encode()


def _line(signed: bytes, signature: bytes) -> bytes:
    return b'%s%s,"s":"%s"}' % (_BEFORE_HEADER, signed, base64.b64encode(signature))


def _read(line: bytes) -> tuple[Header, bytes, bytes]:
    """Header, signed bytes and signature of a line; nothing but the signature is left unchecked."""
    header, signature = _plain(line) or _read_json(line)
    return header, signed_part(line), signature  # the line is canonical, so is this part of it


def _read_json(line: bytes) -> tuple[Header, bytes]:
    value = canon.decode_object(line, max_bytes=MAX_LINE)
    if value.keys() != {"e", "s"}:
        raise Malformed("couldn't read entry: exactly `e` and `s` are expected")
    event = value["e"]
    if not isinstance(event, dict):
        raise Malformed("couldn't read entry: `e` is an object")
    return _header(event), _signature(value["s"])


def _plain(line: bytes) -> tuple[Header, bytes] | None:
    """Header and signature of a line in `PLAIN`; None when the JSON reader must look at it."""
    match = PLAIN.fullmatch(line)
    if match is None or len(line) > MAX_LINE:
        return None
    body, collective, member, prev, seen, seq, ts, type, signature = (part.decode("ascii") for part in match.groups())
    header = Header(
        collective=CollectiveId(collective),
        member=MemberId(member),
        seq=int(seq),
        prev=Digest(prev),
        ts=int(ts),
        type=type,
        seen=_plain_seen(seen),
        body_hash=Digest(body),
    )
    return (header, binascii.a2b_base64(signature)) if _holds(header) else None


def _holds(header: Header) -> bool:
    """Whether the fields of a plain header fit together."""
    if (header.seq == 0) != (header.prev == ZERO):
        return False
    before = ""
    for head in header.seen:
        if head.member <= before or head.member == header.member:
            return False
        before = head.member
    return True


def _plain_seen(rows: str) -> tuple[Seen, ...]:
    """The heads in `["member",seq,"leaf"],...` as `PLAIN` matched it."""
    return tuple(
        Seen(member=MemberId(row[2:66]), seq=int(row[68:-67]), leaf=Digest(row[-65:-1]))
        for row in (rows[:-1].split("],") if rows else ())
    )


def _header(value: dict[str, Json]) -> Header:
    if value.keys() != _FIELDS:
        raise Malformed("couldn't read entry: a header field is missing or unknown")
    if _count(value["v"], "version") != VERSION:
        raise Malformed(f"couldn't read entry: version {value['v']} is unknown")
    kind = value["type"]
    if not (isinstance(kind, str) and _TYPE.match(kind)):
        raise Malformed("couldn't read entry: not an event type")
    header = Header(
        collective=CollectiveId(as_hex(value["collective"], "collective id")),
        member=MemberId(as_hex(value["member"], "member id")),
        seq=_count(value["seq"], "sequence number"),
        prev=Digest(as_hex(value["prev"], "previous leaf")),
        ts=_count(value["ts"], "time"),
        type=kind,
        seen=_seen(value["seen"]),
        body_hash=Digest(as_hex(value["body"], "body commitment")),
    )
    if (header.seq == 0) != (header.prev == ZERO):
        raise Malformed("couldn't read entry: the first entry, and no other, has no previous leaf")
    if any(seen.member == header.member for seen in header.seen):
        raise Malformed("couldn't read entry: it names its own feed as seen")
    return header


def _seen(value: Json) -> tuple[Seen, ...]:
    if not isinstance(value, list):
        raise Malformed("couldn't read entry: `seen` is a list")
    if len(value) > MAX_SEEN:
        raise TooLarge(f"couldn't read entry: {len(value)} seen heads, the limit is {MAX_SEEN}")
    heads = tuple(_seen_head(item) for item in value)
    if any(a.member >= b.member for a, b in pairwise(heads)):
        raise NotCanonical("couldn't read entry: seen heads are ascending by member, each once")
    return heads


def _seen_head(value: Json) -> Seen:
    match value:
        case [member, seq, leaf]:
            return Seen(
                member=MemberId(as_hex(member, "seen member")),
                seq=_count(seq, "seen sequence number"),
                leaf=Digest(as_hex(leaf, "seen leaf")),
            )
        case _:
            raise Malformed("couldn't read entry: a seen head is [member, seq, leaf]")


def _count(value: Json, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INT:
        raise Malformed(f"couldn't read {what}: an integer from 0 to 2^53-1 is expected")
    return value


def _signature(value: Json) -> bytes:
    if not isinstance(value, str):
        raise Malformed("couldn't read signature: base64 text is expected")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("couldn't read signature: base64 text is expected") from None
    if len(raw) != 64 or base64.b64encode(raw).decode("ascii") != value:
        raise NotCanonical("couldn't read signature: not the base64 of 64 bytes")
    return raw
