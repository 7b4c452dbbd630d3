"""The bytes of the three stream protocols and of the gossip topic: requests, answers, refusals, length-prefixed frames.

A frame is a 4-byte big-endian length and that many bytes. The asker sends one frame, a request in canonical JSON (at most
8 KiB) that carries its binding. The answer is one frame: a kind byte, then the payload; a blob's raw bytes follow its
frame. Every length is checked before it is believed. Knows no stream, no store and no members.
Law: `parse_*(x.to_bytes()) == x`, and a parser raises nothing but `Refused`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from protocol.binding import Binding
from protocol.binding import verify as verify_binding
from protocol.canon import Json, decode_object, encode
from protocol.errors import Malformed, TooLarge
from protocol.ids import CollectiveId, Digest, MemberId, as_hex

HEADS = "/fishernet/heads/1"
FEED = "/fishernet/feed/1"
BLOB = "/fishernet/blob/1"

MAX_REQUEST = 8 * 1024
MAX_NOTE = 8 * 1024
MAX_HEADS = 1024
MAX_PAGE = 1 << 20  # bytes of one feed answer
PAGE_RECORDS = 256
MAX_LINE = 32 * 1024
MAX_BODY = 256 * 1024
CHUNK = 256 * 1024  # a blob travels in reads of this size
HEADER = 4
SALT = 16

_ANSWER, _REFUSAL = b"\x00", b"\x01"
_CODE = re.compile(r"[a-z][a-z0-9-]{0,39}\Z")
_ERASED, _PRESENT = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The other side's no: a code of a stranger that is only compared and shown."""

    code: str


def topic(collective: CollectiveId) -> str:
    """The gossip topic that carries the checkpoint notes of one collective."""
    return f"fishernet/{collective}"


# -- frames ----------------------------------------------------------------------------------------------------------
def frame(payload: bytes) -> bytes:
    """`payload` behind its length."""
    return len(payload).to_bytes(HEADER, "big") + payload


def frame_length(header: bytes, limit: int) -> int:
    """The length that a frame's 4-byte header announces.

    Raises:
        TooLarge: over `limit`; nothing may be allocated for it.
    """
    length = int.from_bytes(header, "big")
    if length > limit:
        raise TooLarge(f"couldn't read frame: {length} bytes, the limit is {limit}")
    return length


def answer(payload: bytes) -> bytes:
    """The frame of a positive answer."""
    return frame(_ANSWER + payload)


def refusal(code: str) -> bytes:
    """The frame of a typed no."""
    return frame(_REFUSAL + code.encode("ascii"))


def open_answer(payload: bytes) -> bytes | Refusal:
    """What stands in an answer frame.

    Raises:
        Malformed: neither an answer nor a refusal.
    """
    kind, rest = payload[:1], payload[1:]
    if kind == _ANSWER:
        return rest
    if kind == _REFUSAL:
        code = rest[:41].decode("ascii", errors="replace")
        if _CODE.match(code) and len(rest) <= 40:
            return Refusal(code=code)
    raise Malformed("couldn't read answer: neither an answer nor a refusal")


# -- requests --------------------------------------------------------------------------------------------------------
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


Request: TypeAlias = HeadsRequest | FeedRequest | BlobRequest


def _request(kind: str, collective: str, binding: Binding, fields: dict[str, Json]) -> bytes:
    value: dict[str, Json] = {"v": 1, "ask": kind, "collective": collective, "binding": binding.to_json(), **fields}
    return encode(value, max_bytes=MAX_REQUEST)


_FIELDS = {"heads": frozenset[str](), "feed": frozenset({"member", "start"}), "blob": frozenset({"digest", "offset"})}


def parse_request(data: bytes) -> Request:
    """Read a request of any kind; its binding is verified, but not yet compared with the remote peer.

    Raises:
        Refused: malformed, too large, or a binding that does not verify.
    """
    value = decode_object(data, max_bytes=MAX_REQUEST)
    kind = value.get("ask")
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None or value.keys() != {"v", "ask", "collective", "binding"} | fields or value["v"] != 1:
        raise Malformed("couldn't read request: the fields are not those of a request")
    collective = CollectiveId(as_hex(value["collective"], "collective"))
    if kind == "feed":
        member, start = MemberId(as_hex(value["member"], "member")), _natural(value["start"])
        return FeedRequest(collective=collective, binding=verify_binding(value["binding"]), member=member, start=start)
    if kind == "blob":
        digest, offset = Digest(as_hex(value["digest"])), _natural(value["offset"])
        return BlobRequest(
            collective=collective, binding=verify_binding(value["binding"]), digest=digest, offset=offset
        )
    return HeadsRequest(collective=collective, binding=verify_binding(value["binding"]))


