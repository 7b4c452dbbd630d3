"""What may be said about a data set without showing a row: its counts and commitments, and what its owner declares.

Values only, and how they lie in a table of `rows.db`. Invariant: nothing here names a row or a subject; the declared tags
are those that the owner chose to declare, the tags of single rows stay in the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from contrib.row import Kind
from protocol.ids import Digest

PURPOSE: Final = "model-improvement"  # what a data set is for unless its owner says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the owner declares about a data set; it goes into the ledger, so no field may name a person."""

    tags: tuple[str, ...] = ()
    purposes: tuple[str, ...] = (PURPOSE,)
    retention_days: int | None = None
    licence: str = ""
    basis: str = ""  # the legal basis, in the owner's words
    grant: bool = True  # whether this node grants itself all actions


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
    columns: tuple[str, ...]  # the columns that some row fills, ascending
    labels: tuple[str, ...] | None  # private: the answers, when they look like labels
    oldest_ms: int | None = None  # when the oldest row came, if that is known
    sealed: bool = False  # whether its rows are encrypted at rest
    description: Description = field(default_factory=Description)

    def overdue(self, now_ms: int) -> bool:
        """Whether some row is older than the declared retention; a row whose age is not known counts as new."""
        days = self.description.retention_days
        return days is not None and self.oldest_ms is not None and now_ms - self.oldest_ms > days * 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows that are to be forgotten, and the commitments that they stood behind."""

    ids: tuple[int, ...]
    train_rows: int
    held_out_rows: int
    roots: frozenset[Digest] | None  # None: it is not known when the rows came, so any commitment may be one


def record_of(summary: DatasetSummary, labels: bytes | None) -> dict[str, Any]:
    """The table row of a summary; `labels` as they are stored."""
    record = {name: getattr(summary, name) for name in DatasetSummary.__slots__ if name != "sealed"}
    description = json.dumps(asdict(summary.description))
    return {**record, "columns": " ".join(summary.columns), "labels": labels, "description": description}


def summary_of(record: Mapping[str, Any], labels: tuple[str, ...] | None, *, sealed: bool) -> DatasetSummary:
    """The summary in a table row."""
    described = record["description"]
    return DatasetSummary(
        **{
            **record,
            "columns": tuple(record["columns"].split()),
            "labels": labels,
            "sealed": sealed,
            "description": _description(json.loads(described)) if described else Description(),
        }
    )


def _description(value: Mapping[str, Any]) -> Description:
    lists: dict[str, Sequence[str]] = {name: tuple(value[name]) for name in ("tags", "purposes")}
    return Description(**{**value, **lists})
