"""Changes of a charter: from one valid charter to the next, by one decided amendment.

`add`, `role` and `remove` concern seats, `set` a rule, `succeed` gives a seat to another key of its owner, `forget` takes
contributions out of later releases and leaves the charter as it is. Pure; knows no feed, so what a succession claims about the
old feed (its length, the recovery key it committed to) is checked by
`ledger.rules`. Law: the outcome is a valid charter, or the change is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Final

from ledger import forgetting, succession
from ledger.charter import Charter, Former, Member, default_faults
from ledger.charter_reading import parse, read_member
from ledger.cuts import MAX_LIST
from ledger.errors import BadCharter
from protocol.canon import Json
from protocol.ids import MemberId, as_hex

_CHANGES: Final[Mapping[str, Set[str]]] = {
    "add": {"op", "member"},
    "role": {"op", "member"},
    "remove": {"op", "id"},
    "set": {"op", "field", "value"},
    "succeed": succession.CHANGE,
    forgetting.OP: forgetting.CHANGE,
}
MAX_ROTATIONS: Final = 32  # half of what a seat can hold: a thief cannot rotate until no recovery fits
# A decision lists the feed of every key that ever had a seat, for ever; the last of them are for keys that were lost or stolen.
MAX_KEYS: Final = MAX_LIST
FOR_RECOVERIES: Final = 64
_SETTABLE: Final = frozenset(
    {"name", "base", "adapter", "update", "recipe", "gate", "release", "witness", "faults", "relays"},
)


def amended(charter: Charter, change: Mapping[str, Json]) -> Charter:
    """The charter after one decided change.

    `change` is `{"op": "add"|"remove"|"role", ...}` for seats, `{"op": "set", "field": ..., "value": ...}` for rules,
    `{"op": "succeed", ...}` (`ledger.succession`) or `{"op": "forget", ...}` (`ledger.forgetting`). A change of base or adapter
    starts a new epoch; no relays are `[]`. The default faults follow the number of voters unless set apart. A seat without
    `organisation` keeps the one it has, else its name.

    Raises:
        BadCharter: unknown operation, or the outcome is not a valid charter.
        BadSignature, BadKey, Malformed: a succession whose statement is not one.
    """
    op = change.get("op")
    keys = _CHANGES.get(op) if isinstance(op, str) else None
    if keys is None or set(change) != keys:
        raise BadCharter(f"couldn't amend charter: {str(op)[:20]!r} with {sorted(change)} is not a known operation")
    seats = {m.id: m for m in charter.members}
    if op in {"add", "role"}:
        seat = _asked(change["member"], seats)
        if (seat.id in seats) != (op == "role"):
            raise BadCharter(
                f"couldn't amend charter: {seat.id[:12]} {'already has' if op == 'add' else 'has no'} seat"
            )
        return _seated(charter, {**seats, seat.id: seat})
    if op == "remove":
        gone = as_hex(change["id"], "member id")
        if gone not in seats:
            raise BadCharter(f"couldn't amend charter: {gone[:12]} has no seat")
        return _seated(charter, {k: v for k, v in seats.items() if k != gone})
    if op == forgetting.OP:
        forgetting.read_change(change)
        return charter
    if op == "succeed":
        return _succeeded(charter, seats, succession.read_change(change))
    field = change["field"]
    if not isinstance(field, str) or field not in _SETTABLE:
        known = ", ".join(sorted(_SETTABLE))
        raise BadCharter(f"couldn't amend charter: {str(field)[:20]!r} can't be set; known: {known}")
    whole = charter.to_json()
    whole[field] = change["value"]
    if field == "relays" and whole["relays"] == []:
        del whole["relays"]
    if field in {"base", "adapter"}:
        whole["epoch"] = charter.epoch + 1
    return parse(whole)


def check_keys(known: Set[MemberId], change: Mapping[str, Json]) -> None:
    """Refuse a change, else one that `amended` takes, after which decisions could no longer list all feeds; `known` had seats.

    Raises:
        BadCharter: it seats a new key and no place is left for it.
    """
    if len(known) < MAX_KEYS - FOR_RECOVERIES:
        return
    op, member = change["op"], change.get("member")
    new = change["new"] if op == "succeed" else member["id"] if op == "add" and isinstance(member, dict) else None
    recovers = op == "succeed" and succession.read_change(change).kind == succession.RECOVERY
    if new is not None and new not in known and not (recovers and len(known) < MAX_KEYS):
        raise BadCharter(
            f"couldn't seat another key: {len(known)} have, or had, a seat here, and a decision lists the feeds of at most "
            f"{MAX_KEYS}, the last {FOR_RECOVERIES} for recoveries; a key that had a seat can have one again, for more keys "
            "found another collective: fishernet collective create"
        )


def _asked(value: Json, seats: Mapping[MemberId, Member]) -> Member:
    """The seat that a change asks for; only a succession gives a seat earlier keys."""
    if not isinstance(value, dict) or "was" in value:
        raise BadCharter("couldn't amend charter: a seat is an object of id, name, role, weight and organisation")
    old = seats.get(MemberId(str(value.get("id"))))
    whole: dict[str, Json] = {
        "organisation": old.organisation if old else value.get("name"),
        **value,
        "was": [[w.id, w.size, w.left] for w in old.was] if old else [],
    }
    return read_member(whole)


def _succeeded(charter: Charter, seats: Mapping[MemberId, Member], said: succession.Statement) -> Charter:
    """The seat under its new key. A recovery also takes it back from every key that came after the named one."""
    seat = charter.seat_of(said.old)
    if seat is None:
        raise BadCharter(f"couldn't amend charter: {said.old[:12]} has no seat")
    if charter.seat_of(said.new) is not None:
        raise BadCharter(f"couldn't amend charter: {said.new[:12]} has, or had, a seat")
    if said.old != seat.id and said.kind != succession.RECOVERY:
        raise BadCharter(f"couldn't amend charter: {said.old[:12]} gave its seat away before")
    if said.kind == succession.ROTATION and len(seat.was) >= MAX_ROTATIONS:
        raise BadCharter(f"couldn't amend charter: the seat of {said.old[:12]} had {MAX_ROTATIONS} keys before")
    past = {w.id: place for place, w in enumerate(seat.was)}
    place = past.get(said.old, len(seat.was))
    if place < len(seat.was) and seat.was[place].left == succession.RECOVERY:
        raise BadCharter(f"couldn't amend charter: the seat of {said.old[:12]} was recovered before")
    after = [w.id for w in seat.was[place + 1 :]] + ([seat.id] if said.old in past else [])
    taken = (Former(id=key, size=0, left=succession.RECOVERY) for key in after)
    was = (*seat.was[:place], Former(id=said.old, size=said.size, left=said.kind), *taken)
    rest = {k: v for k, v in seats.items() if k != seat.id}
    return _seated(charter, {**rest, said.new: replace(seat, id=said.new, was=was)})


def _seated(charter: Charter, seats: Mapping[MemberId, Member]) -> Charter:
    members = tuple(seats[k] for k in sorted(seats))
    voters = sum(m.votes for m in members)
    follows = charter.faults == default_faults(len(charter.voters))
    faults = default_faults(voters) if follows else charter.faults
    return parse(replace(charter, members=members, faults=faults).to_json())