def _natural(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed("couldn't read request: a count from 0 on is expected")
    return value


# -- answers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsAnswer:
    """Who answers, and the checkpoint notes it holds. Notes are opaque here; each is verified by its reader."""

    binding: Binding
    notes: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The payload of the answer frame."""
        return _pack([encode(self.binding.to_json()), *self.notes])


def parse_heads(data: bytes) -> HeadsAnswer:
    """Read the payload of a heads answer.

    Raises:
        Refused: malformed, too many or too long notes, or a binding that does not verify.
    """
    items = _unpack(data, max_items=MAX_HEADS + 1, max_item=MAX_NOTE)
    if not items:
        raise Malformed("couldn't read heads: the binding is missing")
    return HeadsAnswer(binding=verify_binding(decode_object(items[0])), notes=tuple(items[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRecord:
    """One record as bytes: the entry's line and, unless the body was erased, its salt and canonical data."""

    line: bytes
    salt: bytes | None
    data: bytes | None

    def to_bytes(self) -> bytes:
        """The record as one item of a page."""
        head = len(self.line).to_bytes(4, "big") + self.line
        if self.salt is None or self.data is None:
            return bytes([_ERASED]) + head
        return bytes([_PRESENT]) + head + self.salt + self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPage:
    """The answerer's newest note of the feed, and records in order, from the start that was asked for."""

    note: bytes
    records: tuple[WireRecord, ...]

    def to_bytes(self) -> bytes:
        """The payload of the answer frame."""
        return _pack([self.note, *(record.to_bytes() for record in self.records)])


def page_of(note: bytes, records: Iterable[WireRecord]) -> FeedPage:
    """As many of `records` as one answer may hold: at most 256 and at most 1 MiB in all."""
    taken: list[WireRecord] = []
    room = MAX_PAGE - 8 - len(note)
    for record in records:
        room -= 4 + len(record.to_bytes())
        if room < 0 or len(taken) == PAGE_RECORDS:
            break
        taken.append(record)
    return FeedPage(note=note, records=tuple(taken))


def parse_page(data: bytes) -> FeedPage:
    """Read the payload of a feed answer.

    Raises:
        Refused: malformed, or over a limit.
    """
    items = _unpack(data, max_items=PAGE_RECORDS + 1, max_item=MAX_PAGE)
    if not items or len(items[0]) > MAX_NOTE:
        raise Malformed("couldn't read page: the note is missing or too long")
    return FeedPage(note=items[0], records=tuple(_record(item) for item in items[1:]))


def _record(item: bytes) -> WireRecord:
    if len(item) < 5 or item[0] not in (_ERASED, _PRESENT):
        raise Malformed("couldn't read record: it has no known form")
    end = 5 + int.from_bytes(item[1:5], "big")
    line, rest = item[5:end], item[end:]
    if end - 5 > MAX_LINE or end > len(item):
        raise TooLarge("couldn't read record: its line is too long")
    if item[0] == _ERASED:
        if rest:
            raise Malformed("couldn't read record: bytes follow an erased body")
        return WireRecord(line=line, salt=None, data=None)
    if not SALT <= len(rest) <= SALT + MAX_BODY:
        raise Malformed("couldn't read record: the body is too short or too long")
    return WireRecord(line=line, salt=rest[:SALT], data=rest[SALT:])


def blob_size(size: int) -> bytes:
    """The payload of a blob answer: the whole blob's size; raw bytes from the asked offset follow the frame."""
    return size.to_bytes(8, "big")


def parse_blob_size(data: bytes) -> int:
    """Read the payload of a blob answer; the caller compares it with the size that the event states."""
    if len(data) != 8:
        raise Malformed("couldn't read blob answer: 8 bytes of size are expected")
    return int.from_bytes(data, "big")


# -- lists of byte strings -------------------------------------------------------------------------------------------
def _pack(items: Sequence[bytes]) -> bytes:
    return b"".join(frame(item) for item in items)


def _unpack(data: bytes, *, max_items: int, max_item: int) -> list[bytes]:
    items: list[bytes] = []
    at = 0
    while at < len(data):
        if len(items) == max_items:
            raise TooLarge(f"couldn't read list: more than {max_items} items")
        length = frame_length(data[at : at + HEADER], max_item)
        if at + HEADER + length > len(data):
            raise Malformed("couldn't read list: an item is cut short")
        items.append(data[at + HEADER : at + HEADER + length])
        at += HEADER + length
    return items
