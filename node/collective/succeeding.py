"""Giving this member's seat to another key: the keys that wait, the statement, and the change of keys once it is decided.

The next keys lie in `keys/next` until the collective has decided; until then the node goes on with the old ones and votes
with them. Knows no votes. Nothing is ever deleted: the keys before stay in `keys/was-<member>`.
Invariant: a home has one ledger key in use, and it changes only when the charter already names the next one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger import events, succession
from ledger.amending import check_keys
from ledger.collective import Collective, leaf_at
from ledger.succession import Statement
from node.collective.seat import Seat
from node.errors import NotAllowed
from node.files import write_new
from node.home import Home
from node.keys import identity as identities
from protocol import binding
from protocol.canon import Json
from protocol.ids import ZERO, CollectiveId, MemberId, digest
from protocol.keys import SigningKey, member_id

_PARTS: Final = ("witness.key", "recovery.sha256", "ledger.pem", "binding.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heir:
    """The keys that wait for the seat."""

    key: SigningKey
    recovery: Path | None

    @property
    def member(self) -> MemberId:
        """The member id that they will be."""
        return member_id(self.key)


def prepare(home: Home, passphrase: str | None, *, fresh_recovery: bool) -> Heir:
    """Make the next keys of `home`, locked like the present ones; `fresh_recovery` makes a new recovery key with them.

    Keys that wait already are taken again, so that a command that was interrupted can be repeated.
    """
    locked = passphrase if identities.is_locked(home) else None
    folder, recovery = home.next_keys, home.next_keys / "recovery.pem"
    if not (folder / "ledger.pem").exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        key, witness = SigningKey.generate(), SigningKey.generate()
        transport = identities.load(home, passphrase).transport
        statement = json.dumps(binding.make(key, transport), indent=1).encode() + b"\n"
        if home.recovery_commitment.exists():
            write_new(folder / "recovery.sha256", home.recovery_commitment.read_bytes(), mode=0o600)
        if fresh_recovery:
            made = SigningKey.generate()
            write_new(recovery, identities.pem_of(made, locked), mode=0o600)
            write_new(folder / "recovery.sha256", digest(bytes(made.verify_key)).encode() + b"\n", mode=0o600)
        write_new(folder / "binding.json", statement, mode=0o600)
        write_new(folder / "witness.key", identities.pem_of(witness, locked), mode=0o600)
        write_new(folder / "ledger.pem", identities.pem_of(key, locked), mode=0o600)  # last: now they are whole
    key = identities.read_key(folder / "ledger.pem", locked)
    return Heir(key=key, recovery=recovery if recovery.exists() else None)


def state(fold: Collective, owner: SigningKey, heir: Heir, old: MemberId, size: int | None = None) -> Statement:
    """The statement that gives the seat of `old` to the next keys; `size` entries stay trusted, None: all that are here.

    Raises:
        NotAllowed: there is no such seat, not so many entries, or the recovery key is another than the feed names.
    """
    if not fold.known or fold.charter.seat_of(old) is None:
        raise NotAllowed(f"couldn't give seat away: {old[:12]} has none in this collective")
    held = fold.sizes.get(old, 0)
    count = held if size is None else size
    leaf = leaf_at(fold, old, count)
    if leaf is None:
        raise NotAllowed(f"couldn't give seat away: entry {count} of {old[:12]} is not here, {held} are")
    said = succession.make(owner, heir.key, collective=fold.id, old=old, size=count, leaf=leaf)
    _, committed = fold.witnesses.commitments.get(old, (0, None))
    if said.commitment is not None and said.commitment != committed:
        raise NotAllowed(
            f"couldn't give seat away: the feed of {old[:12]} committed to another recovery key",
            hint="give the recovery.pem that was made with that feed",
        )
    return said


def propose(seat: Seat, value: Json) -> dict[str, Json]:
    """Ask for a succession in our feed, for ourselves or for another member; it needs no approvals.

    Raises:
        NotAllowed: it is not of this collective, or would not be decided.
        BadCharter: as many keys had seats as a collective can have.
        Malformed, BadKey, BadSignature: it is no statement.
    """
    said = succession.read(value if isinstance(value, dict) else {})
    fold = seat.fold
    if fold.charter.member(said.new) is not None:
        raise NotAllowed(f"couldn't ask for succession: {said.new[:12]} has the seat already")
    if any(s == said for s in fold.successions.values()):
        return {"text": f"asked for already: {said.old[:12]} -> {said.new[:12]}", "member": said.new}
    if not fold.proven(said):
        raise NotAllowed(
            f"couldn't ask for succession: the feed of {said.old[:12]} as it is here does not bear the statement out",
            hint="it names another collective, entries that are not here, or a recovery key that the feed did not commit to",
        )
    check_keys(fold.ever_members(), said.change())
    seat.append(events.AmendmentProposed(change=said.change()))
    return {"text": f"asked to give the seat of {said.old[:12]} to {said.new[:12]}", "member": said.new}


def ended(seat: Seat) -> str | None:
    """Why this node's key speaks for nobody any more: its seat went to another key. It writes the last entry of its feed.

    That entry is written only while the feed may be written to, and once.
    """
    fold = seat.fold
    if not fold.known or fold.charter.member(seat.me) is not None or (now := fold.charter.seat_of(seat.me)) is None:
        return None
    if not seat.paused and seat.me not in fold.ended:
        for said in fold.successions.values():
            if (said.old, said.kind) == (seat.me, succession.ROTATION) and _decided(fold, said):
                seat.append(events.KeyRotated(statement=said.to_json()))
                break
    return (
        f"the seat of this key went to {now.id[:12]}; stop the node and start it again to go on with the new key, "
        "if it is in keys/next"
    )


def adopt(home: Home, fold: Collective) -> MemberId | None:
    """Put the next keys in place when the charter names them; the member id that the home now has, or None.

    A crash in between is finished by the next start: the binding, which says whose home it is, goes last.
    """
    folder = home.next_keys
    if not (folder / "binding.json").exists() or not fold.known:
        return None
    new, old = binding.verify(json.loads((folder / "binding.json").read_bytes())).member, identities.member_of(home)
    if fold.charter.member(new) is None:
        return None
    kept = home.keys / f"was-{old[:16]}"
    kept.mkdir(mode=0o700, exist_ok=True)
    if (folder / "recovery.pem").exists():
        os.replace(folder / "recovery.pem", home.recovery_file)
    for part in _PARTS:
        if not (folder / part).exists():
            continue
        if (home.keys / part).exists() and not (kept / part).exists():
            write_new(kept / part, (home.keys / part).read_bytes(), mode=0o600)
        os.replace(folder / part, home.keys / part)
    folder.rmdir()
    return new


def written(home: Home, statement: Statement) -> Path:
    """The statement as a file in the home, to hand to another member."""
    path = home.path / f"succession-{statement.new[:12]}.json"
    write_new(path, json.dumps(statement.to_json(), indent=1).encode() + b"\n", mode=0o644)
    return path


def facts(home: Home, collective: CollectiveId, fold: Collective | None) -> dict[str, Json]:
    """The public names of a home's keys, and what waits."""
    member = identities.member_of(home)
    found: dict[str, Json] = {
        "member": member,
        "peer": binding.verify(json.loads(home.binding_file.read_bytes())).peer,
        "locked": identities.is_locked(home),
        "recovery_file": str(home.recovery_file) if home.recovery_file.exists() else None,
        "next": None,
    }
    if (home.next_keys / "binding.json").exists():
        found["next"] = binding.verify(json.loads((home.next_keys / "binding.json").read_bytes())).member
    if fold is None or not fold.known:
        return found
    bound, seat_ = fold.witnesses.announced.get(member), fold.charter.seat_of(member)
    committed = fold.witnesses.commitments.get(member)
    return {
        **found,
        "collective": collective,
        "log": bound.log if bound else None,
        "witness": bound.witness if bound else None,
        "witness_pq": bound.witness_pq if bound else None,
        "recovery": committed[1] if committed else None,
        "seat": seat_.to_json() if seat_ else None,
        "size": fold.sizes.get(member, 0),
        "leaf": leaf_at(fold, member, fold.sizes.get(member, 0)) or ZERO,
    }


def _decided(fold: Collective, said: Statement) -> bool:
    seat = fold.charter.seat_of(said.old)
    return seat is not None and (seat.id == said.new or any(w.id == said.new for w in seat.was))
