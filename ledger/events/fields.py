"""How the fields of an event body are read: strictly, each by one function that raises BadEvent (or Malformed: a digest)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ledger.errors import BadEvent
from protocol.canon import MAX_INT, Json
from protocol.ids import Digest, as_hex

Body: TypeAlias = Mapping[str, Json]
Readers: TypeAlias = Mapping[str, tuple[set[str], Callable[[Body], Any]]]
_CODE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}\Z")
TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,200}\Z")


def integer(body: Body, key: str, high: int = MAX_INT, low: int = 0) -> int:
    """An integer from `low` to `high`."""
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadEvent(f"couldn't read event: {key} is an integer from {low} to {high}")
    return value


def hex_(body: Body, key: str) -> Digest:
    """A digest."""
    return Digest(as_hex(body[key], key))


def object_(body: Body, key: str) -> dict[str, Json]:
    """An object."""
    value = body[key]
    if not isinstance(value, dict):
        raise BadEvent(f"couldn't read event: {key} is an object")
    return value


def maybe_hex(body: Body, key: str) -> Digest | None:
    """A digest, or None for null."""
    return None if body[key] is None else Digest(as_hex(body[key], key))


def code(value: Json, key: str) -> str:
    """A code of small letters, digits, dots and dashes, at most 64."""
    if not (isinstance(value, str) and _CODE.match(value)):
        raise BadEvent(f"couldn't read event: {key} is a code of small letters, digits, dots and dashes")
    return value


def text(body: Body, key: str) -> str:
    """A text of at most 200 characters without control characters."""
    value = body[key]
    if not (isinstance(value, str) and TEXT.match(value)):
        raise BadEvent(f"couldn't read event: {key} is a text of at most 200 characters")
    return value


def flag(body: Body, key: str) -> bool:
    """True or false."""
    value = body[key]
    if not isinstance(value, bool):
        raise BadEvent(f"couldn't read event: {key} is true or false")
    return value
