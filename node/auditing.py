"""The audit of everything a directory holds: integrity of feeds, what the fold flagged, and every release recomputed.

Composes `ledger.audit` with `node.replay`; imports neither torch nor a network library. Trusts signatures and hashes only,
and writes nothing, not even to put a damaged blob aside. A feed is followed up to its first fault. What is not all here,
or could not be followed, is "could not check", never clean; so is a head that only one node confirmed (an observer says).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ledger import audit, rules
from ledger.checkpoint import Head
from ledger.collective import Collective, Contribution, Decision
from ledger.cuts import Amendment, Cut
from ledger.store import Store
from node.gate import Reject
from node.replay import Missing, Replay, matches
from protocol.canon import Json
from protocol.errors import FishernetError, Refused
from protocol.ids import CollectiveId, Digest, digest

_MAX_BLOB = 1 << 30
_OF_HEADS = frozenset(
    {"bad-head", "tail-missing", "root-mismatch", "bad-proof", "fork"}
)  # the entries stand by themselves
_Found = dict[str, Json]


def run(ledger_db: Path, blob_folder: Path, collective: CollectiveId, observed: Mapping[str, Json] | None) -> Json:
    """Audit one collective in a directory; `observed` is what an observer said about unconfirmed heads.

    Raises:
        StoreBroken: there is no ledger to read.
    """
    unchecked: list[str] = []
    with Store.open(ledger_db, writer=False) as store:
        integrity = audit.integrity(store, collective)
        fold = _follow(store, collective, integrity, unchecked)
        heads = list(_heads(store, collective))
    findings = [
        _finding(f.code, "notice" if f.code in audit.NOTICES else "fault", f.member, f.seq, f.event, f.text)
        for f in integrity
    ]
    findings += _flagged(fold)
    unchecked += [
        f"entry {s.seq} of {s.member[:12]}: its body is missing, and it is not one that is ever erased"
        for s in fold.withheld
    ]
    releases: list[Json] = []
    if fold.known:
        blobs = _Blobs(blob_folder)
        recomputed = _Releases(fold, Replay(fold, blobs.read), findings, unchecked)
        for decision in fold.decisions:
            recomputed.check(decision)
        releases += recomputed.results
        findings += _damaged(fold, blobs)
    else:
        unchecked.append("the founder's feed with the charter is not here")
    unchecked += _unconfirmed(observed)
    faults = [f for f in findings if f["severity"] == "fault"]
    names = {m.id: m.name for charter in fold.charters for m in charter.members}
    return {
        "verdict": "findings" if faults else "could-not-check" if unchecked else "clean",
        "collective": collective,
        "feeds": [{"member": h.member, "name": names.get(h.member, ""), "size": h.size, "root": h.root} for h in heads],
        "releases": releases,
        "findings": [dict(f) for f in findings],
        "unchecked": list(unchecked),
    }


class _Blobs:
    """Blobs as they lie in a folder; `damaged` are those that have other bytes than their name says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.damaged: set[Digest] = set()

    def read(self, name: Digest) -> bytes | None:
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(_MAX_BLOB)
        except FileNotFoundError:
            return None
        except OSError:
            data = b""
        if digest(data) == name:
            return data
        self.damaged.add(name)
        return None


def _follow(store: Store, collective: CollectiveId, faults: list[audit.Finding], unchecked: list[str]) -> Collective:
    """The fold of every feed up to its first faulty entry; what was left out is added to `unchecked`."""
    fold = Collective(collective)
    for member in store.members(collective):
        places = [f.seq for f in faults if f.member == member and f.code not in _OF_HEADS | audit.NOTICES]
        end = min((seq for seq in places if seq is not None), default=None)
        try:
            while page := store.records(collective, member, size := fold.sizes.get(member, 0), _limit(size, end)):
                fold.apply_all(page)
        except FishernetError as e:
            unchecked.append(f"feed of {member[:12]}: {e}")
        if end is not None:
            unchecked.append(f"feed of {member[:12]}: not followed beyond entry {end}, which is not right")
    return fold


def _limit(size: int, end: int | None) -> int:
    return 256 if end is None else max(0, min(256, end - size))


def _heads(store: Store, collective: CollectiveId) -> Iterator[Head]:
    for member in store.members(collective):
        try:
            yield from store.heads(collective, member)
        except Refused:  # the integrity check has named it
            continue


def _finding(code: str, severity: str, member: str | None, seq: int | None, event: str | None, text: str) -> _Found:
    return {"code": code, "severity": severity, "member": member, "seq": seq, "event": event, "text": text}


def _flagged(fold: Collective) -> list[_Found]:
    found = [_finding(f.code, "fault", f.source.member, f.source.seq, f.source.event, f.text) for f in fold.flaws]
    for double in fold.double_votes:
        text = f"two different votes at height {double.height}, attempt {double.attempt}; the first is entry {double.first.seq}"
        found.append(
            _finding("double-vote", "fault", double.second.member, double.second.seq, double.second.event, text)
        )
    found += [
        _finding("unknown-type", "notice", None, None, None, f"{count} entries of unknown type {kind}")
        for kind, count in sorted(fold.unknown_types.items())
    ]
    return found


