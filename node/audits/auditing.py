"""The audit of everything a directory holds, from the bytes to what the events mean.

    integrity (ledger.audit) -> facts from what holds (ledger.compliance) -> decisions on access repeated
      -> releases recomputed (audit_releases) -> rules C1 to C16 -> findings, verdict

Imports neither torch nor a network library. Trusts signatures and hashes only, and writes nothing, not even to put a damaged
blob aside. A feed is followed up to its first fault. What is not all here, or could not be followed, is "could not check",
never clean; so is a head that only one node confirmed (an observer says).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger import audit, succession
from ledger.access.book import Book
from ledger.checkpoint import Head
from ledger.collective import Collective
from ledger.compliance import findings as compliance
from ledger.compliance.facts import Facts
from ledger.compliance.repeat import repeat
from ledger.compliance.rules import RULES
from ledger.compliance.signs import links, signs
from ledger.store import Store
from node.audits.findings import ERROR, NOTICE, SEVERITIES, WARNING, Finding, found_at, of_integrity, of_rule, verdict
from node.audits.releases import Blobs, Recomputed, Releases, unconfirmed
from protocol.canon import Json
from protocol.errors import FishernetError, Refused
from protocol.ids import CollectiveId
from protocol.merkle import leaf_hash

_OF_HEADS: Final = frozenset(
    {"bad-head", "tail-missing", "root-mismatch", "bad-proof", "fork", "node-mismatch"}
)  # the entries stand by themselves
_BINS: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an observer said about heads, the auditor's clock (ms), whether a warning counts, what is added for a report."""

    observed: Mapping[str, Json] | None = None
    now_ms: int | None = None
    strict: bool = False
    report: bool = False


def run(ledger_db: Path, blob_folder: Path, collective: CollectiveId, options: Options | None = None) -> Json:
    """Audit one collective in a directory; the answer has the shape of cli/render.py.

    Raises:
        StoreBroken: there is no ledger to read.
    """
    audited = _Audit(collective, options or Options())
    try:
        with Store.open(ledger_db, writer=False) as store:
            audited.read(store)
        return audited.judge(Blobs(blob_folder))
    finally:
        audited.facts.close()


def rules() -> Json:
    """The rules, for `audit --rules`."""
    return {
        "rules": [
            {
                "id": rule.id,
                "title": rule.title,
                "promise": rule.promise,
                "advice": rule.advice,
                "severities": sorted({case.severity for case in rule.cases.values()}, key=SEVERITIES.index),
            }
            for rule in RULES.values()
        ]
    }


