"""The store of one node's private rows (`rows.db`); what a row is stands in `contrib.row`.

Rows enter through `RowStore.add` and never leave the node: the ledger gets counts and two salted Merkle roots. The
store knows nothing of files, tokens or ledgers. Invariants: one `add` is one transaction, so a refused input leaves
nothing; a data set holds each content once and one kind of rows; no content is training material in one data set and
held out in another; reading order is the order of arrival.

Disk: `rows.db` (SQLite, WAL, mode 0600) is written by this module alone and trusted; losing it loses the node's rows
and the salts that open its commitments, nothing that other members need.
"""

from __future__ import annotations

import json
import random
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from sqlite_utils import Database

from contrib import splitting
from contrib.errors import (
    BadDatasetName,
    BadRows,
    DatasetExists,
    EmptyDataset,
    MixedKinds,
    SplitConflict,
    UnknownDataset,
)
from contrib.row import MAX_ROW_BYTES, ROLES, Kind, Message, Row, chat_row, pair_row, stored_row, text_row
from contrib.rows_file import connect, forget_deleted, transaction, translated
from contrib.splitting import Part
from protocol.ids import Digest
from protocol.merkle import Frontier

__all__ = [
    "HELD_OUT_PPM", "MAX_ROW_BYTES", "ROLES", "DatasetSummary", "IfExists", "Kind", "Message", "Part", "Row",
    "RowStore", "chat_row", "pair_row", "text_row",
]  # fmt: skip

IfExists: TypeAlias = Literal["refuse", "append", "replace"]

