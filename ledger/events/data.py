"""Events about private data: commitments to its rows, and every access to them.

Values and their strict readers only. No event names a row, a person or a value of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.events.fields import Readers, code, hex_, integer, text
from protocol.canon import Json
from protocol.ids import Digest, EventId


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCommitted:
    """Commits to both parts of a private data set without revealing a row: RFC 6962 roots over salted rows."""

    TYPE: ClassVar[str] = "data.committed"
    dataset: str
    train_rows: int
    held_out_rows: int
    train_root: Digest
    held_out_root: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "dataset": self.dataset,
            "train_rows": self.train_rows,
            "held_out_rows": self.held_out_rows,
            "train_root": self.train_root,
            "held_out_root": self.held_out_root,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUsed:
    """One access to private rows: which committed part, what for, in which run, by which decision."""

    TYPE: ClassVar[str] = "data.used"
    dataset: str
    root: Digest
    rows: int
    action: str
    purpose: str
    run: str
    decision: EventId

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "dataset": self.dataset,
            "root": self.root,
            "rows": self.rows,
            "action": self.action,
            "purpose": self.purpose,
            "run": self.run,
            "decision": self.decision,
        }


READERS: Final[Readers] = {
    DataCommitted.TYPE: (
        {"dataset", "train_rows", "held_out_rows", "train_root", "held_out_root"},
        lambda b: DataCommitted(
            dataset=text(b, "dataset"),
            train_rows=integer(b, "train_rows"),
            held_out_rows=integer(b, "held_out_rows"),
            train_root=hex_(b, "train_root"),
            held_out_root=hex_(b, "held_out_root"),
        ),
    ),
    DataUsed.TYPE: (
        {"dataset", "root", "rows", "action", "purpose", "run", "decision"},
        lambda b: DataUsed(
            dataset=text(b, "dataset"),
            root=hex_(b, "root"),
            rows=integer(b, "rows"),
            action=code(b["action"], "action"),
            purpose=code(b["purpose"], "purpose"),
            run=text(b, "run"),
            decision=EventId(hex_(b, "decision")),
        ),
    ),
}
