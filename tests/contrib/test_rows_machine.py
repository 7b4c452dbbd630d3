"""The row store as a state machine: whatever is added, forgotten, sealed and asked for, it answers as a list in memory would."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from permits import to_measure, to_train

from contrib.row import Row, pair_row
from contrib.rows import RowStore
from contrib.splitting import part_of

KEY = bytes(range(32))
SHARE = 400_000
NUMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=6)
TAGS = st.lists(st.sampled_from(["a", "b"]), unique=True).map(sorted).map(tuple)
PEOPLE = st.sampled_from([None, "Ada", "Bob"])


@dataclass(frozen=True)
class Kept:
    """A row as the model keeps it; order of arrival is its place in the list."""

    number: int
    tags: tuple[str, ...]
    subject: str | None

    @property
    def row(self) -> Row:
        return pair_row(f"question {self.number}?", f"private-{self.number:04d}-answer")

    @property
    def part(self) -> str:
        return part_of(self.row.split_key(), SHARE)


class Rows(RuleBasedStateMachine):
    """One data set of one node, from plain to sealed."""

    @initialize(sealed=st.booleans())
    def begin(self, sealed: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "rows.db"
        self.key = KEY if sealed else None
        self.store = RowStore.open(self.path, key=self.key)
        self.kept: list[Kept] = []
        self.forgotten: set[int] = set()
        self.exists = False

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    @rule(numbers=NUMBERS, tags=TAGS, subject=PEOPLE)
    def add(self, numbers: list[int], tags: tuple[str, ...], subject: str | None) -> None:
        wanted = [Kept(number, tags, subject) for number in numbers]
        rows = [replace(kept.row, tags=kept.tags, subject=kept.subject) for kept in wanted]
        self.store.add("d", rows, SHARE, if_exists="append")
        self.exists = True
        for kept in wanted:
            if kept not in self.kept:
                self.kept.append(kept)
        self.forgotten -= set(numbers)

    @precondition(lambda self: self.exists)
    @rule(subject=st.sampled_from(["Ada", "Bob"]))
    def forget_person(self, subject: str) -> None:
        self._forget(self.store.find("d", subject=subject).ids, lambda kept: kept.subject == subject)

    @precondition(lambda self: self.exists)
    @rule(number=st.integers(0, 30))
    def forget_row(self, number: int) -> None:
        digest = Kept(number, (), None).row.digest()
        self._forget(self.store.find("d", digest=digest).ids, lambda kept: kept.number == number)

    def _forget(self, ids, meant) -> None:  # type: ignore[no-untyped-def]
        gone = [kept for kept in self.kept if meant(kept)]
        assert len(ids) == len(gone)
        self.store.forget("d", ids)
        self.kept = [kept for kept in self.kept if not meant(kept)]
        self.forgotten |= {kept.number for kept in gone} - {kept.number for kept in self.kept}

    @precondition(lambda self: self.key is None and self.exists)
    @rule()
    def seal(self) -> None:
        assert self.store.seal(KEY) == len(self.kept)
        self.key = KEY

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = RowStore.open(self.path, key=self.key)

    @precondition(lambda self: self.exists)
    @rule(all_of=TAGS, none_of=TAGS)
    def read(self, all_of: tuple[str, ...], none_of: tuple[str, ...]) -> None:
        for part, permit in (("train", to_train), ("held_out", to_measure)):
            shown = self.store.rows("d", part, permit=permit("d", tags_all=all_of, tags_none=none_of))  # type: ignore[arg-type]
            wanted = [
                kept.row
                for kept in self.kept
                if kept.part == part and set(all_of) <= set(kept.tags) and not set(none_of) & set(kept.tags)
            ]
            assert shown == wanted

    @invariant()
    def summary_is_that_of_what_is_kept(self) -> None:
        if getattr(self, "exists", False):
            summary = self.store.summary("d")
            parts = [kept.part for kept in self.kept]
            assert (summary.train_rows, summary.held_out_rows) == (parts.count("train"), parts.count("held_out"))
            assert summary.sealed == self.store.sealed == (self.key is not None)

    @invariant()
    def forgotten_and_sealed_rows_stand_in_no_byte(self) -> None:
        if getattr(self, "exists", False):
            data = b"".join(file.read_bytes() for file in self.path.parent.glob("rows.db*"))
            assert not any(f"private-{number:04d}".encode() in data for number in self.forgotten)
            if self.key is not None:
                assert b"private-" not in data


TestRows = Rows.TestCase
TestRows.settings = settings(
    max_examples=30, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