HELD_OUT_PPM: Final = 100_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What may be said about a data set without showing a row; the roots commit to both parts."""

    name: str
    kind: Kind
    held_out_ppm: int
    train_rows: int
    held_out_rows: int
    duplicates: int  # rows that were dropped because their content was there already
    characters: int
    train_root: Digest
    held_out_root: Digest
    labels: tuple[str, ...] | None  # private: the answers, when they look like labels


class RowStore:
    """The rows of one node. One object per thread; opening is cheap. Use `open`, and `close` or a `with` block."""

    def __init__(self, db: Database, entropy: Callable[[int], bytes]) -> None:
        """Wrap an open database; `open` is the way in."""
        self._db = db
        self._entropy = entropy

    @classmethod
    def open(
        cls, path: Path, *, read_only: bool = False, entropy: Callable[[int], bytes] = secrets.token_bytes
    ) -> Self:
        """Open the store at `path`; a writer creates it (mode 0600) when it is missing.

        Args:
            path: the database file.
            read_only: for the worker process; nothing is created or written.
            entropy: where the salts of the commitments come from.

        Raises:
            RowsDamaged: missing (read-only), not a row store, or of a newer version.
            RowsBusy: another process holds it for writing.
        """
        return cls(Database(connect(path, read_only=read_only), execute_plugins=False), entropy)

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def add(
        self,
        dataset: str,
        rows: Iterable[Row],
        held_out_ppm: int | None = None,
        *,
        if_exists: IfExists = "refuse",
    ) -> DatasetSummary:
        """Store `rows` under the name `dataset`, all or none, and return the summary of the whole data set.

        Args:
            dataset: letters, digits, `.`, `_`, `-`; at most 64.
            rows: consumed once; an error raised by it undoes everything.
            held_out_ppm: share of split keys to hold out; default 100,000, or the data set's own when appending.
            if_exists: what to do when the name is taken.

        Raises:
            BadDatasetName, DatasetExists, EmptyDataset, MixedKinds, SplitConflict: see `contrib.errors`.
            RowsBusy, RowsFull: nothing was stored; try again.
        """
        if not _NAME.match(dataset):
            raise BadDatasetName(
                f"couldn't add data set {dataset[:80]!r}: a name has 1 to 64 letters, digits, '.', '_' or '-'"
            )
        with translated(f"add data set {dataset!r}"), transaction(self._db.conn):
            before = self._find(dataset)
            if before and if_exists == "refuse":
                raise DatasetExists(
                    f"couldn't add data set {dataset!r}: the name is taken; append to it, replace it, or choose another"
                )
            if before and if_exists == "replace":
                self._delete(dataset)
                before = None
            share = _share(dataset, before, held_out_ppm)
            duplicates = self._insert(dataset, rows, share, before.kind if before else None)
            self._refuse_straddling(dataset)
            summary = self._summarise(dataset, share, duplicates + (before.duplicates if before else 0))
            self._save(summary)
        if if_exists == "replace":
            forget_deleted(self._db.conn)
        return summary

    def remove(self, dataset: str) -> None:
        """Delete a data set with its rows and salts; the bytes are overwritten in the database file.

        Raises:
            UnknownDataset: no such data set.
        """
        with translated(f"remove data set {dataset!r}"):
            with transaction(self._db.conn):
                self.summary(dataset)
                self._delete(dataset)
            forget_deleted(self._db.conn)

    def datasets(self) -> list[DatasetSummary]:
        """The summaries of all data sets, by name."""
        with translated("list data sets"):
            found = self._db.query("SELECT * FROM datasets ORDER BY name")
            return [_summary_of(record) for record in found]

    def summary(self, dataset: str) -> DatasetSummary:
        """The summary of one data set.

        Raises:
            UnknownDataset: no such data set.
        """
        with translated(f"find data set {dataset!r}"):
            found = self._find(dataset)
        if found is None:
            raise UnknownDataset(f"couldn't find data set {dataset!r}: this node has no data set of that name")
        return found

    def rows(
        self, dataset: str, part: Part = "train", *, limit: int | None = None, seed: int | None = None
    ) -> list[Row]:
        """The rows of one part: in order of arrival, or shuffled by `seed`; the first `limit` of that order.

        Law: equal stores, equal arguments, equal lists; a smaller `limit` gives a prefix of a larger one.

        Raises:
            UnknownDataset: no such data set.
        """
        self.summary(dataset)
        with translated(f"read data set {dataset!r}"):
            cursor = self._db.execute("SELECT id FROM rows WHERE dataset = ? AND part = ? ORDER BY id", [dataset, part])
            ids: list[int] = [row[0] for row in cursor]
            if seed is not None:
                random.Random(seed).shuffle(ids)  # noqa: S311 - repeatable on purpose
            wanted = ids if limit is None else ids[: max(limit, 0)]
            return [stored_row(content) for chunk in _chunks(wanted) for content in self._contents(chunk)]

    def _contents(self, ids: list[int]) -> Iterator[bytes]:
        query = "SELECT id, content FROM rows WHERE id IN (SELECT value FROM json_each(?))"
        found: dict[int, bytes] = dict(self._db.execute(query, [json.dumps(ids)]))
        return (found[i] for i in ids)

    def _find(self, dataset: str) -> DatasetSummary | None:
        found = self._db.query("SELECT * FROM datasets WHERE name = ?", [dataset])
        return next((_summary_of(record) for record in found), None)

    def _delete(self, dataset: str) -> None:
        self._db.execute("DELETE FROM rows WHERE dataset = ?", [dataset])
        self._db.execute("DELETE FROM datasets WHERE name = ?", [dataset])

    def _insert(self, dataset: str, rows: Iterable[Row], share: int, kind: Kind | None) -> int:
        taken, written = 0, self._db.conn.total_changes

        def records() -> Iterator[dict[str, str | bytes]]:
            nonlocal taken, kind
            for taken, row in enumerate(rows, 1):
                kind = kind or row.kind
                if row.kind != kind:
                    raise MixedKinds(
                        f"couldn't add row {taken}: it is a {row.kind} row, the data set holds {kind} rows;"
                        " use one data set for each kind"
                    )
                key = row.split_key()
                yield {
                    "dataset": dataset,
                    "part": splitting.part_of(key, share),
                    "digest": row.digest(),
                    "split_key": key,
                    "salt": self._entropy(splitting.SALT_BYTES),
                    "content": row.canonical(),
                }

        self._db.table("rows").insert_all(records(), ignore=True, batch_size=_CHUNK)
        if not taken:
            raise EmptyDataset(f"couldn't add data set {dataset!r}: there are no rows in the input")
        return taken - (self._db.conn.total_changes - written)

    def _refuse_straddling(self, dataset: str) -> None:
        found = self._db.execute(
            "SELECT b.dataset FROM rows a JOIN rows b ON a.split_key = b.split_key AND a.part <> b.part"
            " WHERE a.dataset = ? LIMIT 1",
            [dataset],
        ).fetchone()
        if found:
            raise SplitConflict(
                f"couldn't add data set {dataset!r}: some rows stand in {found[0]!r} on the other side of the split;"
                " use the same held-out share"
            )

    def _summarise(self, dataset: str, share: int, duplicates: int) -> DatasetSummary:
        trees: dict[str, Frontier] = {"train": Frontier(), "held_out": Frontier()}
        answers: Counter[str] = Counter()
        characters = 0
        kind: Kind = "text"
        cursor = self._db.execute("SELECT part, salt, content FROM rows WHERE dataset = ? ORDER BY id", [dataset])
        for part, salt, content in cursor:
            row = stored_row(content)
            trees[part].append(splitting.commitment_leaf(salt, content))
            characters += row.characters()
            kind = row.kind
            if (answer := row.answer()) is not None and len(answers) <= splitting.MAX_LABELS:
                answers[answer] += 1
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
            labels=splitting.labels_of(answers),
        )

    def _save(self, summary: DatasetSummary) -> None:
        record = {field: getattr(summary, field) for field in DatasetSummary.__slots__}
        record["labels"] = None if summary.labels is None else json.dumps(summary.labels)
        self._db.table("datasets").insert(record, replace=True)


def _share(dataset: str, before: DatasetSummary | None, wanted: int | None) -> int:
    if wanted is not None and not 0 <= wanted <= splitting.WHOLE:
        raise BadRows(
            f"couldn't add data set {dataset!r}: the held-out share is 0 to {splitting.WHOLE} parts per million"
        )
    if before is None:
        return HELD_OUT_PPM if wanted is None else wanted
    if wanted not in (None, before.held_out_ppm):
        raise SplitConflict(
            f"couldn't append to data set {dataset!r}: its held-out share is {before.held_out_ppm} parts per million"
        )
    return before.held_out_ppm


def _summary_of(record: dict[str, Any]) -> DatasetSummary:
    labels = record.pop("labels")
    return DatasetSummary(**record, labels=None if labels is None else tuple(json.loads(labels)))


def _chunks(ids: list[int]) -> Iterator[list[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))
