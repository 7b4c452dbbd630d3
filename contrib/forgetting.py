"""Which rows are to be forgotten, which commitments stood over them, and their deletion from the tables of `rows.db`.

Knows no ledger and no file. The history of commitments holds salted roots and row numbers alone, so it outlives the rows
it speaks of. Law: after `delete(ids)`, `find` of the same gives nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlite_utils import Database

from contrib.datasets import DatasetSummary, Found
from protocol.ids import Digest


def find(
    db: Database,
    dataset: str,
    *,
    digest: str | None = None,
    subject: str | None = None,
    before_ms: int | None = None,
) -> Found:
    """The rows that meet every given condition (as stored); nothing without a condition."""
    if digest is None and subject is None and before_ms is None:
        return Found(ids=(), train_rows=0, held_out_rows=0, roots=frozenset())
    rows = db.execute(
        "SELECT id, part, added_ms FROM rows WHERE dataset = ?1 AND (?2 IS NULL OR digest = ?2) AND (?3 IS NULL OR subject = ?3)"
        " AND (?4 IS NULL OR added_ms < ?4) ORDER BY id",
        [dataset, digest, subject, before_ms],
    ).fetchall()
    parts = {part: [number for number, of, _ in rows if of == part] for part in ("train", "held_out")}
    roots: set[Digest] = set()
    for part, numbers in parts.items():
        if numbers:
            column = {"train": "train_root", "held_out": "held_out_root"}[part]
            query = f"SELECT {column} FROM history WHERE dataset = ? AND last_id >= ?"  # noqa: S608 - a fixed name
            roots |= {Digest(found[0]) for found in db.execute(query, [dataset, numbers[0]])}
    return Found(
        ids=tuple(number for number, _, _ in rows),
        train_rows=len(parts["train"]),
        held_out_rows=len(parts["held_out"]),
        roots=None if any(added is None for _, _, added in rows) else frozenset(roots),
    )


def delete(db: Database, dataset: str, ids: Iterable[int]) -> None:
    """Delete rows with their salts, inside the caller's transaction; those that are gone already are no error."""
    wanted = json.dumps(list(ids))
    db.execute("DELETE FROM rows WHERE dataset = ? AND id IN (SELECT value FROM json_each(?))", [dataset, wanted])


def remember(db: Database, summary: DatasetSummary) -> None:
    """Note which rows stand behind the present commitment of a data set."""
    last = db.execute("SELECT coalesce(max(id), 0) FROM rows WHERE dataset = ?", [summary.name]).fetchone()[0]
    record = {"train_root": summary.train_root, "held_out_root": summary.held_out_root, "last_id": last}
    db.table("history").insert({"dataset": summary.name, **record})
