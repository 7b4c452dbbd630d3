"""Recomputes every decision for the audit: the ledger's rules, the certificates, and each release from its blobs.

Reads blobs from a folder and changes none, damaged or not. A release whose blob was erased on request is "superseded" when a
later release was made without it: that is neither a fault nor clean. Knows no store and no compliance rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger import rules
from ledger.collective import Collective, Contribution, Decision
from ledger.cuts import Amendment, Cut
from node.audits.findings import ERROR, NOTICE, Finding, found_at
from node.collective import copying
from node.collective.gate import Reject
from node.collective.replay import Missing, Replay, matches
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import Digest, EventId, digest

_MAX_BLOB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What one release came to: its model by the blobs, or (None) why there is none."""

    decision: Decision
    cut: Cut
    model: Digest | None
    matches: bool | None
    superseded: bool = False

    def to_json(self) -> dict[str, Json]:
        """The shape of cli/render.py."""
        return {
            "height": self.decision.height,
            "number": self.cut.number,
            "digest": self.decision.digest,
            "model": self.cut.model,
            "recomputed": self.model is not None,
            "matches": self.matches,
            "superseded": self.superseded,
        }


class Blobs:
    """Blobs as they lie in a folder; `damaged` are those that have other bytes than their name says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.damaged: set[Digest] = set()

    def read(self, name: Digest) -> bytes | None:
        """The bytes of a blob, None when they are not here or not the right ones."""
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


class Releases:
    """Checks decisions in their order; what is wrong goes to `findings`, what cannot be checked to `unchecked`."""

    def __init__(self, fold: Collective, blobs: Blobs, erased: Collection[EventId]) -> None:
        """Check what `fold` has decided; the blobs of `erased` contributions may be gone."""
        self._fold, self._blobs, self._erased = fold, blobs, erased
        self._replay = Replay(fold, blobs.read)
        self._examined: set[str] = set()
        self._compared: set[str] = set()
        self.findings: list[Finding] = []
        self.unchecked: list[str] = []

    def check(self) -> list[Recomputed]:
        """Check every decision, then whether the blobs here are what was published."""
        results = []
        for decision in self._fold.decisions:
            self._rules(decision)
            self._certificates(decision)
            if isinstance(decision.value, Cut):
                results.append(self._release(decision, decision.value))
        self.findings += self._damaged()
        return self._superseded(results)

    def _fault(self, id_: str, at: Decision | Contribution, text: str, *evidence: str) -> None:
        source = at.proposal if isinstance(at, Decision) else at.source
        self.findings.append(found_at(id_, source, text, *evidence))

    def _rules(self, decision: Decision) -> None:
        """The ledger's own rules for a decision, against the state just before it."""
        check = rules.check(self._fold.before(decision.height), decision.value)
        kind = "amendment" if isinstance(decision.value, Amendment) else "release"
        if isinstance(check, rules.Unfit):
            text = f"{kind}: decision {decision.height} was committed by a quorum and breaks a rule: {check.reason}"
            self._fault("bad-decision", decision, text, *(c.event for c in decision.commits))
        elif isinstance(check, rules.Lacking):
            feeds = ", ".join(f"{m[:12]} to entry {n - 1}" for m, n in check.feeds.items())
            self.unchecked.append(f"{kind} at height {decision.height}: entries it builds on are not here ({feeds})")

    def _certificates(self, decision: Decision) -> None:
        """Another value that a quorum committed at the same height: more than f voters lied."""
        tally, voters = self._fold.tally_of(decision.height), {m.id for m in decision.charter.voters}
        for by_member in tally.commits.values():
            said = [v for m, v in by_member.items() if m in voters and v.digest not in {None, decision.digest}]
            others = {v.digest: [w.source for w in said if w.digest == v.digest] for v in said}
            for other, sources in others.items():
                if len(sources) >= decision.charter.quorum:
                    last = max(sources, key=lambda s: s.member)
                    self.findings.append(
                        Finding(
                            id="two-decisions",
                            severity=ERROR,
                            member=last.member,
                            seq=last.seq,
                            event=last.event,
                            evidence=tuple(s.event for s in (*sources, *decision.commits)),
                            text=f"a quorum committed {str(other)[:12]} too at height {decision.height}",
                        )
                    )

    def _release(self, decision: Decision, cut: Cut) -> Recomputed:
        for contribution in (c for published in self._fold.in_cut(cut).values() for c in published):
            answer = self._replay.examine(contribution)
            if isinstance(answer, Reject) and contribution.event not in self._examined:
                self._examined.add(contribution.event)
                self._fault(f"covers-{answer.code}", contribution, answer.text, decision.proposal.event)
        self._exclusions(decision, cut)
        self._copies(decision, cut)
        try:
            model = self._replay.of_cut(decision.charter, cut)
        except Refused as e:
            self.unchecked.append(f"release {cut.number} could not be recomputed: {e}")
            return Recomputed(decision=decision, cut=cut, model=None, matches=None)
        if isinstance(model, Missing):
            gone = self._gone(cut, model)
            if not gone:
                missing = f"{len(model.blobs)} blobs are not here" if model.blobs else "entries are not here"
                self.unchecked.append(f"release {cut.number} could not be recomputed: {missing}")
            return Recomputed(decision=decision, cut=cut, model=None, matches=None, superseded=gone)
        return Recomputed(decision=decision, cut=cut, model=model.digest, matches=matches(cut, model))

    def _gone(self, cut: Cut, missing: Missing) -> bool:
        """Whether everything that is missing was erased on request."""
        published = {c.blob: c.event for by in self._fold.in_cut(cut).values() for c in by}
        return bool(missing.blobs) and all(published.get(blob) in self._erased for blob in missing.blobs)

    def _superseded(self, results: list[Recomputed]) -> list[Recomputed]:
        """A release that lost a blob to an erasure is superseded by a later one that recomputes; else it is unchecked."""
        for place, result in enumerate(results):
            if not result.superseded:
                continue
            if not any(later.model for later in results[place + 1 :]):
                self.unchecked.append(
                    f"release {result.cut.number} can't be recomputed: a contribution in it was erased on request, and no later "
                    "release without it is here"
                )
                continue
            text = f"release {result.cut.number} is superseded, and can't be recomputed: a blob was erased on request"
            self.findings.append(found_at("superseded", result.decision.proposal, text, severity=NOTICE))
        return results

    def _exclusions(self, decision: Decision, cut: Cut) -> None:
        """Whether each blob that was left out for a fault of its own has that fault."""
        claimed = {
            x.event: x.reason
            for x in cut.excluded
            if x.reason not in rules.PROVEN | {rules.COPIED} and x.event not in self._examined
        }
        self._examined |= claimed.keys()
        for contribution in (c for by in self._fold.contributions.values() for c in by if c.event in claimed):
            answer, reason = self._replay.examine(contribution), claimed[contribution.event]
            if answer is None:
                if contribution.event not in self._erased:
                    self.unchecked.append(f"release {cut.number}: the blob left out as {reason!r} is not here")
            elif not (isinstance(answer, Reject) and answer.code == reason):
                what = f"contribution {contribution.number} of {contribution.member[:12]}"
                text = f"release {cut.number} leaves out {what}: {reason}"
                self._fault("exclusion-without-fault", decision, text, contribution.event)

    def _copies(self, decision: Decision, cut: Cut) -> None:
        """Whether what is new in it is nobody else's, and what was left out as a copy is one."""
        past = self._fold.before(decision.height)
        claimed = {e for x in cut.excluded if x.reason == rules.COPIED for e in (x.event, *x.evidence)}
        gone = [c for by in self._fold.contributions.values() for c in by if c.event in claimed - self._compared]
        self._compared |= claimed
        if any(self._replay.examine(c) is None for c in gone):
            if not {c.event for c in gone} <= set(self._erased):
                self.unchecked.append(f"release {cut.number}: a blob left out as a copy, or its original, is not here")
            return
        wrong = copying.wrong(past, self._replay, cut)
        if wrong:
            text = f"release {cut.number} is wrong about copies of other members' contributions: {wrong}"
            self._fault(wrong, decision, text)

    def _damaged(self) -> Iterator[Finding]:
        """Blobs whose file has other bytes than their digest says, at the entries that published them."""
        for contribution in (c for published in self._fold.contributions.values() for c in published):
            self._blobs.read(contribution.blob)
            if contribution.blob in self._blobs.damaged:
                text = f"the file of blob {contribution.blob[:12]} has other bytes than its digest says"
                yield found_at("blob-damaged", contribution.source, text, contribution.blob)


def unconfirmed(observed: Mapping[str, Json] | None) -> Iterator[str]:
    """Feeds whose head an observer could not confirm."""
    feeds = (observed or {}).get("feeds")
    for feed in feeds if isinstance(feeds, list) else []:
        if isinstance(feed, dict) and feed.get("status") not in {None, "confirmed", "ok"}:
            yield f"feed of {str(feed.get('member'))[:12]}: {feed.get('status')}"
