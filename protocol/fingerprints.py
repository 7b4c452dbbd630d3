"""Fingerprints of a head vector: 64 sums by which two nodes find where their heads differ without sending them.

Each head falls into one of 64 buckets by its member; a bucket's fingerprint is the exclusive or of 4 bytes of a hash of each
head in it, so it depends on the set and not on its order. The asker draws the salt anew each time: nobody can prepare heads
that cancel out, and a collision by chance (2^-32 a bucket) does not last. Knows no notes, no signatures and no stores.
Law: equal vectors have equal fingerprints under every salt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from protocol.ids import Digest, MemberId

BUCKETS = 64
SALT = 8
PRINT = 4
SIZE = SALT + BUCKETS * PRINT  # bytes


def bucket_of(salt: bytes, member: MemberId) -> int:
    """Which bucket the head of `member` falls into, 0 to 63."""
    return hashlib.sha256(salt + bytes.fromhex(member)).digest()[0] % BUCKETS


def fingerprints(salt: bytes, heads: Iterable[tuple[MemberId, int, Digest]]) -> bytes:
    """The salt and the 64 fingerprints of heads given as (member, size, root): 264 bytes."""
    sums = [0] * BUCKETS
    sha256, fromhex = hashlib.sha256, bytes.fromhex
    for member, size, root in heads:
        name = salt + fromhex(member)
        hashed = sha256(name + size.to_bytes(8, "big") + fromhex(root)).digest()
        sums[sha256(name).digest()[0] % BUCKETS] ^= int.from_bytes(hashed[:PRINT], "big")
    return salt + b"".join([total.to_bytes(PRINT, "big") for total in sums])


def differing(theirs: bytes, heads: Iterable[tuple[MemberId, int, Digest]]) -> frozenset[int]:
    """The buckets in which `heads` differ from the heads behind the fingerprints `theirs` (264 bytes)."""
    salt = theirs[:SALT]
    ours = fingerprints(salt, heads)
    return frozenset(
        bucket
        for bucket in range(BUCKETS)
        if ours[(at := SALT + bucket * PRINT) : at + PRINT] != theirs[at : at + PRINT]
    )
