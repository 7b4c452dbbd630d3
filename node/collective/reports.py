"""What `status`, `log`, `collective show` and `collective requests` answer: the fold as plain JSON (shapes: cli/render.py).

Knows no network: what only a running daemon knows is added there. Pure functions of a seat.
"""

from __future__ import annotations

from collections.abc import Mapping

from ledger.charter import Charter
from ledger.collective import Collective, Decision
from ledger.cuts import Amendment, Cut
from ledger.forgetting import OP
from node.collective import forgetting
from node.collective.seat import Seat
from protocol.canon import Json
from protocol.ids import Digest, MemberId


def status(seat: Seat) -> dict[str, Json]:
    """Epoch, height, heads, pending contributions and releases as this node holds them."""
    fold = seat.fold
    heads: list[Json] = [
        {
            "member": h.member,
            "name": _name(fold, h.member),
            "size": h.size,
            "root": h.root,
            "cosigned": fold.witnesses.cosigned_size(h.member),
        }
        for h in seat.store.heads(seat.collective)
    ]
    result: dict[str, Json] = {
        "member": seat.me,
        "collective": seat.collective,
        "heads": heads,
        "paused": seat.paused,
        "full": seat.full,
        "forks": [f.member for f in seat.store.forks(seat.collective)],
        "double_votes": [d.first.member for d in fold.double_votes],
        "flaws": [{"member": f.source.member, "seq": f.source.seq, "code": f.code} for f in fold.flaws[-20:]],
    }
    if not fold.known:
        return result
    mine = fold.charter.member(seat.me)
    return {
        **result,
        "name": fold.charter.name,
        "role": mine.role if mine else None,
        "epoch": fold.charter.epoch_id,
        "height": fold.height,
        "pending": [
            {
                "member": c.member,
                "name": _name(fold, c.member),
                "digest": c.blob,
                "number": c.number,
                "cosignatures": len(fold.witnesses.organisations(c, fold.charter)),
                "cosignatures_needed": fold.charter.witness.cosignatures,
            }
            for c in fold.pending()
        ],
        "releases": [_release(fold, d) for d in fold.releases],
    }


def _release(fold: Collective, decision: Decision) -> dict[str, Json]:
    result: dict[str, Json] = {"height": decision.height, "digest": decision.digest, "time": decision.proposal.ts}
    if isinstance(decision.value, Cut):
        result["number"] = decision.value.number
        result["model"] = decision.value.model
        result["members"] = [_name(fold, x.member) for x in decision.value.last]
    return result


def log(seat: Seat, limit: int | None = None) -> dict[str, Json]:
    """Every decision: who contributed what, who voted how and what each voter measured (differences, 0.01 nats)."""
    decisions = seat.fold.decisions[-limit:] if limit else seat.fold.decisions
    return {"decisions": [_decision(seat.fold, d) for d in decisions]}


def _decision(fold: Collective, decision: Decision) -> dict[str, Json]:
    tally = fold.tally_of(decision.height)
    firsts = tally.firsts.get(decision.attempt, {})
    votes: list[Json] = []
    for member in decision.charter.voters:
        first = firsts.get(member.id)
        committed = any(s.member == member.id for s in decision.commits)
        judged = tally.verdicts.get(member.id, {}).get(decision.digest)
        votes.append(
            {
                "member": member.id,
                "name": member.name,
                "vote": ("accept" if first.accepts else f"object ({first.reason})") if first else None,
                "committed": committed,
                "versus_base": judged[1].versus_base if judged else None,
                "versus_parent": judged[1].versus_parent if judged else None,
                "rows": judged[1].rows if judged else None,
            }
        )
    result: dict[str, Json] = {
        "height": decision.height,
        "attempt": decision.attempt,
        "digest": decision.digest,
        "time": decision.proposal.ts,
        "proposer": _name(fold, decision.proposal.member),
        "votes": votes,
    }
    if isinstance(decision.value, Amendment):
        return {**result, "kind": "amendment", "change": dict(decision.value.change), "contributions": []}
    cut = decision.value
    contributions: list[Json] = [
        {
            "member": member,
            "name": _name(fold, member),
            "count": len(covered),
            "blob": covered[-1].blob,
            "bytes": sum(c.size for c in covered),
            "cosignatures": len(fold.witnesses.organisations(covered[-1], decision.charter, cut.place.size_of)),
        }
        for member, covered in fold.in_cut(cut).items()
    ]
    return {
        **result,
        "kind": "release",
        "number": cut.number,
        "model": cut.model,
        "excluded": [{"event": x.event, "reason": x.reason} for x in cut.excluded],
        "contributions": contributions,
    }


def charter(fold: Collective) -> dict[str, Json]:
    """The charter in force, with the collective's id, height and quorum."""
    now: Charter = fold.charter
    return {**now.to_json(), "id": fold.id, "height": fold.height, "quorum": now.quorum, "epoch_id": now.epoch_id}


def proposals(fold: Collective) -> list[Json]:
    """Undecided amendments with their approvals."""
    done = {d.value.proposal for d in fold.decisions if isinstance(d.value, Amendment)}
    voters = {m.id for m in fold.charter.voters}
    return [
        {
            "digest": asked.source.event,
            "kind": str(asked.change.get("op")),
            "by": _name(fold, asked.source.member),
            "text": describe(fold, asked.change),
            "accepts": len(voters & set(fold.approvals.get(event, {}))),
            "needed": 0 if event in fold.successions else fold.charter.quorum,
        }
        for event, asked in sorted(fold.asked.items(), key=lambda item: (item[1].source.ts, item[0]))
        if event not in done and (event not in fold.successions or asked in fold.ripe_amendments())
    ]


def describe(fold: Collective, change: Mapping[str, Json]) -> str:
    """One change of the charter in words."""
    op = change.get("op")
    if op in ("add", "role"):
        seat = change.get("member")
        seat = seat if isinstance(seat, dict) else {}
        verb = "admit" if op == "add" else "change the role of"
        return f"{verb} {seat.get('name')} ({str(seat.get('id'))[:12]}) as {seat.get('role')}"
    if op == "remove":
        return f"take the seat of {_name(fold, MemberId(str(change.get('id'))))}"
    if op == "succeed":
        old, new = MemberId(str(change.get("old"))), str(change.get("new"))
        return f"give the seat of {_name(fold, old)} ({old[:12]}) to its owner's key {new[:12]}"
    if op == OP:
        return forgetting.describe(fold, change)
    return f"set {change.get('field')} to {change.get('value')}"


def _name(fold: Collective, member: MemberId | Digest) -> str:
    for charter_ in reversed(fold.charters):
        seat = charter_.member(member)
        if seat:
            return seat.name
    return str(member)[:12]
