"""The conflict report of a release: how its members' registers agree and disagree, module by module, from feeds and blobs.

Knows no torch, network or key; nothing is written. Names of modules come from the base model's file headers; where that model
is not on this machine the adapter is reported as one piece. Invariant: reported is what was released, recomputed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrib import adapters, conflicts, influence, models
from contrib.conflicts import Conflict, Module
from contrib.influence import Bearing
from contrib.recipes import senders
from contrib.recipes.senders import Senders
from ledger.charter import Charter
from ledger.cuts import Cut
from ledger.store import Store
from node.audits.record import read
from node.audits.releases import Blobs
from node.collective.releases import find
from node.collective.replay import Model, Replay, matches
from node.errors_serving import UnknownRelease
from node.home import model_cache
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is said of one release; figures list members in the order of `members` (id, name)."""

    cut: Cut
    recipe: str
    members: tuple[tuple[MemberId, str], ...]
    bearings: tuple[Bearing, ...]
    senders: Senders
    parts: tuple[Conflict, ...]

    def to_json(self) -> dict[str, Json]:
        """The shape of cli/conflicts.py."""
        return {
            "release": self.cut.digest,
            "number": self.cut.number,
            "recipe": self.recipe,
            "members": [
                {"id": m, "name": name, "bearing_permille": round(1000 * b.cosine), "opposed": b.opposed}
                for (m, name), b in zip(self.members, self.bearings, strict=True)
            ],
            "senders": self.senders.to_json(),
            "modules": [part.to_json() for part in self.parts],
            "excluded": [{"event": x.event, "reason": x.reason} for x in self.cut.excluded],
        }


def run(ledger_db: Path, blob_folder: Path, collective: CollectiveId, name: str) -> Report:
    """Report on the release that `name` means.

    Raises:
        StoreBroken: there is no ledger to read.
        UnknownRelease: no such release in it, or it cannot be recomputed from what is here.
    """
    with Store.open(ledger_db, writer=False) as store:
        fold = read(store, collective).fold
    decision, cut = find(fold, name)
    model = Replay(fold, Blobs(blob_folder).read).of_cut(decision.charter, cut)
    if not isinstance(model, Model) or not matches(cut, model):
        raise UnknownRelease(
            f"couldn't report on release {cut.number}: it can't be recomputed from what is here",
            hint=f"fishernet replay {cut.number}",
        )
    ordered = sorted(model.registers)
    seats = {m: fold.seat_at(m, cut.place.height) for m in ordered}
    bearings = influence.bearings(model.registers, decision.charter.faults)
    return Report(
        cut=cut,
        recipe=cut.recipe,
        members=tuple((m, seat.name if (seat := seats[m]) else m[:12]) for m in ordered),
        bearings=tuple(bearings[m] for m in ordered),
        senders=senders(model.registers, model.vector),
        parts=tuple(conflicts.report(model.registers, _modules(decision.charter))),
    )


def _modules(charter: Charter) -> Sequence[Module]:
    """Where each module's B lies in the vector; none when the base model is not here."""
    adapter = charter.adapter
    spec = adapters.AdapterSpec(rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets, seed=adapter.seed)
    found, at = list[Module](), 0
    try:
        model = models.find(charter.base.digest, model_cache())
        shape = adapters.layout(model.path, spec)
    except Refused:
        return found
    for name, _, out in shape.modules:
        found.append((name, at, at + out * adapter.rank))
        at += out * adapter.rank
    return found