class _Releases:
    """Checks decisions in their order against the rules and, for releases, against the blobs."""

    def __init__(self, fold: Collective, replay: Replay, findings: list[_Found], unchecked: list[str]) -> None:
        self._fold, self._replay = fold, replay
        self._findings, self._unchecked = findings, unchecked
        self._examined: set[str] = set()
        self.results: list[Json] = []

    def check(self, decision: Decision) -> None:
        """Check one decision; what is wrong goes to the findings, what is not here to the unchecked."""
        self._rules(decision)
        self._certificates(decision)
        if isinstance(decision.value, Cut):
            self.results.append(self._release(decision, decision.value))

    def _fault(self, code: str, at: Decision | Contribution, text: str) -> None:
        source = at.proposal if isinstance(at, Decision) else at.source
        self._findings.append(_finding(code, "fault", source.member, source.seq, source.event, text))

    def _rules(self, decision: Decision) -> None:
        """The ledger's own rules for a decision, against the state just before it."""
        check = rules.check(self._fold.before(decision.height), decision.value)
        kind = "amendment" if isinstance(decision.value, Amendment) else "release"
        if isinstance(check, rules.Unfit):
            text = f"{kind}: decision {decision.height} was committed by a quorum and breaks a rule: {check.reason}"
            self._fault("bad-decision", decision, text)
        elif isinstance(check, rules.Lacking):
            feeds = ", ".join(f"{m[:12]} to entry {n - 1}" for m, n in check.feeds.items())
            self._unchecked.append(f"{kind} at height {decision.height}: entries it builds on are not here ({feeds})")

    def _certificates(self, decision: Decision) -> None:
        """Another value that a quorum committed at the same height: more than f voters lied."""
        tally, voters = self._fold.tally_of(decision.height), {m.id for m in decision.charter.voters}
        for by_member in tally.commits.values():
            said = [v for m, v in by_member.items() if m in voters and v.digest not in {None, decision.digest}]
            others = {v.digest: [w.source for w in said if w.digest == v.digest] for v in said}
            for other, sources in others.items():
                if len(sources) >= decision.charter.quorum:
                    last = max(sources, key=lambda s: s.member)
                    text = f"a quorum committed {str(other)[:12]} too at height {decision.height}"
                    self._findings.append(_finding("two-decisions", "fault", last.member, last.seq, last.event, text))

    def _release(self, decision: Decision, cut: Cut) -> _Found:
        result: _Found = {
            "height": decision.height,
            "number": cut.number,
            "digest": decision.digest,
            "model": cut.model,
        }
        for contribution in (c for published in self._fold.in_cut(cut).values() for c in published):
            answer = self._replay.examine(contribution)
            if isinstance(answer, Reject) and contribution.event not in self._examined:
                self._examined.add(contribution.event)
                self._fault(f"covers-{answer.code}", contribution, answer.text)
        self._exclusions(decision, cut)
        try:
            model = self._replay.of_cut(decision.charter, cut)
        except Refused as e:
            self._unchecked.append(f"release {cut.number} could not be recomputed: {e}")
            return {**result, "recomputed": False, "matches": None}
        if isinstance(model, Missing):
            missing = f"{len(model.blobs)} blobs are not here" if model.blobs else "entries are not here"
            self._unchecked.append(f"release {cut.number} could not be recomputed: {missing}")
            return {**result, "recomputed": False, "matches": None}
        same = matches(cut, model)
        if not same:
            computed, signed = model.digest[:12], cut.model[:12]
            text = f"release {cut.number} recomputes to model {computed}, not to what was signed ({signed})"
            self._fault("release-mismatch", decision, text)
        return {**result, "recomputed": True, "matches": same}

    def _exclusions(self, decision: Decision, cut: Cut) -> None:
        """Whether each blob that was left out for a fault of its own has that fault."""
        claimed = {
            x.event: x.reason for x in cut.excluded if x.reason != rules.REFUSED and x.event not in self._examined
        }
        self._examined |= claimed.keys()
        for contribution in (c for by in self._fold.contributions.values() for c in by if c.event in claimed):
            answer, reason = self._replay.examine(contribution), claimed[contribution.event]
            if answer is None:
                self._unchecked.append(f"release {cut.number}: the blob left out as {reason!r} is not here")
            elif not (isinstance(answer, Reject) and answer.code == reason):
                what = f"contribution {contribution.number} of {contribution.member[:12]}"
                self._fault("exclusion-without-fault", decision, f"release {cut.number} leaves out {what}: {reason}")


def _damaged(fold: Collective, blobs: _Blobs) -> list[_Found]:
    """Blobs whose file has other bytes than their digest says, at the entries that published them."""
    found = []
    for contribution in (c for published in fold.contributions.values() for c in published):
        blobs.read(contribution.blob)
        if contribution.blob in blobs.damaged:
            at, text = (
                contribution.source,
                f"the file of blob {contribution.blob[:12]} has other bytes than its digest says",
            )
            found.append(_finding("blob-damaged", "fault", at.member, at.seq, at.event, text))
    return found


def _unconfirmed(observed: Mapping[str, Json] | None) -> list[str]:
    feeds = (observed or {}).get("feeds")
    found = []
    for feed in feeds if isinstance(feeds, list) else []:
        if isinstance(feed, dict) and feed.get("status") not in {None, "confirmed", "ok"}:
            found.append(f"feed of {str(feed.get('member'))[:12]}: {feed.get('status')}")
    return found
