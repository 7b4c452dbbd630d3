"""From what a person types to a charter and to changes of one. Knows models and defaults, not feeds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from contrib import adapters, recipes, updates
from contrib.errors import MergeRefused
from contrib.models import Model
from ledger import charter as charters
from ledger import charter_reading
from ledger.amending import amended
from ledger.charter import Adapter, Base, Charter, Gate, Member, Release, Update, Witness
from node.errors import NotAllowed
from protocol.canon import Json
from protocol.ids import Digest, MemberId

_SHOWN = {"id", "height", "quorum", "epoch_id"}  # what `reports.charter` adds to a charter
PRESETS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"lan": (200_000, 8), "balanced": (500_000, 1), "slow-link": (150_000, 1)}
)  # density in millionths and bits of a value: about 1/8, 1/30 and 1/100 of the bytes of a dense fp16 adapter (contrib/LOG.md)
_NORM_CAP_MICRO = 1_000_000_000  # an L2 norm of 1,000; runs at the default settings send norms below 10


def draft(args: Mapping[str, Json], model: Model, founder: Member) -> Charter:
    """The genesis charter of `collective create`.

    Raises:
        BadCharter, BadAdapter, NotAllowed: the options do not make a valid charter for this model.
    """
    rank = _int(args, "rank", 16)
    targets = args.get("targets")
    names = tuple(str(t) for t in targets) if isinstance(targets, list) else ("q_proj", "v_proj")
    seed = secrets.token_hex(32)
    alpha = _int(args, "alpha", rank)
    spec = adapters.AdapterSpec(rank=rank, alpha=alpha, targets=names, seed=seed)
    recipe = str(args.get("recipe") or "contributor-mean/1")
    _mergeable(recipe, "create collective")
    members = tuple(sorted((founder, *_founders(args)), key=lambda m: m.id))
    voters = sum(m.votes for m in members)
    contributors = sum(m.role == "contributor" for m in members)
    charter = Charter(
        name=str(args.get("name") or "collective"),
        nonce=Digest(secrets.token_hex(32)),
        base=Base(name=model.name[:64], digest=model.digest),
        adapter=Adapter(
            rank=rank,
            alpha=alpha,
            targets=names,
            seed=Digest(seed),
            coordinates=adapters.layout(model.path, spec).coordinates,
        ),
        update=_update(args),
        recipe=recipe,
        gate=Gate(
            max_blob_bytes=4 << 20,
            norm_cap_micro=_int(args, "norm_cap_micro", _NORM_CAP_MICRO),
            tolerance_centinats=_int(args, "tolerance_centinats", 2),
            held_out_min=_int(args, "held_out_min", 200),
        ),
        release=Release(
            wait_for=_int(args, "wait_for", max(1, contributors)),
            patience_ms=_int(args, "patience_ms", 60_000),
            timeout_ms=_int(args, "timeout_ms", 20_000),
        ),
        witness=Witness(cosignatures=_int(args, "cosignatures", 0)),
        members=members,
        faults=_int(args, "faults", charters.default_faults(voters)),
    )
    return charter_reading.parse(charter.to_json())


def changes(charter: Charter, args: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The changes that `collective amend` asks for, one for each rule or seat; together they lead to a valid charter.

    Raises:
        NotAllowed: a key that the charter does not have, or a value that no node could follow.
        BadCharter: the outcome would not be a valid charter.
    """
    now = {"relays": [], **charter.to_json()}
    wanted: dict[str, Json] = {}
    given = args.get("changes")
    for path, value in (given if isinstance(given, dict) else {}).items():
        field, _, key = path.partition(".")
        if field not in now:
            raise NotAllowed(f"couldn't amend charter: it has no {field!r}; known: {', '.join(sorted(now))}")
        if not key:
            wanted[field] = value
            continue
        part = wanted.get(field, now[field])
        if not isinstance(part, dict) or key not in part:
            raise NotAllowed(f"couldn't amend charter: {field} has no {key!r}")
        wanted[field] = {**part, key: value}
    whole = args.get("charter")
    if whole is not None:
        wanted |= _different(now, whole)
    seats = wanted.pop("members", None)
    _possible(charter, wanted)
    found: list[dict[str, Json]] = [{"op": "set", "field": f, "value": v} for f, v in wanted.items() if v != now[f]]
    found += _reseated(charter, seats) if seats is not None else []
    removed = args.get("remove")
    found += [{"op": "remove", "id": str(m)} for m in (removed if isinstance(removed, list) else [])]
    for change in found:
        charter = amended(charter, change)
    return found


