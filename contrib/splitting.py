"""Which part of a data set a row belongs to, what the parts commit to, and which answers look like labels.

Pure functions of rows and salts: no store, no files, no randomness. Invariant: the part depends on the row's split
key and the held-out share alone, so equal rows (and equal prompts) never stand on both sides, in any order of arrival.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Final, Literal, TypeAlias

from protocol.ids import Digest
from protocol.merkle import leaf_hash

Part: TypeAlias = Literal["train", "held_out"]

WHOLE: Final = 1_000_000  # parts per million
MIN_LABELS: Final = 2
MAX_LABELS: Final = 32
MAX_LABEL_CHARACTERS: Final = 40
ROWS_PER_LABEL: Final = 4
SALT_BYTES: Final = 16

_DOMAIN: Final = b"fishernet/held-out/v1\0"


def part_of(split_key: Digest, held_out_ppm: int) -> Part:
    """The part of the row with this split key: `held_out_ppm` in a million keys are held out.

    Law: monotone in the share; a key held out at some share is held out at every larger one.
    """
    drawn = hashlib.sha256(_DOMAIN + bytes.fromhex(split_key)).digest()
    return "held_out" if int.from_bytes(drawn[:8], "big") * WHOLE < held_out_ppm << 64 else "train"


def commitment_leaf(salt: bytes, canonical_row: bytes) -> bytes:
    """RFC 6962 leaf hash over salt and row: without the salt a guess of the row cannot be confirmed."""
    return leaf_hash(salt + canonical_row)


def labels_of(answers: Counter[str]) -> tuple[str, ...] | None:
    """The distinct answers in sorted order when they look like labels, else None.

    Labels are few (at most 32), short (at most 40 characters), at least two, and used by four rows each on average.
    """
    few = MIN_LABELS <= len(answers) <= MAX_LABELS
    used = answers.total() >= ROWS_PER_LABEL * len(answers)
    short = all(len(answer) <= MAX_LABEL_CHARACTERS for answer in answers)
    return tuple(sorted(answers)) if few and used and short else None
