"""The store of one node's private rows (`rows.db`); what a row is stands in `contrib.row`.

Rows enter through `RowStore.add` and never leave the node: the ledger gets counts and two salted Merkle roots. Contents
are read through `RowStore.rows` alone, and only as far as a permit goes. The store knows nothing of files, tokens or
ledgers. Invariants: one `add` is one transaction, so a refused input leaves nothing; a data set holds each content once
for each way it is filed (tags, subject) and one kind of rows; no content is training material in one data set and held
out in another; reading order is the order of arrival.

Disk: `rows.db` (SQLite, WAL, mode 0600) is written by this package alone and trusted; losing it loses the node's rows
and the salts that open its commitments, nothing that other members need. With a data key its rows are sealed.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, Self, TypeAlias

from sqlite_utils import Database

from contrib import datasets, forgetting, splitting
from contrib.datasets import DatasetSummary, Description, Found
from contrib.errors import (
    BadDatasetName,
    BadRows,
    DatasetExists,
    EmptyDataset,
    MixedKinds,
    NotPermitted,
    SplitConflict,
    UnknownDataset,
)
from contrib.permit import Permit
from contrib.row import MAX_ROW_BYTES, ROLES, Kind, Message, Row, chat_row, pair_row, stored_row, text_row
from contrib.rows_file import connect, forget_deleted, transaction, translated
from contrib.rows_table import CHUNK, RowTable
from contrib.splitting import Part
from contrib.summarising import summarise
from protocol.ids import Digest

__all__ = [
    "HELD_OUT_PPM", "MAX_ROW_BYTES", "ROLES", "DatasetSummary", "Description", "Found", "IfExists", "Kind", "Message",
    "Part", "Permit", "Row", "RowStore", "chat_row", "pair_row", "text_row",
]  # fmt: skip

IfExists: TypeAlias = Literal["refuse", "append", "replace"]

HELD_OUT_PPM: Final = 100_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class RowStore:
    """The rows of one node. One object per thread; opening is cheap. Use `open`, and `close` or a `with` block."""

    def __init__(self, db: Database, table: RowTable, clock: Callable[[], int]) -> None:
        """Wrap an open database; `open` is the way in."""
        self._db = db
        self._table = table
        self._clock = clock

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        key: bytes | None = None,
        read_only: bool = False,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        clock: Callable[[], int] = _now_ms,
    ) -> Self:
        """Open the store at `path`; a writer creates it (mode 0600) when it is missing.

        Args:
            path: the database file.
            key: the 32-byte data key; a new store is sealed when there is one, a plain store stays plain. Without it, a
                sealed store shows its counts and no content.
            read_only: for the worker process; nothing is created or written.
            entropy: where the salts of the commitments and the nonces come from.
            clock: the time in ms, which ends permits and dates rows.

        Raises:
            RowsDamaged: missing (read-only), not a row store, or of another version.
            RowsSealed: sealed with another key.
            RowsBusy: another process holds it for writing.
        """
        db = Database(connect(path, read_only=read_only), execute_plugins=False)
        try:
            with translated(f"open row store {path}"):
                return cls(db, RowTable.open(db, entropy, key, read_only=read_only), clock)
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    @property
    def sealed(self) -> bool:
        """Whether the rows are encrypted at rest."""
        return self._table.sealed

    # -- writing -----------------------------------------------------------------------------------------------------
    def add(
        self,
        dataset: str,
        rows: Iterable[Row],
        held_out_ppm: int | None = None,
        *,
        if_exists: IfExists = "refuse",
        description: Description | None = None,
    ) -> DatasetSummary:
        """Store `rows` under the name `dataset`, all or none, and return the summary of the whole data set.

        Args:
            dataset: letters, digits, `.`, `_`, `-`; at most 64.
            rows: consumed once; an error raised by it undoes everything.
            held_out_ppm: share of split keys to hold out; default 100,000, or the data set's own when appending.
            if_exists: what to do when the name is taken.
            description: what the owner declares; default what was declared before.

        Raises:
            BadDatasetName, DatasetExists, EmptyDataset, MixedKinds, SplitConflict: see `contrib.errors`.
            RowsSealed: the store is sealed and was opened without its key.
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
            declared = description or (before.description if before else Description())
            if before and if_exists == "replace":
                self._delete(dataset)
                before = None
            share = _share(dataset, before, held_out_ppm)
            duplicates = self._insert(dataset, rows, share, before.kind if before else None)
            self._refuse_straddling(dataset)
            duplicates += before.duplicates if before else 0
            summary = summarise(self._db, self._table, dataset, declared, share=share, duplicates=duplicates)
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

    def find(
        self,
        dataset: str,
        *,
        digest: Digest | None = None,
        subject: str | None = None,
        before_ms: int | None = None,
    ) -> Found:
        """The rows with this content digest, about this subject, or that came before a time, and what commits to them.

        Raises:
            UnknownDataset: no such data set.
            RowsSealed: the store is sealed and its key is not here.
        """
        self.summary(dataset)
        with translated(f"search data set {dataset!r}"):
            stored = None if digest is None else self._table.digest(digest)
            about = None if subject is None else self._table.subject(subject)
            return forgetting.find(self._db, dataset, digest=stored, subject=about, before_ms=before_ms)

    def forget(self, dataset: str, ids: Iterable[int]) -> DatasetSummary:
        """Delete these rows with their salts (those that are still there) and return the summary of what remains.

        The commitment changes; the database is written anew, so that no page keeps a byte of them.

        Raises:
            UnknownDataset: no such data set.
            RowsBusy: a reader keeps the old bytes alive; forget again when it has ended.
        """
        with translated(f"forget rows of {dataset!r}"):
            with transaction(self._db.conn):
                before = self.summary(dataset)
                forgetting.delete(self._db, dataset, ids)
                summary = summarise(
                    self._db,
                    self._table,
                    dataset,
                    before.description,
                    share=before.held_out_ppm,
                    duplicates=before.duplicates,
                    kind=before.kind,
                )
                self._save(summary)
            forget_deleted(self._db.conn, rewrite=True)
        return summary

    def seal(self, key: bytes) -> int:
        """Seal a plain store with this data key and overwrite the plain bytes; returns how many rows it holds.

        Done again on a store that this key sealed, it only overwrites once more.

        Raises:
            RowsSealed: it was sealed with another key.
            RowsBusy: a reader keeps the plain bytes alive; seal again when it has ended.
        """
        with translated("seal rows"):
            if not self.sealed:
                with transaction(self._db.conn):
                    sealed = self._table.seal(key)
                self._table = sealed
            forget_deleted(self._db.conn, rewrite=True)
            return int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])

    # -- reading -----------------------------------------------------------------------------------------------------
    def datasets(self) -> list[DatasetSummary]:
        """The summaries of all data sets, by name."""
        with translated("list data sets"):
            names = [row[0] for row in self._db.execute("SELECT name FROM datasets ORDER BY name")]
            return [found for name in names if (found := self._find(name)) is not None]

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
        self,
        dataset: str,
        part: Part = "train",
        *,
        permit: Permit | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> list[Row]:
        """What the permit shows of one part: in order of arrival, or shuffled by `seed`; the first `limit` of that order.

        Rows whose tags it does not cover do not exist for the caller; the others are restricted to its columns, and
        dropped when nothing to learn is left of them. Tags and subjects are never shown.
        Law: equal stores, equal arguments, equal lists; a smaller `limit` gives a prefix of a larger one.

        Raises:
            NotPermitted: no permit, or one for another data set, action or time.
            UnknownDataset: no such data set.
            RowsSealed: the store is sealed and its key is not here.
        """
        wanted, allowed = self._covered(dataset, part, permit)
        if seed is not None:
            random.Random(seed).shuffle(wanted)  # noqa: S311 - repeatable on purpose
        found: list[Row] = []
        most = len(wanted) if limit is None else max(limit, 0)
        with translated(f"read data set {dataset!r}"):
            for _, content in self._table.contents(dataset, wanted[:most] if allowed.columns is None else wanted):
                if len(found) >= most:
                    break
                shown = allowed.shown(stored_row(content))
                if shown is not None:
                    found.append(shown)
        return found

    def count(self, dataset: str, part: Part = "train", *, permit: Permit | None = None) -> int:
        """How many rows of one part carry tags that the permit covers. Raises as `rows`."""
        return len(self._covered(dataset, part, permit)[0])

    def _covered(self, dataset: str, part: Part, permit: Permit | None) -> tuple[list[int], Permit]:
        self.summary(dataset)
        if permit is None:
            raise NotPermitted(
                f"couldn't read data set {dataset!r}: no permit was given; rows are read under a grant only"
            )
        permit.check(dataset, part, self._clock())
        with translated(f"read data set {dataset!r}"):
            if not (permit.tags_all or permit.tags_none):
                return self._table.ids(dataset, part), permit
            return [number for number, tags in self._table.tagged(dataset, part) if permit.covers(tags)], permit

    def _find(self, dataset: str) -> DatasetSummary | None:
        found = next(iter(self._db.query("SELECT * FROM datasets WHERE name = ?", [dataset])), None)
        if found is None:
            return None
        return datasets.summary_of(found, self._table.labels(dataset, found["labels"]), sealed=self._table.sealed)

    def _delete(self, dataset: str) -> None:
        self._db.execute("DELETE FROM rows WHERE dataset = ?", [dataset])
        self._db.execute("DELETE FROM datasets WHERE name = ?", [dataset])

    def _insert(self, dataset: str, rows: Iterable[Row], share: int, kind: Kind | None) -> int:
        taken, held = 0, self._held(dataset)

        def drawn() -> Iterator[tuple[Row, Part]]:
            nonlocal taken, kind
            for taken, row in enumerate(rows, 1):
                kind = kind or row.kind
                if row.kind != kind:
                    raise MixedKinds(
                        f"couldn't add row {taken}: it is a {row.kind} row, the data set holds {kind} rows;"
                        " use one data set for each kind"
                    )
                yield row, splitting.part_of(row.split_key(), share)

        records = self._table.records(dataset, drawn(), self._clock())
        self._db.table("rows").insert_all(records, ignore=True, batch_size=CHUNK)
        if not taken:
            raise EmptyDataset(f"couldn't add data set {dataset!r}: there are no rows in the input")
        return taken - (self._held(dataset) - held)

    def _held(self, dataset: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM rows WHERE dataset = ?", [dataset]).fetchone()[0])

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

    def _save(self, summary: DatasetSummary) -> None:
        labels = self._table.stored_labels(summary.name, summary.labels)
        self._db.table("datasets").insert(datasets.record_of(summary, labels), replace=True)
        forgetting.remember(self._db, summary)


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
