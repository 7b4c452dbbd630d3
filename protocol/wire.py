"""The bytes of the stream protocols and of the gossip topic: requests and answers, each in one frame of `protocol.frames`.

The asker sends one frame, a request in canonical JSON (at most 8 KiB, one for many digests 64 KiB) that carries its
binding. The answer is one frame; a blob's raw bytes follow its frame. After it the asker may ask again on the same stream.
Every length is checked before it is believed. Knows no stream, no store and no members.
Law: `parse_*(x.to_bytes()) == x`, and a parser raises nothing but `Refused`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.binding import Binding
from protocol.binding import verify as verify_binding
from protocol.canon import decode_object, encode
from protocol.errors import Malformed, TooLarge
from protocol.frames import HEADER, Refusal, answer, frame, frame_length, open_answer, pack, refusal, unpack
from protocol.ids import CollectiveId
from protocol.requests import (
    BLOB,
    CHANGES,
    FEED,
    FOLLOW,
    HAVE,
    HEADS,
    KINDS,
    MAX_ATTACHED,
    MAX_DIGESTS,
    MAX_HAVE_REQUEST,
    MAX_PART,
    MAX_REQUEST,
    MAX_TOKEN,
    PART,
    RANGE,
    BlobRequest,
    ChangesRequest,
    FeedRequest,
    FollowRequest,
    HaveRequest,
    HeadsRequest,
    PartRequest,
    RangeRequest,
    Request,
    check_token,
    max_request,
    parse_request,
)

__all__ = [
    "BLOB",
    "CHANGES",
    "CHUNK",
    "FEED",
    "FOLLOW",
    "GO_ON",
    "HAVE",
    "HEADER",
    "HEADS",
    "KINDS",
    "MAX_ATTACHED",
    "MAX_BODY",
    "MAX_DIGESTS",
    "MAX_HAVE_REQUEST",
    "MAX_HEADS",
    "MAX_LINE",
    "MAX_NOTE",
    "MAX_PAGE",
    "MAX_PART",
    "MAX_REQUEST",
    "MAX_TOKEN",
    "PAGE_RECORDS",
    "PART",
    "RANGE",
    "SALT",
    "BlobRequest",
    "ChangesAnswer",
    "ChangesRequest",
    "FeedPage",
    "FeedRequest",
    "FollowRequest",
    "HaveRequest",
    "HeadsAnswer",
    "HeadsRequest",
    "PartRequest",
    "RangeRequest",
    "Refusal",
    "Request",
    "WireRecord",
    "answer",
    "attached",
    "bitmap",
    "blob_size",
    "frame",
    "frame_length",
    "go_on",
    "max_attached",
    "max_request",
    "open_answer",
    "page_of",
    "parse_attached",
    "parse_bitmap",
    "parse_blob_size",
    "parse_changes",
    "parse_go_on",
    "parse_heads",
    "parse_page",
    "parse_request",
    "refusal",
    "topic",
]

MAX_NOTE = 8 * 1024
MAX_HEADS = 1024
MAX_PAGE = 1 << 20  # bytes of one feed answer
PAGE_RECORDS = 256
MAX_LINE = 32 * 1024
MAX_BODY = 768 * 1024  # a page holds one at least
CHUNK = 256 * 1024  # a blob travels in reads of this size
SALT = 16
GO_ON = 8  # bytes of what a follower sends after each answer

_ERASED, _PRESENT = 0, 1


def topic(collective: CollectiveId) -> str:
    """The gossip topic that carries the checkpoint notes of one collective."""
    return f"fishernet/{collective}"


# -- answers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsAnswer:
    """Who answers, and the checkpoint notes it holds. Notes are opaque here; each is verified by its reader."""

    binding: Binding
    notes: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The payload of the answer frame."""
        return pack([encode(self.binding.to_json()), *self.notes])


