"""The audit of everything a directory holds: integrity of feeds, what the fold flagged, and every release recomputed.

Composes `ledger.audit` with `node.replay`; imports neither torch nor a network library. Trusts signatures and hashes only.
A release whose blobs or entries are not all here is "could not check", never clean; a head that only one node confirmed
(an observer says so) likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ledger import audit, rules
from ledger.collective import Collective, Decision
from ledger.cuts import Amendment, Cut
from ledger.store import Store
from node.blobs import BlobStore
from node.gate import Reject
from node.replay import Missing, Replay, matches
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest

_MAX_BLOB = 1 << 30


def run(ledger_db: Path, blob_folder: Path, collective: CollectiveId, observed: Mapping[str, Json] | None) -> Json:
    """Audit one collective in a directory; `observed` is what an observer said about unconfirmed heads."""
    with Store.open(ledger_db, writer=False) as store:
        findings: list[dict[str, Json]] = [
            _finding(f.code, "notice" if f.code in audit.NOTICES else "fault", f.member, f.seq, f.event, f.text)
            for f in audit.integrity(store, collective)
        ]
        fold = Collective(collective)
        try:
            for member in store.members(collective):
                while page := store.records(collective, member, fold.sizes.get(member, 0)):
                    fold.apply_all(page)
        except Refused as e:
            findings.append(_finding(e.code, "fault", None, None, None, str(e)))
        heads = store.heads(collective)
    findings += _flagged(fold)
    unchecked: list[str] = []
    releases: list[Json] = []
    if fold.known:
        replay = Replay(fold, _reader(BlobStore(blob_folder)))
        for decision in fold.decisions:
            findings += _check_decision(fold, decision)
            if isinstance(decision.value, Cut):
                releases.append(_check_release(fold, replay, decision, findings, unchecked))
    else:
        unchecked.append("the founder's feed with the charter is not here")
    unchecked += _unconfirmed(observed)
    faults = [f for f in findings if f["severity"] == "fault"]
    return {
        "verdict": "findings" if faults else "could-not-check" if unchecked else "clean",
        "collective": collective,
        "feeds": [
            {
                "member": h.member,
                "name": fold.charter.name_of(h.member) if fold.known else "",
                "size": h.size,
                "root": h.root,
            }
            for h in heads
        ],
        "releases": releases,
        "findings": [dict(f) for f in findings],
        "unchecked": list(unchecked),
    }


def _finding(
    code: str, severity: str, member: str | None, seq: int | None, event: str | None, text: str
) -> dict[str, Json]:
    return {"code": code, "severity": severity, "member": member, "seq": seq, "event": event, "text": text}


def _flagged(fold: Collective) -> list[dict[str, Json]]:
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


def _check_decision(fold: Collective, decision: Decision) -> list[dict[str, Json]]:
    """The ledger's own rules for a decision, against the state just before it."""
    past = fold.before(decision.height)
    check = rules.check(past, decision.value)
    if isinstance(check, rules.Fits):
        return []
    reason = check.reason if isinstance(check, rules.Unfit) else "entries it builds on are missing"
    code = "bad-decision" if isinstance(check, rules.Unfit) else "decision-unfounded"
    text = f"decision {decision.height} was committed by a quorum and breaks a rule: {reason}"
    kind = "amendment" if isinstance(decision.value, Amendment) else "release"
    source = decision.proposal
    return [_finding(code, "fault", source.member, source.seq, source.event, f"{kind}: {text}")]


def _check_release(
    fold: Collective, replay: Replay, decision: Decision, findings: list[dict[str, Json]], unchecked: list[str]
) -> dict[str, Json]:
    cut = decision.value
    if not isinstance(cut, Cut):
        raise TypeError("only release cuts are recomputed")
    result: dict[str, Json] = {
        "height": decision.height,
        "number": cut.number,
        "digest": decision.digest,
        "model": cut.model,
    }
    source = decision.proposal
    for contribution in (c for published in fold.in_cut(cut).values() for c in published):
        answer = replay.examine(contribution)
        if isinstance(answer, Reject):
            at = contribution.source
            findings.append(_finding(f"covers-{answer.code}", "fault", at.member, at.seq, at.event, answer.text))
    model = replay.of_cut(decision.charter, cut)
    if isinstance(model, Missing):
        missing = f"{len(model.blobs)} blobs are not here" if model.blobs else "entries are not here"
        unchecked.append(f"release {cut.number} could not be recomputed: {missing}")
        return {**result, "recomputed": False, "matches": None}
    same = matches(cut, model)
    if not same:
        text = (
            f"release {cut.number} recomputes to model {model.digest[:12]}, not to what was signed ({cut.model[:12]})"
        )
        findings.append(_finding("release-mismatch", "fault", source.member, source.seq, source.event, text))
    return {**result, "recomputed": True, "matches": same}


def _unconfirmed(observed: Mapping[str, Json] | None) -> list[str]:
    feeds = (observed or {}).get("feeds")
    found = []
    for feed in feeds if isinstance(feeds, list) else []:
        if isinstance(feed, dict) and feed.get("status") not in {None, "confirmed", "ok"}:
            found.append(f"feed of {str(feed.get('member'))[:12]}: {feed.get('status')}")
    return found


def _reader(blobs: BlobStore) -> Callable[[Digest], bytes | None]:
    def read(digest: Digest) -> bytes | None:
        return blobs.read(digest, _MAX_BLOB) if blobs.has(digest) else None

    return read
