"""How the fields of an event body are read: strictly, each by one function that raises BadEvent (or Malformed: a digest)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeAlias

from ledger.errors import BadEvent
from protocol.canon import MAX_INT, Json
from protocol.ids import Digest, as_hex

Body: TypeAlias = Mapping[str, Json]
Readers: TypeAlias = Mapping[str, tuple[set[str], Callable[[Body], Any]]]
MAX_ITEMS: Final = 64  # of a sorted list
_CODE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}\Z")
_WORD = re.compile(r"[a-z0-9._-]{1,64}\Z")
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


def maybe_integer(body: Body, key: str) -> int | None:
    """An integer from 0, or None for null."""
    return None if body[key] is None else integer(body, key)


def name(body: Body, key: str = "dataset") -> str:
    """A text that is not empty."""
    if not body[key]:
        raise BadEvent(f"couldn't read event: {key} has a name")
    return text(body, key)


def word(value: Json, key: str) -> str:
    """A word of small letters, digits, dots, dashes and underscores, at most 64."""
    if not (isinstance(value, str) and _WORD.match(value)):
        raise BadEvent(f"couldn't read event: {key} has words of small letters, digits, '.', '_', '-'")
    return value


def one_of(known: tuple[str, ...]) -> Callable[[Json, str], str]:
    """A reader of one of these words."""

    def one(value: Json, key: str) -> str:
        if value not in known:
            raise BadEvent(f"couldn't read event: {key} is one of {', '.join(known)}")
        return str(value)

    return one


def sorted_(body: Body, key: str, each: Callable[[Json, str], str]) -> tuple[Any, ...]:
    """A list of at most 64, ascending, each item once, every one read by `each`."""
    value = body[key]
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise BadEvent(f"couldn't read event: {key} is a list of at most {MAX_ITEMS}")
    found = [each(item, key) for item in value]
    if any(a >= b for a, b in pairwise(found)):
        raise BadEvent(f"couldn't read event: {key} is sorted, each item once")
    return tuple(found)


def closed(value: dict[str, Json], keys: set[str], what: str) -> dict[str, Json]:
    """An object with exactly these keys."""
    if set(value) != keys:
        raise BadEvent(f"couldn't read {what}: the keys are not {', '.join(sorted(keys))}")
    return value