def _different(now: Mapping[str, Json], whole: Json) -> dict[str, Json]:
    """What a whole charter, as `collective show --json` prints it, has other than the one in force."""
    if not isinstance(whole, dict) or set(whole) - set(now) - _SHOWN:
        unknown = sorted(set(whole) - set(now) - _SHOWN) if isinstance(whole, dict) else type(whole).__name__
        raise NotAllowed(f"couldn't amend charter: the file is not a charter ({unknown})")
    return {field: whole[field] for field in now if field in whole and whole[field] != now[field]}


def _update(args: Mapping[str, Json]) -> Update:
    preset = args.get("preset") or "lan"
    if not isinstance(preset, str) or preset not in PRESETS:
        raise NotAllowed(f"couldn't create collective: preset {preset!r} is none of {', '.join(PRESETS)}")
    density, bits = PRESETS[preset]
    bits = _int(args, "value_bits", bits)
    return Update(density_ppm=_int(args, "density_ppm", density), value_bits=bits, block=updates.block_for(bits))


def _mergeable(recipe: Json, verb: str) -> None:
    try:
        recipes.for_charter(recipe)
    except MergeRefused as e:
        cause = str(e).partition(": ")[2]
        raise NotAllowed(f"couldn't {verb}: {cause}", hint="`fishernet recipes` lists what can be chosen") from e


def _possible(charter: Charter, wanted: Mapping[str, Json]) -> None:
    recipe = wanted.get("recipe", charter.recipe)
    _mergeable(recipe, "amend charter")
    shape = wanted.get("adapter")
    old = charter.to_json()["adapter"]
    if isinstance(shape, dict) and isinstance(old, dict):
        resized = any(shape.get(key) != old[key] for key in ("rank", "targets"))
        if resized and shape.get("coordinates") == old["coordinates"]:
            raise NotAllowed(
                "couldn't amend charter: another rank or other targets have another number of coordinates",
                hint="give adapter.coordinates too",
            )


def _reseated(charter: Charter, seats: Json) -> list[dict[str, Json]]:
    """The changes of seats that lead from the charter's members to another list of them."""
    if not isinstance(seats, list) or not all(isinstance(s, dict) for s in seats):
        raise NotAllowed("couldn't amend charter: members is a list of seats")
    wanted = {str(s.get("id")): dict(s) for s in seats if isinstance(s, dict)}
    old = {m.id: m.to_json() for m in charter.members}
    found: list[dict[str, Json]] = []
    for member, seat_ in wanted.items():
        before = old.get(MemberId(member), {})
        if seat_.pop("was", before.get("was", [])) != before.get("was", []):
            raise NotAllowed(
                "couldn't amend charter: a seat's earlier keys can't be set", hint="fishernet key rotate, or key revoke"
            )
        if not before:
            found.append({"op": "add", "member": seat_})
        elif {**before, **seat_} != before:
            found.append({"op": "role", "member": seat_})
    return found + [{"op": "remove", "id": m} for m in old if m not in wanted]


def seat(args: Mapping[str, Json]) -> dict[str, Json]:
    """The seat that `collective invite` proposes."""
    member = str(args.get("member"))
    organisation = args.get("organisation")
    return {
        **({"organisation": str(organisation)} if organisation else {}),
        "id": member,
        "name": str(args.get("name") or member[:12]),
        "role": str(args.get("role") or "contributor"),
        "weight": _int(args, "weight", 1),
    }


def _founders(args: Mapping[str, Json]) -> list[Member]:
    """Founding members besides the founder, as ID[:NAME[:ROLE[:ORGANISATION]]]."""
    found = []
    given = args.get("members")
    for text in given if isinstance(given, list) else []:
        id_, name, role, organisation, *_ = [*str(text).split(":", 3), "", "", ""]
        seat = Member(id=MemberId(id_), name=name or id_[:12], role=role or "contributor", organisation=organisation)
        found.append(seat)
    return found


def _int(args: Mapping[str, Json], key: str, default: int) -> int:
    value = args.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
