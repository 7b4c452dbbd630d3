"""Makes a forget bundle from a ledger file and blobs: what strangers need to see that something was forgotten.

Reads the ledger beside its daemon and writes nothing into it; the maker's key signs the file. Invariant: what is handed out was
checked as a stranger checks it. Loses nothing silently: a feed whose head does not cover what has to be shown is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ledger import bundle, bundle_check, events, rules
from ledger.bundle import Edge, FeedProof, Shown
from ledger.bundle_check import Checked
from ledger.checkpoint import Head
from ledger.collective import Collective, Contribution, Decision
from ledger.cuts import Amendment, Cut
from ledger.store import Store
from ledger.tree import Tree
from node.audits.lineage import Descendant, Lineage, knowledge_of
from node.audits.proving import newest_head
from node.audits.record import Record, read
from node.audits.releases import Blobs
from node.audits.replaying import log_of
from node.collective import forgetting
from node.collective.remerging import Remerged, remerge
from node.collective.replay import Model, Replay
from node.errors import NotAllowed
from protocol import keys, merkle
from protocol.canon import Json
from protocol.ids import CollectiveId, Digest, EventId, MemberId

_BODIES: Final = frozenset(
    {
        events.Genesis.TYPE,
        events.Proposed.TYPE,
        events.Committed.TYPE,
        events.Published.TYPE,
        events.ErasureRequested.TYPE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What forgetting comes to: which contributions, the releases again without them, and what others learnt from them."""

    asked: tuple[Contribution, ...]
    again: tuple[Remerged, ...]
    descendants: tuple[Descendant, ...]


@dataclass(slots=True, kw_only=True)
class _Making:
    """One bundle under way."""

    store: Store
    record: Record
    heads: dict[MemberId, tuple[Head, Tree]] = field(default_factory=dict)
    wanted: set[EventId] = field(default_factory=set)

    @property
    def fold(self) -> Collective:
        return self.record.fold


def plan(record: Record, replay: Replay, blobs: Blobs, asked: Iterable[Contribution]) -> Plan:
    """Merge every release that had them in it again, and look for what descends from them.

    Raises:
        NotRecomputable: taking out and never having had them differ.
    """
    named = tuple(asked)
    ids = {c.event for c in named}
    lineage = Lineage(record.fold, replay, blobs.read, knowledge_of(record.headers.values()))
    return Plan(
        asked=named,
        again=tuple(remerge(record.fold, replay, ids)),
        descendants=tuple(lineage.descendants(ids)),
    )


def make(
    ledger_db: Path,
    blob_folder: Path,
    collective: CollectiveId,
    named: Collection[EventId],
    *,
    key: keys.SigningKey,
    ts: int,
) -> tuple[bytes, Checked]:
    """The bundle about contributions that the newest releases are without, and what it shows.

    Raises:
        NotAllowed: they are in the newest release, were left out for another reason, or a head does not cover it yet.
        NotRecomputable: the arithmetic disagrees.
        TooLarge: there is too much of it for one file.
    """
    with Store.open(ledger_db, writer=False) as store:
        making = _Making(store=store, record=read(store, collective))
        fold = making.fold
        new, cut, old = _releases(fold, named)
        known = {c.event: c for by in fold.contributions.values() for c in by}
        blobs = Blobs(blob_folder)
        replay = Replay(fold, blobs.read)
        planned = plan(making.record, replay, blobs, [known[event] for event in sorted(named)])
        again = [each for each in planned.again if each.decision.height < new.height]
        chain = _chain(fold, again, old)
        decisions = [d for d in fold.decisions[: new.height] if isinstance(d.value, Amendment) or d in (old, new)]
        logs = {"old": None if old is None else _log(fold, replay, old), "new": _log(fold, replay, new)}
        making.wanted |= {*named, *(d.event for d in planned.descendants), _genesis(making)}
        making.wanted |= {d.proposal.event for d in decisions}
        making.wanted |= {x.evidence[0] for x in cut.excluded if x.event in named and x.reason == rules.ERASED}
        for log in logs.values():
            making.wanted |= _listed(log, "inputs") | _listed(log, "left_out")
        feeds = {h.member for d in (old, new) if d for h in d.value.place.heads}
        _open(making, cut, feeds | {fold.sources[event].member for event in making.wanted})
        steps: list[Json] = [_step(making, decision) for decision in decisions]
        value: dict[str, Json] = {
            "v": bundle.VERSION,
            "kind": bundle.KIND,
            "collective": collective,
            "made": {"member": keys.member_id(key), "ts": ts},
            "genesis": _genesis(making),
            "asked": sorted(named),
            "decisions": steps,
            "superseded": [each.to_json() for each in chain],
            "feeds": {m: bundle.proof_json(_feed(making, m, old, new)) for m in sorted(making.heads)},
            "entries": {event: bundle.shown_json(_shown(making, event)) for event in sorted(making.wanted)},
            "logs": logs,
            "releases": [_again(each) for each in again],
            "descendants": [each.to_json() for each in planned.descendants],
            "statement": bundle.STATEMENT,
        }
    data = bundle.encode(value, key)
    return data, bundle_check.check(bundle.decode(data), collective)


