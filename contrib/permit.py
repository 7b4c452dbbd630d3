"""What one access may read: a data set, an action on it, columns and row tags, until when, by which decision.

Pure values: no store, no ledger, no clock. The node makes a permit out of an allowed decision; `contrib.rows` hands out
nothing without one. Invariants: a permit only ever takes rows and columns away; training rows are never readable by an
evaluation, nor held-out rows by a training run. Law: `parse(p.to_json()) == p`.

Columns are `text` | `prompt`, `completion` | `system`, `user`, `assistant` (one for each role of a chat). A row that is
restricted to columns is what remains of it: a pair without its prompt is a completion after nothing, a chat without its
user turns is its answers in their order. A row that keeps nothing to learn (no text, no completion, no answer) is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, cast, get_args

from contrib.errors import BadPermit, BadRows, NotPermitted
from contrib.row import Row
from contrib.splitting import Part
from protocol.canon import Json
from protocol.ids import EventId, as_hex

Action: TypeAlias = Literal["train", "evaluate", "label", "serve"]
Column: TypeAlias = Literal["text", "prompt", "completion", "system", "user", "assistant"]

ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
COLUMNS: Final[tuple[Column, ...]] = get_args(Column)
MAX_TAGS: Final = 16  # of one row

_PARTS: Final[dict[Part, frozenset[Action]]] = {
    "train": frozenset({"train", "label"}),
    "held_out": frozenset({"evaluate"}),
}
_KEYS: Final = {"dataset", "action", "columns", "tags_all", "tags_none", "expires_ms", "decision"}
_TAG: Final = re.compile(r"[a-z0-9._-]{1,64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """The right to read part of one data set; `columns` None means all of them."""

    dataset: str
    action: Action
    columns: tuple[Column, ...] | None = None
    tags_all: tuple[str, ...] = ()  # a row must carry each of these
    tags_none: tuple[str, ...] = ()  # and none of these
    expires_ms: int | None = None  # the first millisecond in which it no longer holds
    decision: EventId  # the event in which the access was decided

    def to_json(self) -> dict[str, Json]:
        """As it travels to the worker."""
        return {
            "dataset": self.dataset,
            "action": self.action,
            "columns": None if self.columns is None else list(self.columns),
            "tags_all": list(self.tags_all),
            "tags_none": list(self.tags_none),
            "expires_ms": self.expires_ms,
            "decision": self.decision,
        }

    def check(self, dataset: str, part: Part, now_ms: int) -> None:
        """Refuse what this permit does not cover.

        Raises:
            NotPermitted: another data set, an action that does not read this part, or too late.
        """
        if self.dataset != dataset:
            cause = f"the permit is for data set {self.dataset!r}"
        elif self.action not in _PARTS[part]:
            cause = f"the permit is to {self.action}, which does not read {part.replace('_', '-')} rows"
        elif self.expires_ms is not None and now_ms >= self.expires_ms:
            cause = "the permit has expired"
        else:
            return
        raise NotPermitted(f"couldn't read data set {dataset!r}: {cause}; see fishernet grant list")

    def covers(self, tags: Collection[str]) -> bool:
        """Whether a row with these tags may be read."""
        return all(tag in tags for tag in self.tags_all) and not any(tag in tags for tag in self.tags_none)

    def shown(self, row: Row) -> Row | None:
        """What the permitted columns leave of `row`; None when nothing to learn is left."""
        if self.columns is None:
            return row
        shown = replace(
            row,
            text=row.text if "text" in self.columns else "",
            prompt=row.prompt if "prompt" in self.columns else "",
            completion=row.completion if "completion" in self.columns else "",
            messages=tuple(m for m in row.messages if m.role in self.columns),
        )
        return shown if shown.learnable() else None


def parse(value: object) -> Permit:
    """Read a permit strictly.

    Raises:
        BadPermit: other keys or values out of range.
        Malformed: the decision is not an event id.
    """
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise BadPermit(f"couldn't read permit: the keys are not {', '.join(sorted(_KEYS))}")
    dataset, action, expires = value["dataset"], value["action"], value["expires_ms"]
    columns = None if value["columns"] is None else _texts(value["columns"], "columns")
    if not isinstance(dataset, str) or action not in ACTIONS:
        raise BadPermit(f"couldn't read permit: it names a data set, and one of {', '.join(ACTIONS)}")
    if columns is not None and not set(columns) <= set(COLUMNS):
        raise BadPermit(f"couldn't read permit: columns are {', '.join(COLUMNS)}")
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int) or expires < 0):
        raise BadPermit("couldn't read permit: expires_ms is a time in ms, or null")
    return Permit(
        dataset=dataset,
        action=cast("Action", action),
        columns=cast("tuple[Column, ...] | None", columns),
        tags_all=_texts(value["tags_all"], "tags_all"),
        tags_none=_texts(value["tags_none"], "tags_none"),
        expires_ms=expires,
        decision=EventId(as_hex(value["decision"], "decision")),
    )


def tags_of(values: Iterable[str]) -> tuple[str, ...]:
    """The tags of one row: sorted, each once.

    Raises:
        BadRows: over `MAX_TAGS` of them, or one with other characters than small letters, digits, `.`, `_`, `-`.
    """
    found = tuple(sorted(set(values)))
    if len(found) > MAX_TAGS:
        raise BadRows(f"couldn't take row: it has {len(found)} tags, at most {MAX_TAGS} are taken")
    for tag in found:
        if not _TAG.match(tag):
            raise BadRows("couldn't take row: a tag has 1 to 64 small letters, digits, '.', '_' or '-'")
    return found


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadPermit(f"couldn't read permit: {name} is a list of texts")
    return tuple(value)
