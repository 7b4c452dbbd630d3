"""Canonical JSON: one value, one byte string (a profile of RFC 8785).

The profile: no floats, integers within +-(2^53-1), keys printable ASCII, strings in Unicode NFC without lone surrogates,
depth at most 16, at most 32 KiB unless the caller allows more. Inside it the standard library's sorted, compact output
equals RFC 8785. Law: `decode(encode(x)) == x`, and `decode` accepts no other bytes than `encode` makes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn, TypeAlias

from protocol.errors import Malformed, NotCanonical, TooLarge

Json: TypeAlias = "bool | int | str | Sequence[Json] | Mapping[str, Json] | None"

MAX_BYTES = 32 * 1024
MAX_DEPTH = 16
MAX_INT = 2**53 - 1

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
# What `_ENCODER.encode` makes anew for every value; nothing that it gets holds a circle.
_chunks: Callable[[Json, int], Iterable[str]] = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", True, False, False
)


def encode(value: Json, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the canonical bytes of `value`.

    Raises:
        Malformed: the value is outside the profile.
        TooLarge: more than `max_bytes` bytes or `MAX_DEPTH` levels.
    """
    _check(value, 0)
    data = "".join(_chunks(value, 0)).encode("utf-8")
    if len(data) > max_bytes:
        raise TooLarge(f"couldn't encode value: {len(data)} bytes, the limit is {max_bytes}")
    return data


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> Json:
    """Return the value whose canonical bytes are `data`.

    Raises:
        TooLarge: more than `max_bytes` bytes or `MAX_DEPTH` levels.
        Malformed: not JSON, or outside the profile.
        NotCanonical: another spelling of the same value.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"couldn't decode value: {len(data)} bytes, the limit is {max_bytes}")
    value = _quick(data)
    return _careful(data) if value is None else value


def decode_object(data: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Json]:
    """Like `decode`, and refuse anything but an object."""
    value = decode(data, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise Malformed("couldn't decode value: an object is expected")
    return value


def _careful(data: bytes) -> Json:
    """The value of any bytes, or what is wrong with them."""
    try:
        value: Json = _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise TooLarge("couldn't decode value: nested too deeply") from None
    except ValueError as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        what = "UTF-8" if isinstance(e, UnicodeDecodeError) else "JSON"
        raise Malformed(f"couldn't decode value: it is not {what}") from None
    _check(value, 0)
    if _ENCODER.encode(value).encode("utf-8") != data:
        raise NotCanonical("couldn't decode value: the bytes are not the canonical ones")
    return value


def _quick(data: bytes) -> Json:
    """The value of canonical bytes in which nothing but the JSON form could be wrong; None leaves them to `_careful`.

    That is ASCII text without escapes, numbers and depth far under the limits. What it encodes to is what was read: so no key
    stood twice, none out of order, and there is one spelling.
    """
    if (
        not data.isascii()
        or b"\\" in data
        or b"\x7f" in data
        or data.count(b"[") + data.count(b"{") > MAX_DEPTH
        or _LONG_NUMBER.search(data) is not None
    ):
        return None
    text = data.decode("ascii")
    value: Json
    try:
        value, end = _QUICK.scan_once(text, 0)  # type: ignore[attr-defined]
    except (StopIteration, ValueError, Malformed):
        return None
    return value if end == len(text) and "".join(_chunks(value, 0)) == text else None


def _check(value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TooLarge(f"couldn't take value: more than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise Malformed("couldn't take value: an integer over 2^53-1")
    elif isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (isinstance(key, str) and key.isascii() and key.isprintable()):
                raise Malformed("couldn't take value: a key is not printable ASCII")
            if not (type(item) is str and item.isascii()):  # most are, and a call costs more than this
                _check(item, depth + 1)
    else:
        raise Malformed(f"couldn't take value: {type(value).__name__} is outside the profile")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    if not unicodedata.is_normalized("NFC", text):
        raise Malformed("couldn't take value: a string is not in NFC")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Malformed("couldn't take value: a lone surrogate")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Malformed("couldn't decode value: a key stands twice")
    return value


def _no_float(text: str) -> NoReturn:
    raise Malformed(f"couldn't decode value: {text[:20]!r} is not an integer")


def _bounded_int(text: str) -> int:
    if len(text) > 17:
        raise Malformed("couldn't decode value: an integer over 2^53-1")
    return int(text)


_LONG_NUMBER = re.compile(rb"[0-9]{16}")
_QUICK = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_no_float, parse_constant=_no_float, parse_int=_bounded_int
)
