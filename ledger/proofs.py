"""A proof that one event stands in a feed: a small text file that anybody checks offline, with signatures and hashes alone.

The file is a C2SP tlog-proof: the entry's line as extra data, its index, the hashes from its leaf to the root, and the
signed head with the cosignatures of witnesses, if there are any. Needs PyNaCl and nothing of this node: no store, no
network. Law: `decode(encode(p)) == p`; what `make` makes, `verify` accepts, and no file with another byte in what it shows.
Format: c2sp.org/tlog-proof.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ledger import checkpoint, cosignature, entry
from ledger.checkpoint import Head
from ledger.cosignature import Cosignature, WitnessKeys
from ledger.entry import MAX_LINE, Entry
from protocol import merkle, notes
from protocol.canon import MAX_INT
from protocol.errors import BadKey, BadProof, Malformed, TooLarge
from protocol.ids import CollectiveId, MemberId
from protocol.merkle import HASH_BYTES, Nodes
from protocol.text import from_base64, to_base64

HEADER: Final = "c2sp.org/tlog-proof@v1"
SUFFIX: Final = ".tlog-proof"
MAX_FILE: Final = 512 * 1024
MAX_PATH: Final = 64
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,15})\Z")
_WITNESS = re.compile(r"fishernet/([0-9a-f]{64})/([0-9a-f]{64})/witness\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Entry `line` stands at `index` under the head in `note` (with cosignature lines); `path` leads from leaf to root."""

    index: int
    line: bytes
    path: tuple[bytes, ...]
    note: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What a proof shows: the entry, the head that covers it, and the cosignatures of the witnesses that were named."""

    entry: Entry
    head: Head
    cosignatures: tuple[Cosignature, ...]
    signature_lines: int


def make(line: bytes, index: int, head: Head, nodes: Nodes, *, note: bytes | None = None) -> Proof:
    """Prove that `line` stands at `index` under `head`; `note` is the head's note with cosignatures, if there are any.

    Raises:
        BadProof: the head is too small for that place.
    """
    path = merkle.inclusion(index, head.size, nodes)
    return Proof(index=index, line=line, path=tuple(path), note=head.note if note is None else note)


def encode(proof: Proof) -> bytes:
    """The bytes of the file."""
    head = [HEADER, f"extra {to_base64(proof.line)}", f"index {proof.index}", *map(to_base64, proof.path), ""]
    return "\n".join(head).encode("ascii") + b"\n" + proof.note


def decode(data: bytes) -> Proof:
    """Read a file; `verify` must still be asked.

    Raises:
        TooLarge, Malformed: it is not a proof file of a feed, in its one spelling.
    """
    if len(data) > MAX_FILE:
        raise TooLarge(f"couldn't read proof: {len(data)} bytes, the limit is {MAX_FILE}")
    top, separator, note = data.partition(b"\n\n")
    try:
        lines = top.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Malformed("couldn't read proof: not a tlog-proof file") from None
    if not separator or len(lines) < 3 or lines[0] != HEADER:
        raise Malformed("couldn't read proof: not a tlog-proof file")
    extra, index, path = lines[1], _INDEX.match(lines[2]), lines[3:]
    if not extra.startswith("extra "):
        raise Malformed("couldn't read proof: the entry is missing (it stands in the `extra` line)")
    if index is None or int(index[1]) > MAX_INT or len(path) > MAX_PATH:
        raise Malformed("couldn't read proof: no index, or too many hashes")
    text = extra.removeprefix("extra ")
    size = len(text) // 4 * 3 - text[-2:].count("=")
    if size > MAX_LINE:
        raise TooLarge(f"couldn't read proof: an entry of {size} bytes, the limit is {MAX_LINE}")
    return Proof(
        index=int(index[1]),
        line=from_base64(text, size, "entry"),
        path=tuple(from_base64(item, HASH_BYTES, "hash") for item in path),
        note=note,
    )


def verify(proof: Proof, verifier_keys: Sequence[str] = ()) -> Proven:
    """Check everything a proof says: entry, head, the way between them, and the witnesses named by `verifier_keys`.

    Without keys the head is that of the member whom its origin names, signed by that member. Each key narrows it down: a log
    key must be that of this feed, a witness key must have cosigned this head.

    Raises:
        Malformed, BadKey, BadSignature: a part is not what the format says, or not signed.
        BadProof: the parts do not belong together, or a named key did not sign.
    """
    parsed = entry.parse(proof.line)
    head, cosignatures = cosignature.read_note(proof.note, _witnesses(verifier_keys))
    header = parsed.header
    if (header.collective, header.member, header.seq) != (head.collective, head.member, proof.index):
        raise BadProof("couldn't verify proof: its entry belongs to another feed or place than its head")
    merkle.verify_inclusion(proof.index, head.size, bytes.fromhex(parsed.leaf), proof.path, bytes.fromhex(head.root))
    for text in verifier_keys:
        _signed_by(text, head, cosignatures)
    signature_lines = proof.note.partition(b"\n\n")[2].count(b"\n")
    return Proven(entry=parsed, head=head, cosignatures=tuple(cosignatures), signature_lines=signature_lines)


def _witnesses(verifier_keys: Sequence[str]) -> list[WitnessKeys]:
    found = []
    for text in verifier_keys:
        key = notes.read_key(text)
        if key.kind == notes.COSIGNATURE:
            match = _WITNESS.match(key.name)
            if match is None:
                raise BadKey(f"couldn't use verifier key: {key.name[:80]} is no witness of a collective")
            witness = WitnessKeys(
                collective=CollectiveId(match[1]), witness=MemberId(match[2]), public=key.public.hex()
            )
            found.append(witness)
    return found


def _signed_by(text: str, head: Head, cosignatures: Sequence[Cosignature]) -> None:
    key = notes.read_key(text)
    if key.kind == notes.ED25519:
        if text != checkpoint.verifier_key(head.collective, head.member):
            raise BadProof(
                f"couldn't verify proof: it is of feed {head.member[:12]}, not signed by the key that was named"
            )
    elif not any(cosignature.key_name(c.collective, c.witness) == key.name for c in cosignatures):
        raise BadProof(f"couldn't verify proof: the witness {key.name[-20:-8]} has not cosigned its head")
