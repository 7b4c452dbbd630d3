"""Counts, commitments and labels of a data set, as they follow from its rows in `rows.db`.

Knows no file and no ledger. Law: the summary depends on the stored rows alone, so what was forgotten is in no part of it.
"""

from __future__ import annotations

from collections import Counter

from sqlite_utils import Database

from contrib import splitting
from contrib.datasets import DatasetSummary, Description
from contrib.row import Kind, stored_row
from contrib.rows_table import RowTable
from protocol.ids import Digest
from protocol.merkle import Frontier


def summarise(
    db: Database,
    table: RowTable,
    dataset: str,
    description: Description,
    *,
    share: int,
    duplicates: int,
    kind: Kind = "text",
) -> DatasetSummary:
    """The summary of the rows that are there now; `kind` when there are none."""
    trees: dict[str, Frontier] = {"train": Frontier(), "held_out": Frontier()}
    answers: Counter[str] = Counter()
    columns: set[str] = set()
    characters = 0
    stored = db.execute("SELECT id, part FROM rows WHERE dataset = ? ORDER BY id", [dataset]).fetchall()
    contents = table.contents(dataset, [number for number, _ in stored])
    for (_, part), (salt, content) in zip(stored, contents, strict=True):
        row = stored_row(content)
        trees[part].append(splitting.commitment_leaf(salt, content))
        characters += row.characters()
        columns.update(row.columns())
        kind = row.kind
        if (answer := row.answer()) is not None and len(answers) <= splitting.MAX_LABELS:
            answers[answer] += 1
    oldest = db.execute("SELECT min(added_ms) FROM rows WHERE dataset = ?", [dataset]).fetchone()[0]
    return DatasetSummary(
        name=dataset,
        kind=kind,
        held_out_ppm=share,
        train_rows=trees["train"].size,
        held_out_rows=trees["held_out"].size,
        duplicates=duplicates,
        characters=characters,
        train_root=Digest(trees["train"].root().hex()),
        held_out_root=Digest(trees["held_out"].root().hex()),
        columns=tuple(sorted(columns)),
        labels=splitting.labels_of(answers),
        oldest_ms=oldest,
        sealed=table.sealed,
        description=description,
    )
