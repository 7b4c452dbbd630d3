"""Length-prefixed frames, and what stands in an answer: the bytes below every stream protocol.

A frame is a 4-byte big-endian length and that many bytes; an answer is a frame whose first byte says yes (the payload
follows) or no (a code follows). A list is frames one after the other. Knows no protocol, no stream and no members.
Law: a length is checked before it is believed, and a reader raises nothing but `Refused`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import Malformed, TooLarge

HEADER = 4

_ANSWER, _REFUSAL = b"\x00", b"\x01"
_CODE = re.compile(r"[a-z][a-z0-9-]{0,39}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The other side's no: a code of a stranger that is only compared and shown."""

    code: str


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


def pack(items: Sequence[bytes]) -> bytes:
    """A list of byte strings."""
    return b"".join([frame(item) for item in items])


def unpack(data: bytes, *, max_items: int, max_item: int) -> list[bytes]:
    """The items of a list.

    Raises:
        TooLarge: more items, or a longer one, than the limits allow.
        Malformed: an item is cut short.
    """
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
