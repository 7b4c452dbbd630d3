"""What an audit reports: one shape for a finding of any kind, its sentence for people and what to do about it.

Knows no store and no rule. Invariant: only an error makes a verdict "findings" (with `strict` a warning does too), and
nothing that could not be checked is ever called clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ledger import audit
from ledger.compliance import findings as compliance
from ledger.tally import Source
from protocol.canon import Json

ERROR: Final = "error"
WARNING: Final = "warning"
NOTICE: Final = "notice"
SEVERITIES: Final = (ERROR, WARNING, NOTICE)

_TAMPERED: Final = (
    "The stored record was changed, or was never what it says. "
    "Fetch this member's feed from two other members and compare."
)
_LIED: Final = (
    "The member signed statements that contradict each other. Keep this copy: it is the proof. "
    "Decide between people whether it keeps its seat."
)
_ADVICE: Final = {
    "fork": _LIED,
    "double-vote": _LIED,
    "seen-branch": _LIED,
    "witness-contradicts": _LIED,
    "two-decisions": "More members lied than the charter allows for. Stop, and settle it between people.",
    "bad-decision": "Do not use this decision. Ask those who voted for it; decide again.",
    "blob-damaged": "Delete the file; the node fetches it again from a member that has it.",
    "exclusion-without-fault": "A contribution was left out for a reason that is not so. Ask the proposer; decide again.",
    "covers-copied": "A contribution repeats another member's. Ask its author; decide again without it.",
    "body-missing": "Ask the member, or another one that holds its feed, for the content of the entry.",
    "body-erased": "Nothing: this content was erased on request, and the entry shows that it had been there.",
    "unknown-type": "This version does not know what these entries say. Use a newer one to be sure.",
    "seen-missing": "Fetch the feed again: somebody has seen more of it than is here.",
    "superseded": "Nothing: use the later release.",
    "seen-backwards": "Ask the member: its node forgot what it had seen, or it hides something.",
    "seen-stranger": "Ask the member whose feed that is.",
    "seen-later": "Check the clock of that node: it dates its entries back.",
    "ts-backwards": "Check the clock of that node.",
    "ts-future": "Check the clock of that node.",
    "time-in-the-future": "Check the clock of that node.",
    "withheld": "Ask the member, or another one that holds its feed, for the content of the entry.",
    "untrusted-entry": "Written with a key that its owner had given up; it counts for nothing.",
    "secret-in-feed": "Whoever read the feed has it: withdraw this key or token now.",
    "personal-data": "Text that may name a person stands in a record that everybody keeps. Ask the member.",
    "salt-reused": "Its content can be guessed by trying. The node that wrote it has no good source of randomness: stop it.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding: `id` names the rule ("C4") or the check ("bad-chain"), `case` how a rule was broken."""

    id: str
    severity: str
    text: str
    member: str | None = None
    seq: int | None = None
    event: str | None = None
    case: str | None = None
    evidence: tuple[str, ...] = ()
    advice: str = ""

    def to_json(self) -> dict[str, Json]:
        """The shape of cli/render.py."""
        return {
            "id": self.id,
            "case": self.case,
            "severity": self.severity,
            "member": self.member,
            "seq": self.seq,
            "event": self.event,
            "evidence": list(self.evidence or ((self.event,) if self.event else ())),
            "text": self.text,
            "advice": self.advice or _ADVICE.get(self.id, "" if self.severity == NOTICE else _TAMPERED),
        }


def found_at(id_: str, source: Source, text: str, *evidence: str, severity: str = ERROR) -> Finding:
    """A finding at the entry that `source` names; further evidence stands behind it."""
    return Finding(
        id=id_,
        severity=severity,
        member=source.member,
        seq=source.seq,
        event=source.event,
        evidence=(source.event, *evidence),
        text=text,
    )


def of_integrity(found: audit.Finding, leaf: str | None) -> Finding:
    """What the check of bytes and signatures found; `leaf` names an entry whose event cannot be read."""
    return Finding(
        id=found.code,
        severity=NOTICE if found.code in audit.NOTICES else ERROR,
        member=found.member,
        seq=found.seq,
        event=found.event,
        evidence=tuple(e for e in (found.event, leaf) if e),
        text=found.text,
    )


def of_rule(found: compliance.Finding) -> Finding:
    """What a compliance rule found."""
    return Finding(
        id=found.rule.id,
        case=found.case,
        severity=found.severity,
        member=found.member,
        seq=found.seq,
        event=found.event,
        evidence=found.evidence,
        text=found.text,
        advice=found.rule.advice,
    )


def verdict(findings: Iterable[Finding], unchecked: Sequence[str], *, strict: bool) -> str:
    """`findings`, `could-not-check` or `clean`, the first that applies."""
    grave = {ERROR, WARNING} if strict else {ERROR}
    if any(f.severity in grave for f in findings):
        return "findings"
    return "could-not-check" if unchecked else "clean"
