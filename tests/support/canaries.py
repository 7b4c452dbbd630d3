"""Planted texts, and the search for them in what a node sent, however it may be wrapped."""

from __future__ import annotations

import base64
import contextlib
import random
import re
import string
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import zstandard

PIECE = 6  # letters; of random bytes one in 10**14 begins one of these by chance
WINDOW = 2 * PIECE - 1  # so many letters in a row of a canary hold a whole piece, wherever they begin
_MOST = 16 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){12,}")


def plant(seed: str, count: int = 4, length: int = 40) -> list[str]:
    """Texts that stand nowhere else."""
    rng = random.Random(seed)
    return ["".join(rng.choices(string.ascii_letters, k=length)) for _ in range(count)]


def found(messages: Iterable[bytes], canaries: Sequence[str]) -> set[str]:
    """The canaries of which at least a window stands in the messages or across them.

    It may be plain, in wider characters or token ids, in hexadecimal, base64 or a compressed part, or backwards.
    """
    whole = list(messages)
    seen = b"\0".join({data for message in (*whole, b"".join(whole)) for data in layers(message)})
    return {canary for canary in canaries if any(part in seen for part in pieces(canary))}


def pieces(canary: str) -> list[bytes]:
    """A canary in pieces, as bytes that a careless program might write."""
    cut = [text[i : i + PIECE] for text in (canary, canary[::-1]) for i in range(0, len(canary) - PIECE + 1, PIECE)]
    return [part.encode(encoding) for part in cut for encoding in ("ascii", "utf-16-le", "utf-32-le")]


def layers(data: bytes, depth: int = 3) -> Iterator[bytes]:
    """The data itself and whatever is wrapped inside."""
    yield data
    if depth == 0:
        return
    for inner in (*_unzstd(data), *_inflated(data), *_decoded(data)):
        yield from layers(inner, depth - 1)


def _unzstd(data: bytes) -> Iterator[bytes]:
    at = data.find(_ZSTD)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])[:_MOST]
        at = data.find(_ZSTD, at + 1)


def _inflated(data: bytes) -> Iterator[bytes]:
    for match in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", data):
        try:
            yield zlib.decompressobj(wbits=47).decompress(data[match.start() :], _MOST)
        except zlib.error:
            continue


def _decoded(data: bytes) -> Iterator[bytes]:
    for match in _BASE64.finditer(data):
        run = match[0].translate(bytes.maketrans(b"-_", b"+/"))
        for shift in range(4):
            part = run[shift:]
            yield base64.b64decode(part[: len(part) // 4 * 4])
    for match in _HEX.finditer(data):
        yield bytes.fromhex(match[0].decode())


def messages(tap: Path) -> list[bytes]:
    """What a node sent, in order."""
    data, at, parts = tap.read_bytes(), 0, []
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return parts