def _releases(fold: Collective, named: Collection[EventId]) -> tuple[Decision, Cut, Decision | None]:
    """The first release without all of them, and the one before it."""
    cut = forgetting.without(fold, named) if named else None
    if cut is None:
        raise NotAllowed(
            "couldn't prove that it was forgotten: no release is without it yet",
            hint="fishernet forget waits for one; the daemon has to run",
        )
    reasons = {x.reason for x in cut.excluded if x.event in named}
    if not reasons <= {rules.ERASED, rules.FORGOTTEN}:
        raise NotAllowed(f"couldn't prove that it was forgotten: it was left out as {', '.join(sorted(reasons))}")
    place = next(n for n, d in enumerate(fold.releases) if d.value == cut)
    return fold.releases[place], cut, fold.releases[place - 1] if place else None


def _chain(fold: Collective, again: list[Remerged], old: Decision | None) -> list[Cut]:
    """The releases from the first that had one of them in it up to the one before the old one."""
    if not again or old is None:
        return []
    first = again[0].decision.height
    found = [d.value for d in fold.releases if first <= d.height < old.height]
    return [value for value in found if isinstance(value, Cut)]


def _log(fold: Collective, replay: Replay, decision: Decision) -> dict[str, Json]:
    if not isinstance(decision.value, Cut):
        raise NotAllowed(f"couldn't log decision {decision.height}: it is no release")
    model = replay.of_cut(decision.charter, decision.value)
    return log_of(fold, decision, decision.value, model if isinstance(model, Model) else None)


def _listed(log: Mapping[str, Json] | None, key: str) -> set[EventId]:
    rows = log[key] if log else None
    return {EventId(str(row[0])) for row in rows if isinstance(row, list)} if isinstance(rows, list) else set()


def _genesis(making: _Making) -> EventId:
    fold = making.fold
    founder = next((s for s in fold.sources.values() if (s.member, s.seq) == (fold.founder, 0)), None)
    if founder is None:
        raise NotAllowed("couldn't make bundle: the founder's feed with the charter is not here")
    return founder.event


def _open(making: _Making, new: Cut, feeds: Iterable[MemberId]) -> None:
    """The newest signed head of each feed, and its tree."""
    for member in sorted(feeds):
        head = newest_head(making.store, making.fold.id, member)
        need = max(
            [s.seq + 1 for e in making.wanted if (s := making.fold.sources[e]).member == member]
            + [new.place.size_of(member), 1]
        )
        if head is None or head.size < need:
            raise NotAllowed(
                f"couldn't make bundle: no signed head of {member[:12]} covers what has to be shown",
                hint="try again when the node has met its peers",
            )
        making.heads[member] = (head, making.store.tree(making.fold.id, member))


def _step(making: _Making, decision: Decision) -> dict[str, Json]:
    """A decision with as many commits as the heads cover; all of them are shown from here on."""
    covered = [c for c in decision.commits if c.member in making.heads and c.seq < making.heads[c.member][0].size]
    if len(covered) < decision.charter.quorum:
        raise NotAllowed(
            f"couldn't make bundle: signed heads cover {len(covered)} commits of height {decision.height}, "
            f"{decision.charter.quorum} are needed",
            hint="try again when the node has met its peers",
        )
    making.wanted |= {c.event for c in covered}
    return {"proposal": decision.proposal.event, "commits": sorted(c.event for c in covered)}


def _feed(making: _Making, member: MemberId, old: Decision | None, new: Decision) -> FeedProof:
    head, tree = making.heads[member]
    was = old.value.place.size_of(member) if old else 0
    now = new.value.place.size_of(member)
    before, after = None, None
    if was:
        root = Digest(merkle.root_at(was, tree.nodes).hex())
        before = Edge(size=was, root=root, path=tuple(merkle.inclusion(was - 1, was, tree.nodes)))
    if now:
        after = Edge(size=now, root=Digest(head.root), path=tuple(merkle.inclusion(now - 1, head.size, tree.nodes)))
    return FeedProof(
        note=head.note,
        consistency=tuple(merkle.consistency(was, head.size, tree.nodes)) if was else (),
        old=before,
        new=after,
    )


def _shown(making: _Making, event: EventId) -> Shown:
    source = making.fold.sources[event]
    head, tree = making.heads[source.member]
    (record,) = making.store.records(making.fold.id, source.member, source.seq, 1)
    body = record.body if record.entry.header.type in _BODIES else None
    path = tuple(merkle.inclusion(source.seq, head.size, tree.nodes))
    return Shown(line=record.entry.line, path=path, body=body)


def _again(each: Remerged) -> dict[str, Json]:
    return {
        "number": each.cut.number,
        "release": each.decision.digest,
        "model": each.cut.model,
        "without": each.model,
        "twice": each.twice,
    }
