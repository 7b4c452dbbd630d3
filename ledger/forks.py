"""Proof that a member signed two histories of one feed: a value that convinces anybody, however it travels.

Kinds: `entries` (two entries at one place), `chain` (an entry whose previous leaf is not the one its author signed
there), `heads` (two heads of one size with other roots), `root` (a head that its author's own entries contradict).
Knows nothing of stores. Invariant: every item of evidence is signed by the accused, so nobody else can make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, cast, get_args

from ledger import checkpoint, entry
from ledger.entry import MAX_LINE, Entry
from protocol import canon
from protocol.errors import Malformed, TooLarge
from protocol.ids import CollectiveId, MemberId, as_hex
from protocol.merkle import root_of

Kind = Literal["entries", "chain", "heads", "root"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MAX_LINES: Final = 1024
MAX_PROOF: Final = (MAX_LINES + 1) * MAX_LINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What `member` signed twice.

    `at` is the sequence number (`entries`, `chain`: of the later entry) or the size (`heads`, `root`). `evidence` is
    two lines, two notes, or for `root` one note and the consecutive lines that end at entry `at - 1`.
    """

    kind: Kind
    collective: CollectiveId
    member: MemberId
    at: int
    evidence: tuple[bytes, ...]


def encode(fork: Fork) -> bytes:
    """The canonical bytes of a proof. Law: `decode(encode(fork)) == fork`."""
    value: dict[str, canon.Json] = {
        "kind": fork.kind,
        "collective": fork.collective,
        "member": fork.member,
        "at": fork.at,
        "evidence": [item.decode("utf-8") for item in fork.evidence],
    }
    return canon.encode(value, max_bytes=2 * MAX_PROOF)


def decode(data: bytes) -> Fork:
    """Read a proof; `verify` must still be asked.

    Raises:
        Malformed: not the canonical bytes of a proof.
    """
    value = canon.decode_object(data, max_bytes=2 * MAX_PROOF)
    if value.keys() != {"kind", "collective", "member", "at", "evidence"}:
        raise Malformed("couldn't read fork proof: a field is missing or unknown")
    kind, at, evidence = value["kind"], value["at"], value["evidence"]
    if kind not in KINDS or not isinstance(at, int) or isinstance(at, bool) or not isinstance(evidence, list):
        raise Malformed("couldn't read fork proof: a field has the wrong type")
    if not 2 <= len(evidence) <= MAX_LINES + 1 or not all(isinstance(item, str) for item in evidence):
        raise Malformed("couldn't read fork proof: evidence is two or more texts")
    return Fork(
        kind=kind,
        collective=CollectiveId(as_hex(value["collective"], "collective id")),
        member=MemberId(as_hex(value["member"], "member id")),
        at=at,
        evidence=tuple(cast("str", item).encode("utf-8") for item in evidence),
    )


def verify(fork: Fork, known: Sequence[bytes] = ()) -> None:
    """Check that the proof convicts its member; takes the author's signatures and nothing else on trust.

    `known` are the raw leaf hashes of the feed's verified entries from 0 on; only kind `root` looks at them.

    Raises:
        Malformed: it proves nothing.
        BadKey, BadSignature: a piece of evidence is not signed by the member.
    """
    if fork.kind == "heads":
        convicted = _heads_differ(fork)
    elif fork.kind == "root":
        convicted = _root_differs(fork, known)
    else:
        convicted = _entries_differ(fork)
    if not convicted:
        raise Malformed(f"couldn't take fork proof against {fork.member[:12]}: it proves nothing")


def self_contained(fork: Fork) -> bool:
    """Whether `verify` can judge the proof without other entries of the feed."""
    return fork.kind != "root" or fork.at == len(fork.evidence) - 1


def completed(fork: Fork, known: Sequence[bytes], lines: Sequence[bytes]) -> Fork:
    """The same proof with all lines of the feed before its evidence, so that anybody can check it without the feed.

    `known` and `lines` are leaf hashes and lines of the verified feed from 0 on. Long feeds do not fit into a proof.

    Raises:
        TooLarge: more lines than a proof holds. What `verify` raises.
    """
    if self_contained(fork):
        return fork
    start = fork.at - (len(fork.evidence) - 1)
    if fork.at > MAX_LINES:
        raise TooLarge(f"couldn't complete fork proof: {fork.at} entries, a proof holds {MAX_LINES}")
    verify(fork, known)
    return replace(fork, evidence=(fork.evidence[0], *lines[:start], *fork.evidence[1:]))


def _heads_differ(fork: Fork) -> bool:
    if len(fork.evidence) != 2:
        return False
    first, second = (checkpoint.parse(note) for note in fork.evidence)
    places = {(h.collective, h.member, h.size) for h in (first, second)}
    return places == {(fork.collective, fork.member, fork.at)} and first.root != second.root


def _entries_differ(fork: Fork) -> bool:
    if len(fork.evidence) != 2:
        return False
    first, second = (entry.parse(line) for line in fork.evidence)
    if not (_belongs(fork, first) and _belongs(fork, second) and second.header.seq == fork.at):
        return False
    if fork.kind == "entries":
        return first.header.seq == fork.at and first.leaf != second.leaf
    return first.header.seq + 1 == fork.at and second.header.prev != first.leaf


def _root_differs(fork: Fork, known: Sequence[bytes]) -> bool:
    head = checkpoint.parse(fork.evidence[0])
    lines = [entry.parse(line) for line in fork.evidence[1:]]
    start = fork.at - len(lines)
    if (head.collective, head.member, head.size) != (fork.collective, fork.member, fork.at):
        return False
    if start < 0 or len(known) < start or not all(_belongs(fork, item) for item in lines):
        return False
    leaves = list(known[:start])
    for place, item in enumerate(lines, start):
        if item.header.seq != place or (leaves and item.header.prev != leaves[-1].hex()):
            return False
        leaves.append(bytes.fromhex(item.leaf))
    return root_of(leaves).hex() != head.root


def _belongs(fork: Fork, item: Entry) -> bool:
    return (item.header.collective, item.header.member) == (fork.collective, fork.member)
