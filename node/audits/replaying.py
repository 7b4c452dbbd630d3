"""Recomputes one release from feeds and blobs, step by step, and writes down what went in and what came out.

    entries verified -> decision by the rules, certificate -> contributions in and out -> registers -> recipe -> model
No torch, network or key; nothing is written. The log is canonical JSON: who repeats it gets the same bytes. Invariant: "clean" is
said only when every register and the model came to the digests that a quorum decided; what cannot be had is "could not check".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from contrib import merging
from ledger import forgetting, rules
from ledger.collective import Collective, Contribution, Decision
from ledger.cuts import Cut
from ledger.store import Store
from node.audits.record import Record, read
from node.audits.releases import Blobs
from node.collective import copying
from node.collective.gate import Reject
from node.collective.releases import find
from node.collective.replay import Missing, Model, Replay
from protocol import canon
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId

VERSION: Final = 1
MAX_LOG: Final = 8 << 20
CLEAN, FINDINGS, UNCHECKED = "clean", "findings", "could-not-check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; `holds` None: it could not be done."""

    name: str
    holds: bool | None
    text: str
    details: tuple[str, ...] = ()


@dataclass(slots=True)
class Replayed:
    """What a replay came to."""

    decision: Decision
    cut: Cut
    log: dict[str, Json]
    steps: list[Step] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`findings` when a step is wrong, else `could-not-check` when one could not be done, else `clean`."""
        holds = [step.holds for step in self.steps]
        return FINDINGS if False in holds else UNCHECKED if None in holds else CLEAN

    def to_json(self) -> dict[str, Json]:
        """The shape of cli/replay.py."""
        return {
            "verdict": self.verdict,
            "release": self.decision.digest,
            "number": self.cut.number,
            "height": self.decision.height,
            "model": self.cut.model,
            "steps": [
                {"step": s.name, "holds": s.holds, "text": s.text, "details": list(s.details)} for s in self.steps
            ],
            "log": self.log,
        }


def run(ledger_db: Path, blob_folder: Path, collective: CollectiveId, name: str) -> Replayed:
    """Recompute the release that `name` means from a folder.

    Raises:
        StoreBroken: there is no ledger to read.
        UnknownRelease: no such release in it.
        BadCharter: the founder's feed is not there.
    """
    with Store.open(ledger_db, writer=False) as store:
        record = read(store, collective, verify=True)
    record.fold.charter  # noqa: B018 - says what is missing before anything is looked for
    decision, cut = find(record.fold, name)
    blobs = Blobs(blob_folder)
    replay_ = Replay(record.fold, blobs.read)
    done = Replayed(decision, cut, log_of(record.fold, decision, cut, None))
    done.steps += [_entries(record), *_decision(record.fold, decision)]
    done.steps += _contributions(record.fold, replay_, decision, cut)
    done.steps += _copies(record.fold, replay_, decision, cut)
    model = _merged(done, record.fold, replay_)
    if model is not None:
        done.log = log_of(record.fold, decision, cut, model)
        done.steps += _compared(cut, model)
    return done


def log_of(fold: Collective, decision: Decision, cut: Cut, model: Model | None) -> dict[str, Json]:
    """The log of a replay; without a model it holds the digests as decided, and says that they were not recomputed."""
    charter, height = decision.charter, cut.place.height
    covered = fold.covered(cut.place, cut.epoch)
    inside = fold.in_cut(cut)
    excluded = {x.event: x for x in cut.excluded}
    registers: list[Json]
    if model is None:
        registers = [[r.member, r.digest] for r in cut.registers]
    else:
        registers = [[m, merging.register_digest(r)] for m, r in sorted(model.registers.items())]
    weights = fold.weights(charter, [r.member for r in cut.registers], height)
    return {
        "v": VERSION,
        "kind": "replay",
        "collective": fold.id,
        "release": decision.digest,
        "number": cut.number,
        "height": height,
        "charter": charter.digest,
        "epoch": cut.epoch,
        "coordinates": charter.adapter.coordinates,
        "recipe": cut.recipe,
        "weights": [[m, w] for m, w in sorted(weights.items())],
        "inputs": [
            [c.event, owner, c.member, c.number, c.blob]
            for c, owner in sorted(_owned(inside), key=lambda pair: pair[0].event)
        ],
        "left_out": [
            [c.event, owner, c.member, c.number, c.blob, excluded[c.event].reason, list(excluded[c.event].evidence)]
            for c, owner in sorted(_owned(covered), key=lambda pair: pair[0].event)
            if c.event in excluded
        ],
        "registers": registers,
        "model": cut.model if model is None else model.digest,
        "recomputed": model is not None,
    }


def log_bytes(log: Json) -> bytes:
    """The one spelling of a log (raises TooLarge beyond 8 MiB)."""
    return canon.encode(log, max_bytes=MAX_LOG)


def gone_by_request(fold: Collective, blobs: Collection[Digest]) -> bool:
    """Whether the authors of all contributions with these blobs asked to forget them: such a blob may be erased."""
    found = {c.blob: c for by in fold.contributions.values() for c in by}
    return bool(blobs) and all(blob in found and _asked(fold, found[blob]) for blob in blobs)


def _asked(fold: Collective, contribution: Contribution) -> bool:
    sources = fold.forgotten.get(contribution.event, ())
    return any(fold.owner(s.member) == fold.owner(contribution.member) for s in sources)


def _owned(by_member: dict[MemberId, list[Contribution]]) -> list[tuple[Contribution, MemberId]]:
    return [(c, owner) for owner, taken in by_member.items() for c in taken]


# -- steps -------------------------------------------------------------------------------------------------------------
def _entries(record: Record) -> Step:
    text = f"{record.entries} entries of {len(record.headers)} feeds: hashes, chain and signatures"
    wrong = tuple(f"{f.member[:12]}, entry {f.seq}: {f.text}" for f in record.faults)
    return Step(name="entries", holds=not wrong, text=text, details=wrong)


def _decision(fold: Collective, decision: Decision) -> Iterator[Step]:
    check = rules.check(fold.before(decision.height), decision.value)
    wrong = check.reason if isinstance(check, rules.Unfit) else ""
    lacking = ", ".join(m[:12] for m in check.feeds) if isinstance(check, rules.Lacking) else ""
    said = f": {wrong}" if wrong else f": entries of {lacking} are not here" if lacking else ""
    holds = None if lacking else not wrong
    yield Step(name="rules", holds=holds, text=f"height {decision.height} decided by the ledger's rules{said}")
    need = decision.charter.quorum
    text = f"{len(decision.commits)} commits, {need} are needed (charter {decision.charter.digest[:12]})"
    names = tuple(f"{decision.charter.name_of(c.member)}: entry {c.seq}" for c in decision.commits)
    yield Step(name="certificate", holds=len(decision.commits) >= need, text=text, details=names)


def _contributions(fold: Collective, replay: Replay, decision: Decision, cut: Cut) -> Iterator[Step]:
    inside = _owned(fold.in_cut(cut))
    said, holds = [], True
    for contribution, owner in inside:
        answer = replay.examine(contribution)
        fault = "its blob is not here" if answer is None else answer.text if isinstance(answer, Reject) else ""
        holds = holds and not isinstance(answer, Reject)
        name = decision.charter.name_of(owner)
        said.append(f"{name}/{contribution.number} {contribution.blob[:12]}" + (f": {fault}" if fault else ""))
    yield Step(name="taken-in", holds=holds, text=f"{len(inside)} contributions taken in", details=tuple(said))
    known = {c.event: c for by in fold.contributions.values() for c in by}
    said, sound = [], True
    for exclusion in cut.excluded:
        left = known.get(exclusion.event)
        name = f"{decision.charter.name_of(left.member)}/{left.number}" if left else exclusion.event[:12]
        why = f", by {exclusion.evidence[0][:12]}" if exclusion.evidence else ""
        shown = exclusion.reason in rules.PROVEN | {rules.COPIED}  # by entries, or by likeness to another blob
        answer = None if left is None or shown else replay.examine(left)
        if answer is not None and not (isinstance(answer, Reject) and answer.code == exclusion.reason):
            sound, why = False, ", but its blob has no such fault"
        said.append(f"{name}: {exclusion.reason}{why}")
    text = f"{len(cut.excluded)} contributions left out"
    yield Step(name="left-out", holds=sound, text=text, details=tuple(said))


def _copies(fold: Collective, replay: Replay, decision: Decision, cut: Cut) -> Iterator[Step]:
    """Whether what was newly left out as a copy is one; nothing where the release claims none."""
    claims = {e for x in cut.excluded if x.reason == rules.COPIED for e in (x.event, *x.evidence)}
    involved = [c for by in fold.contributions.values() for c in by if c.event in claims]
    if not claims:
        return
    if any(replay.examine(c) is None for c in involved):
        yield Step(name="copies", holds=None, text="a blob left out as a copy, or its original, is not here")
        return
    wrong = copying.wrong(fold.before(decision.height), replay, cut)
    yield Step(
        name="copies", holds=not wrong, text=f"left out as copies of others' work{': ' + wrong if wrong else ''}"
    )


def _merged(done: Replayed, fold: Collective, replay: Replay) -> Model | None:
    """The model, or None with the step that says why there is none."""
    try:
        model = replay.of_cut(done.decision.charter, done.cut)
    except Refused as e:
        done.steps.append(Step(name="recipe", holds=None, text=str(e)))
        return None
    if isinstance(model, Missing):
        done.steps.append(Step(name="blobs", holds=None, text=_lost(fold, done.decision, model)))
        return None
    done.steps.append(Step(name="recipe", holds=True, text=f"merged by {done.cut.recipe}"))
    return model


def _lost(fold: Collective, decision: Decision, missing: Missing) -> str:
    if not missing.blobs:
        return "entries that it builds on are not here"
    text = f"{len(missing.blobs)} blobs are not here, first {missing.blobs[0][:12]}"
    if not gone_by_request(fold, missing.blobs):
        return text
    after = forgetting.retired(fold).get(decision.digest)
    instead = f"; release {after.successor_number} was made without" if after else ""
    return f"{text}: erased at the word of their authors{instead}"


def _compared(cut: Cut, model: Model) -> Iterator[Step]:
    made = {m: merging.register_digest(r) for m, r in sorted(model.registers.items())}
    decided = {r.member: r.digest for r in cut.registers}
    rows = tuple(
        f"{m[:12]}: {made.get(m, Digest('none'))[:12]} {'==' if made.get(m) == decided.get(m) else '!='} "
        f"{decided.get(m, Digest('none'))[:12]}"
        for m in sorted(made.keys() | decided.keys())
    )
    yield Step(name="registers", holds=made == decided, text=f"{len(decided)} registers compared", details=rows)
    same = model.digest == cut.model
    text = f"model {model.digest}" if same else f"model {model.digest}, decided was {cut.model}"
    yield Step(name="model", holds=same, text=text)


__all__ = ["Replayed", "Step", "gone_by_request", "log_bytes", "log_of", "run"]