def parse_heads(data: bytes) -> HeadsAnswer:
    """Read the payload of a heads answer.

    Raises:
        Refused: malformed, too many or too long notes, or a binding that does not verify.
    """
    items = unpack(data, max_items=MAX_HEADS + 1, max_item=MAX_NOTE)
    if not items:
        raise Malformed("couldn't read heads: the binding is missing")
    return HeadsAnswer(binding=verify_binding(decode_object(items[0])), notes=tuple(items[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesAnswer:
    """Who answers, the token to ask with the next time, and the notes of heads that changed, oldest change first.

    With as many as `MAX_HEADS` notes there may be more: the token says how far this answer reaches.
    """

    binding: Binding
    token: str
    notes: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The payload of the answer frame."""
        return pack([encode(self.binding.to_json()), self.token.encode("ascii"), *self.notes])


def parse_changes(data: bytes) -> ChangesAnswer:
    """Read the payload of an answer to `ChangesRequest`.

    Raises:
        Refused: malformed, too many or too long notes, a token that is none, or a binding that does not verify.
    """
    items = unpack(data, max_items=MAX_HEADS + 2, max_item=MAX_NOTE)
    if len(items) < 2:
        raise Malformed("couldn't read heads: binding or token is missing")
    token = check_token(items[1][: MAX_TOKEN + 1].decode("ascii", errors="replace"))
    return ChangesAnswer(binding=verify_binding(decode_object(items[0])), token=token, notes=tuple(items[2:]))


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
        return pack([self.note, *(record.to_bytes() for record in self.records)])


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
    items = unpack(data, max_items=PAGE_RECORDS + 1, max_item=MAX_PAGE)
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


def attached(blobs: Sequence[bytes]) -> bytes:
    """The frame behind a page with attachments: for each record the blob that it names, empty when there is none or no room."""
    return frame(pack(blobs))


def parse_attached(data: bytes, records: int) -> list[bytes]:
    """Read what is attached to a page of `records` records; the caller checks digests.

    Raises:
        Refused: malformed, or not one item for each record.
    """
    blobs = unpack(data, max_items=records, max_item=MAX_ATTACHED)
    if len(blobs) != records:
        raise Malformed(f"couldn't read attachments: {records} are expected")
    return blobs


def max_attached(attach: int) -> int:
    """How long the frame of attachments may be, in bytes, when `attach` bytes of blobs were asked for."""
    return attach + HEADER * PAGE_RECORDS


def go_on(start: int) -> bytes:
    """What a follower sends when it has stored a page: that it waits for the records from `start` on."""
    return start.to_bytes(GO_ON, "big")


def parse_go_on(data: bytes) -> int:
    """Read what a follower sends: from which record on it waits.

    Raises:
        Malformed: another length, or a count that no feed has.
    """
    start = int.from_bytes(data, "big")
    if len(data) != GO_ON or start >> 53:
        raise Malformed("couldn't read follower: 8 bytes of a count are expected")
    return start


def blob_size(size: int) -> bytes:
    """The payload of a blob answer: the whole blob's size; raw bytes from the asked offset follow the frame."""
    return size.to_bytes(8, "big")


def parse_blob_size(data: bytes) -> int:
    """Read the payload of a blob answer; the caller compares it with the size that the event states."""
    if len(data) != 8:
        raise Malformed("couldn't read blob answer: 8 bytes of size are expected")
    return int.from_bytes(data, "big")


def bitmap(held: Sequence[bool]) -> bytes:
    """The payload of an answer to `HaveRequest`: bit i, counted from the lowest of the first byte, is `held[i]`."""
    total = sum(1 << i for i, here in enumerate(held) if here)
    return total.to_bytes((len(held) + 7) // 8, "little")


def parse_bitmap(data: bytes, count: int) -> tuple[bool, ...]:
    """Read the payload of an answer about `count` blobs.

    Raises:
        Malformed: another length, or bits beyond the last blob.
    """
    if len(data) != (count + 7) // 8 or (total := int.from_bytes(data, "little")) >> count:
        raise Malformed(f"couldn't read bitmap: {count} bits are expected")
    return tuple([bool(total >> i & 1) for i in range(count)])
