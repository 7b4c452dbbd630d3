"""What `prove` and `ledger export` do: find the event, the best signed head over it, and write what strangers verify.

Reads the ledger file of a home beside its daemon, writes nothing into it, and needs no key. The head that most witnesses
cosigned comes first, else the newest: a proof is worth as much as the head it leads to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from ledger import checkpoint, cosignature, export, proofs
from ledger.checkpoint import Head
from ledger.collective import Collective
from ledger.cosignature import Cosignature, WitnessKeys
from ledger.reading import head_of
from ledger.store import Store
from node.errors import NotAllowed
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, EventId, MemberId

Format = Literal["jsonl", "tiles"]
_MIN_PREFIX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A proof file and what to say about it."""

    event: EventId
    data: bytes
    told: dict[str, Json]


def prove(ledger_db: Path, collective: CollectiveId, prefix: str) -> Made:
    """The proof of the event whose id begins with `prefix`.

    Raises:
        NotAllowed: no event, or several, begin so; or no head covers it yet.
        StoreBroken: there is no ledger to read, or its tree is damaged.
    """
    wanted = prefix.lower()
    if len(wanted) < _MIN_PREFIX or set(wanted) - set("0123456789abcdef"):
        raise NotAllowed(
            f"couldn't prove {prefix[:64]}: not the beginning of an event id",
            hint=f"at least {_MIN_PREFIX} hex digits; fishernet log names events",
        )
    with Store.open(ledger_db, writer=False) as store:
        found = store.find(collective, wanted)
        if len(found) != 1:
            text = ", ".join(f"{event[:16]} (entry {seq} of {m[:12]})" for m, seq, event in found[:4])
            raise NotAllowed(
                f"couldn't prove {prefix[:64]}: {len(found)} events begin so" + (f": {text}" if text else ""),
                hint="name more digits" if found else "only events of this collective that are here can be proven",
            )
        member, seq, event = found[0]
        head, note, by = _head_over(store, collective, member, seq)
        line = store.line(collective, member, seq)
        proof = proofs.make(line, seq, head, store.tree(collective, member).nodes, note=note)
        proofs.verify(proof, [checkpoint.verifier_key(collective, member)])  # never hand out one that does not hold
    told: dict[str, Json] = {
        "event": event,
        "member": member,
        "seq": seq,
        "size": head.size,
        "root": head.root,
        "vkey": checkpoint.verifier_key(collective, member),
        "witnesses": [
            cosignature.verifier_key(collective, keys.witness, cosignature.ED25519, bytes.fromhex(keys.public))
            for keys in by
        ],
    }
    return Made(event=event, data=proofs.encode(proof), told=told)


def write_export(
    ledger_db: Path, collective: CollectiveId, kind: Format, folder: Path, only: MemberId | None = None
) -> list[Json]:
    """Export every feed (or one) up to its newest signed head; what was written, one row for each feed.

    Raises:
        NotAllowed: nothing is here to export.
        StoreBroken: the ledger cannot be read, or is damaged.
    """
    write = export.jsonl if kind == "jsonl" else export.tiles
    rows: list[Json] = []
    with Store.open(ledger_db, writer=False) as store:
        for member in store.members(collective):
            if only not in {None, member} or (head := newest_head(store, collective, member)) is None:
                continue
            amount = write(_lines(store, head), head, head.note, folder)
            rows.append(
                {
                    "member": member,
                    "size": head.size,
                    "root": head.root,
                    "vkey": checkpoint.verifier_key(collective, member),
                    "path": str(folder / (f"{member}.jsonl" if kind == "jsonl" else member)),
                    "bytes" if kind == "jsonl" else "files": amount,
                }
            )
    if not rows:
        raise NotAllowed("couldn't export: no feed with a signed head is here", hint="fishernet status")
    return rows


def member_named(ledger_db: Path, collective: CollectiveId, prefix: str) -> MemberId:
    """The member whose id begins with `prefix` (raises NotAllowed when it is not exactly one)."""
    with Store.open(ledger_db, writer=False) as store:
        found = [member for member in store.members(collective) if member.startswith(prefix.lower())]
    if len(prefix) < _MIN_PREFIX or len(found) != 1:
        raise NotAllowed(
            f"couldn't find member {prefix[:64]}: {len(found)} feeds have this id",
            hint=f"at least {_MIN_PREFIX} digits; fishernet collective show",
        )
    return found[0]


def _head_over(
    store: Store, collective: CollectiveId, member: MemberId, seq: int
) -> tuple[Head, bytes, list[WitnessKeys]]:
    """The head to prove with, its note with cosignatures, and who cosigned it."""
    held = store.tree(collective, member).size()
    by_size: dict[int, list[tuple[Cosignature, WitnessKeys]]] = {}
    for item in _fold(store, collective).witnesses.covering(member, seq):
        by_size.setdefault(item.cosignature.size, []).append((item.cosignature, item.by))
    for size in sorted(by_size, key=lambda size: (len(by_size[size]), size), reverse=True):
        if size <= held and (head := _signed(store, collective, member, size)) is not None:
            once = {keys.witness: (cosigned, keys) for cosigned, keys in by_size[size]}
            return head, cosignature.cosigned_note(head, once.values()), [keys for _, keys in once.values()]
    newest = newest_head(store, collective, member)
    if newest is None or newest.size <= seq:
        raise NotAllowed(
            f"couldn't prove entry {seq} of {member[:12]}: no signed head that covers it is here yet",
            hint="try again when the node has met its peers",
        )
    return newest, newest.note, []


def _fold(store: Store, collective: CollectiveId) -> Collective:
    fold = Collective(collective)
    for member in store.members(collective):
        while page := store.records(collective, member, fold.sizes.get(member, 0)):
            fold.apply_all(page)
    return fold


def _signed(store: Store, collective: CollectiveId, member: MemberId, size: int) -> Head | None:
    found = store.raw_heads(collective, member, after=size - 1, upto=size)
    return head_of(collective, member, *found[0]) if found else None


def newest_head(store: Store, collective: CollectiveId, member: MemberId) -> Head | None:
    """The largest signed head whose entries are all here."""
    held = store.tree(collective, member).size()
    found = store.raw_heads(collective, member, upto=held, newest=1)
    head = head_of(collective, member, *found[0]) if found else None
    try:
        return checkpoint.parse(head.note) if head else None
    except Refused as e:
        raise NotAllowed(f"couldn't use the newest head of {member[:12]}: {e}", hint="run: fishernet audit") from None


def _lines(store: Store, head: Head) -> Iterator[bytes]:
    lines = (line for rows in store.raw_chunks(head.collective, head.member) for _, line, _ in rows)
    return islice(lines, head.size)
