"""A simulation's outcome as one JSON value: what a person, a plot and a test read.

Knows no event and no member's memory beyond what was watched. Invariant: everything but `cost` is a function of the
configuration, so two runs of one seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, TypeAlias

from node.simulation.hostile import HostileMember
from node.simulation.watching import Seen, fates
from node.simulation.world import Outcome
from protocol.canon import Json
from protocol.ids import digest_of

VERSION = 1
Report: TypeAlias = dict[str, Any]


def build(outcome: Outcome) -> Report:
    """The whole report; losses in nats, times in simulated seconds, sizes in bytes."""
    config, members, watch = outcome.config, outcome.members, outcome.watch
    traffic = outcome.swarm.traffic
    hostile = [m for m in members if isinstance(m, HostileMember)]
    return {
        "v": VERSION,
        "config": config.model_dump(mode="json"),
        "collective": {
            "id": members[0].kit.collective,
            "members": len(members),
            "quorum": outcome.charter.quorum,
            "faults": outcome.charter.faults,
            "coordinates": outcome.charter.adapter.coordinates,
            "recipe": outcome.charter.recipe,
        },
        "releases": [_release(outcome, each) for each in watch.seen],
        "attackers": [_attacker(each, watch.seen) for each in hostile],
        "honest": _honest(outcome),
        "network": {
            "messages": dict(sorted(traffic.messages.items())),
            "bytes": dict(sorted(traffic.bytes.items())),
            "lost": traffic.lost,
        },
        "end": _end(outcome),
        "feeds": feeds_digest(outcome),
        "notes": list(notes(outcome)),
        "cost": {
            "seconds": round(outcome.seconds, 1),
            "cpu_s": round(outcome.cpu_s, 1),
            "events": outcome.events,
            "runs": outcome.trainer.counts["runs"],
            "evaluations": outcome.trainer.counts["evaluations"],
        },
    }


def feeds_digest(outcome: Outcome) -> str:
    """One digest over every member's own feed: equal for equal seeds, other for anything that anybody said differently."""
    rows: list[Json] = []
    for member in outcome.members:
        own = member.store.records(member.kit.collective, member.id, 0, 1 << 30)
        rows.append([member.name, len(own), own[-1].entry.leaf if own else ""])
    return digest_of({"feeds": rows})


def notes(outcome: Outcome) -> list[str]:
    """What a reader must know to read the numbers right."""
    found = ["heads are announced with the size of signed ones, but not signed; p2pd, TCP and disks are not simulated"]
    budget, config = outcome.budget, outcome.config
    if budget.voters < len(outcome.members):
        can = "can" if budget.voters >= budget.needed else "can NOT"
        found.append(
            f"at each height {budget.voters} of {len(outcome.members)} voters measure the candidate, drawn by the seed; the"
            f" others accept what is sound. {budget.needed} must name a contribution before it is refused, so votes {can} refuse"
            " one here"
        )
    if len(outcome.watch.sample) < len(outcome.watch.honest):
        found.append(
            f"curves are over {len(outcome.watch.sample)} of {len(outcome.watch.honest)} honest members, always the same"
        )
    if config.training.kind == "vectors":
        found.append(
            "no model: losses are quadratics around drawn optima; they say nothing about the quality of a real model"
        )
    return found


def _release(outcome: Outcome, seen: Seen) -> Report:
    here = [seen.held[m.number] for m in outcome.watch.honest if m.number in seen.held]
    budget = outcome.budget
    return {
        "number": seen.number,
        "height": seen.height,
        "attempt": seen.attempt,
        "release": seen.release,
        "model": seen.model,
        "simulated_s": round(seen.decided_s, 3),
        "loss": _spread(seen.losses),
        "base": _spread(seen.base),
        "gain": round(fmean(seen.base) - fmean(seen.losses), 6) if seen.losses else None,
        "measured_members": len(seen.losses),
        "contributions": seen.contributions,
        "fresh": seen.fresh,
        "fates": dict(seen.fates),
        "excluded": list(seen.excluded),
        "messages": seen.messages,
        "bytes": seen.bytes,
        "lost_messages": seen.lost,
        "sent_per_member": _spread([float(x) for x in seen.sent]),
        "converged_s": round(max(here) - seen.decided_s, 3) if here else None,
        "held_by": len(seen.held),
        "voters_measured": len(budget.measured.get(seen.height, ())),
        "measurements": budget.spent(seen.height),
    }


def _attacker(member: HostileMember, seen: Sequence[Seen]) -> Report:
    named = [(s.number, x) for s in seen for x in s.excluded if x["member"] == member.name]
    return {
        "member": member.name,
        "attack": member.plot.attack.name,
        "from_release": member.plot.from_release,
        "named_at_release": named[0][0] if named else None,
        "reasons": sorted({str(x["reason"]) for _, x in named}),
        "times_named": len(named),
    }


def _honest(outcome: Outcome) -> Report:
    """How honest members fared: refused contributions of theirs are silenced voices."""
    fold = outcome.members[0].fold
    honest = {m.id: m.name for m in outcome.watch.honest}
    made = [c for member in honest for c in fold.contributions.get(member, ())]
    refused = [c for c in made if fold.fate(c) == "refused"]
    return {
        "members": len(honest),
        "contributions": len(made),
        "refused": len(refused),
        "refused_of": sorted({honest[c.member] for c in refused}),
    }


def _end(outcome: Outcome) -> Report:
    reference = outcome.members[0].fold
    known = {c.event for published in reference.contributions.values() for c in published}
    published = [
        c.event for m in outcome.members for c in m.fold.contributions.get(m.id, ())
    ]  # as each author's own feed has it
    return {
        "finished": outcome.finished,
        "simulated_s": round(outcome.ended_s, 3),
        "settled_s": None if outcome.settled_s is None else round(outcome.settled_s, 3),
        "equal_views": len(set(outcome.views)) == 1 and None not in outcome.views,
        "heights": sorted({m.fold.height for m in outcome.members}),
        "kills": outcome.kills,
        "runs_lost_by_kills": outcome.lost_runs,
        "contributions": {
            "published": len(published),
            **fates(reference),
            "lost": sum(event not in known for event in published),
        },
    }


def _spread(values: Sequence[float]) -> Report | None:
    if not values:
        return None
    return {"mean": round(fmean(values), 6), "min": round(min(values), 6), "max": round(max(values), 6)}