class _Audit:
    """One audit under way: what was read, and what was found so far."""

    def __init__(self, collective: CollectiveId, options: Options) -> None:
        self._collective, self._options = collective, options
        self._fold, self._book, self.facts = Collective(collective), Book(), Facts()
        self._heads: list[Head] = []
        self._findings: list[Finding] = []
        self._unchecked: list[str] = []
        self._erased = 0

    # -- reading -----------------------------------------------------------------------------------------------------
    def read(self, store: Store) -> None:
        """Check the bytes of every feed, and follow each up to its first fault."""
        faults = audit.integrity(store, self._collective)
        self._findings += [of_integrity(f, _leaf(store, self._collective, f)) for f in faults]
        for member in store.members(self._collective):
            for fault in faults:
                if (fault.member, fault.code) == (member, "tail-missing"):
                    self.facts.lacks(member, (fault.seq or 0) + 1)
            places = [f.seq for f in faults if f.member == member and f.code not in _OF_HEADS | audit.NOTICES]
            end = min((seq for seq in places if seq is not None), default=None)
            try:
                while page := store.records(
                    self._collective, member, size := self._fold.sizes.get(member, 0), _limit(size, end)
                ):
                    self._fold.apply_all(page)
                    self._book.apply_all(page)
                    self.facts.add(page)
            except FishernetError as e:
                self._unchecked.append(f"feed of {member[:12]}: {e}")
                self.facts.lacks(member, size + 1)
            if end is not None:
                self._unchecked.append(f"feed of {member[:12]}: not followed beyond entry {end}, which is not right")
                self.facts.lacks(member, end + 1)
            try:
                self._heads += store.heads(self._collective, member)
            except Refused:  # the integrity check has named it
                continue

    # -- judging -----------------------------------------------------------------------------------------------------
    def judge(self, blobs: Blobs) -> Json:
        """Everything that follows from what was read."""
        fold = self._fold
        self._unchecked += [
            f"entry {s.seq} of {s.member[:12]}: its body is missing, and it is not one that is ever erased"
            for s in fold.withheld
        ]
        self._findings += _flagged(fold)
        self._findings += self._unknown()
        self.facts.settle(fold)
        asked = self.facts.erased()
        gone = [f for f in self._findings if f.id in audit.NOTICES and f.event in asked]
        self._erased = len(gone)
        self._findings = [f for f in self._findings if f not in gone]
        releases: list[Recomputed] = []
        if fold.known:
            recomputed = Releases(fold, blobs, self.facts.forgotten())
            releases = recomputed.check()
            self._findings += recomputed.findings
            self._unchecked += recomputed.unchecked
            for release in releases:
                if release.model is not None and release.matches is not None:
                    self.facts.replayed(release.decision.digest, release.model, matches=release.matches)
            repeat(self.facts, self._book, fold)
        else:
            self._unchecked.append("the founder's feed with the charter is not here")
        self._signs()
        self._findings += [of_rule(f) for f in compliance.find(self.facts)]
        self._unchecked += unconfirmed(self._options.observed)
        return self._answer(releases)

    def _unknown(self) -> Iterator[Finding]:
        for kind, count in sorted(self._fold.unknown_types.items()):
            event, member, seq = self.facts.first_of(kind)
            text = f"{count} entries of unknown type {kind}; this is the first"
            yield Finding(id="unknown-type", severity=NOTICE, member=member, seq=seq, event=event, text=text)

    def _signs(self) -> None:
        members = self._fold.ever_members() if self._fold.known else None
        longest = {h.member: h.size for h in self._heads}
        for sign in (*links(self.facts, members, longest, self._options.now_ms), *signs(self.facts)):
            if sign.unchecked:
                self._unchecked.append(f"feed of {sign.member[:12]}: {sign.text}")
            else:
                self._findings.append(
                    Finding(
                        id=sign.id,
                        severity=sign.severity,
                        member=sign.member,
                        seq=sign.seq,
                        event=sign.event,
                        evidence=sign.evidence,
                        text=sign.text,
                    )
                )

    def _answer(self, releases: list[Recomputed]) -> Json:
        names = {m.id: m.name for charter in self._fold.charters for m in charter.members}
        place = {severity: n for n, severity in enumerate(SEVERITIES)}
        found = sorted(
            self._findings, key=lambda f: (place[f.severity], f.member or "", -1 if f.seq is None else f.seq)
        )
        answer: dict[str, Json] = {
            "verdict": verdict(found, self._unchecked, strict=self._options.strict),
            "collective": self._collective,
            "name": self._fold.charter.name if self._fold.known else "",
            "as_of": compliance.moment(self.facts),
            "feeds": [
                {"member": h.member, "name": names.get(h.member, ""), "size": h.size, "root": h.root}
                for h in self._heads
            ],
            "releases": [r.to_json() for r in releases],
            "findings": [f.to_json() for f in found],
            "unchecked": list(self._unchecked),
            "erased": self._erased,
            "records": compliance.records(self.facts),
        }
        if self._options.report:
            answer["timeline"] = compliance.timeline(self.facts, _BINS, {f.event for f in found if f.event})
        return answer


def _leaf(store: Store, collective: CollectiveId, fault: audit.Finding) -> str | None:
    """The hash of the entry that a fault is about, where its event cannot be read."""
    if fault.event is not None or fault.seq is None:
        return None
    rows = (row for row in store.raw(collective, fault.member) if row.seq <= (fault.seq or 0))
    row = max(rows, key=lambda r: r.seq, default=None)
    return None if row is None else leaf_hash(row.line).hex()


def _limit(size: int, end: int | None) -> int:
    return 256 if end is None else max(0, min(256, end - size))


def _flagged(fold: Collective) -> Iterator[Finding]:
    """What the fold could not take as it stands."""
    for flaw in fold.flaws:
        yield found_at(flaw.code, flaw.source, flaw.text)
    for double in fold.double_votes:
        where = f"at height {double.height}, attempt {double.attempt}"
        text = f"two different votes {where}; the first is entry {double.first.seq}"
        yield found_at("double-vote", double.second, text, double.first.event)
    for was in (w for charter in fold.charters[-1:] for m in charter.members for w in m.was):
        if was.left == succession.RECOVERY and fold.sizes.get(was.id, 0) > was.size:
            yield Finding(
                id="untrusted-entry",
                severity=WARNING,
                member=was.id,
                seq=was.size,
                event=next((s.event for s in fold.sources.values() if (s.member, s.seq) == (was.id, was.size)), None),
                text=f"{fold.sizes[was.id] - was.size} entries were signed with a key after its owner had lost it",
            )
    for item in fold.witnesses.contradicting():
        said = item.cosignature
        text = f"it witnessed another history of {said.member[:12]} ({said.size} entries) than the one that is here"
        yield found_at("witness-contradicts", item.source, text, said.root)
    for member, finders in sorted(fold.forked.items()):
        for proof in finders.values():
            yield Finding(
                id="fork",
                severity=ERROR,
                member=member,
                event=proof.event,
                evidence=(proof.event,),
                text=f"the member signed two histories, as entry {proof.seq} of {proof.member[:12]} proves",
            )
