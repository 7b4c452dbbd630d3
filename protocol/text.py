"""Bytes as base64 text with one spelling: the standard alphabet, padded (RFC 4648 section 4).

Law: `from_base64(to_base64(b), len(b), what) == b`, and no other text is read as `b`.
"""

from __future__ import annotations

import base64
import binascii

from protocol.errors import Malformed


def to_base64(data: bytes) -> str:
    """The text of `data`."""
    return base64.b64encode(data).decode("ascii")


def from_base64(value: object, size: int, what: str) -> bytes:
    """The `size` bytes behind a text (raises Malformed for anything else, and for a second spelling)."""
    if not isinstance(value, str) or len(value) != 4 * ((size + 2) // 3):
        raise Malformed(f"couldn't read {what}: the base64 of {size} bytes is expected")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"couldn't read {what}: it is not base64") from None
    if len(raw) != size or to_base64(raw) != value:
        raise Malformed(f"couldn't read {what}: it has a second spelling")
    return raw
