"""Promises of permits: nothing is read without one, and a row outside it does not exist for whoever reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from permits import DECISION, to_measure, to_train

from contrib import permit
from contrib.errors import BadPermit, BadRows, NotPermitted
from contrib.permit import ACTIONS, COLUMNS, Permit, tags_of
from contrib.row import Message, Row, chat_row, pair_row, text_row
from contrib.rows import RowStore
from protocol.errors import Malformed

TAGS = st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple)
PERMITS = st.builds(
    Permit,
    dataset=st.text(max_size=9),
    action=st.sampled_from(ACTIONS),
    columns=st.none() | st.lists(st.sampled_from(COLUMNS), unique=True).map(tuple),
    tags_all=TAGS,
    tags_none=TAGS,
    expires_ms=st.none() | st.integers(0, 2**53 - 1),
    decision=st.just(DECISION),
)
CHAT = chat_row(
    [
        Message(role="system", content="be kind"),
        Message(role="user", content="what hurts?"),
        Message(role="assistant", content="the left hand"),
    ]
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RowStore]:
    with RowStore.open(tmp_path / "rows.db", clock=lambda: 1000) as opened:
        opened.add("d", [replace(text_row(f"text {n}"), tags=tags_of(_tags(n))) for n in range(60)], 200_000)
        yield opened


def _tags(number: int) -> list[str]:
    return [name for name, every in (("two", 2), ("three", 3), ("five", 5)) if number % every == 0]


@given(PERMITS)
def test_permit_survives_its_json(granted: Permit) -> None:
    assert permit.parse(granted.to_json()) == granted


@pytest.mark.parametrize(
    "change",
    [
        {"columns": ["diagnosis"]},
        {"columns": "text"},
        {"action": "export"},
        {"dataset": 3},
        {"tags_all": [1]},
        {"tags_none": "a"},
        {"expires_ms": True},
        {"expires_ms": -1},
        {"expires_ms": "tomorrow"},
        {"more": 1},
    ],
)
def test_permit_that_is_not_one_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPermit):
        permit.parse({**to_train("d").to_json(), **change})
    with pytest.raises(Malformed):
        permit.parse({**to_train("d").to_json(), "decision": "somebody said so"})


def test_no_row_is_read_without_a_permit(store: RowStore) -> None:
    for part in ("train", "held_out"):
        with pytest.raises(NotPermitted, match="no permit"):
            store.rows("d", part)  # type: ignore[arg-type]
        with pytest.raises(NotPermitted, match="no permit"):
            store.count("d", part)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "granted", "cause"),
    [
        ("train", to_train("other"), "data set 'other'"),
        ("train", to_measure("d"), "evaluate"),
        ("train", Permit(dataset="d", action="serve", decision=DECISION), "serve"),
        ("held_out", to_train("d"), "train"),
        ("held_out", Permit(dataset="d", action="label", decision=DECISION), "label"),
        ("train", to_train("d", expires_ms=1000), "expired"),
        ("train", to_train("d", expires_ms=999), "expired"),
    ],
)
def test_permit_for_something_else_reads_nothing(store: RowStore, part: Any, granted: Permit, cause: str) -> None:
    with pytest.raises(NotPermitted, match=cause):
        store.rows("d", part, permit=granted)
    with pytest.raises(NotPermitted, match=cause):
        store.count("d", part, permit=granted)


def test_permit_holds_until_its_last_millisecond(store: RowStore) -> None:
    assert store.rows("d", permit=to_train("d", expires_ms=1001))


def test_label_reads_training_rows(store: RowStore) -> None:
    labelling = Permit(dataset="d", action="label", decision=DECISION)
    assert store.rows("d", permit=labelling) == store.rows("d", permit=to_train("d"))


@given(all_of=TAGS, none_of=TAGS, carried=TAGS)
def test_tags_only_ever_take_rows_away(
    all_of: tuple[str, ...], none_of: tuple[str, ...], carried: tuple[str, ...]
) -> None:
    covered = to_train("d", tags_all=all_of, tags_none=none_of).covers(carried)
    assert covered == (set(all_of) <= set(carried) and not set(none_of) & set(carried))
    if covered:
        assert to_train("d", tags_all=all_of).covers(carried)
        assert to_train("d", tags_none=none_of).covers(carried)


def test_only_rows_with_the_right_tags_exist_for_the_reader(store: RowStore) -> None:
    everything = store.rows("d", permit=to_train("d"))
    granted = to_train("d", tags_all=("two", "three"), tags_none=("five",))
    shown = store.rows("d", permit=granted)
    wanted = {f"text {n}" for n in range(60) if n % 6 == 0 and n % 5}
    assert [row.text for row in shown] == [row.text for row in everything if row.text in wanted]
    assert store.count("d", permit=granted) == len(shown) > 0
    sample = store.rows("d", permit=granted, seed=3)
    assert sample[:4] == store.rows("d", permit=granted, seed=3, limit=4)
    assert sorted(row.text for row in sample) == sorted(row.text for row in shown)


def test_rows_that_are_read_carry_neither_tags_nor_subject(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db") as store:
        store.add("d", [replace(text_row("x"), tags=("a",), subject="Ada")], 0)
        (row,) = store.rows("d", permit=to_train("d"))
    assert (row.tags, row.subject) == ((), None)


@pytest.mark.parametrize(
    ("row", "columns", "shown"),
    [
        (pair_row("q", "a"), ("prompt", "completion"), pair_row("q", "a")),
        (pair_row("q", "a"), ("completion",), pair_row("", "a")),
        (pair_row("q", "a"), ("prompt",), None),
        (pair_row("q", "a"), ("text", "assistant"), None),
        (text_row("t"), ("text",), text_row("t")),
        (text_row("t"), ("completion",), None),
        (text_row("t"), (), None),
        (CHAT, ("user", "assistant"), chat_row(CHAT.messages[1:])),
        (CHAT, ("assistant",), chat_row(CHAT.messages[2:])),
        (CHAT, ("system", "user"), None),
    ],
)
def test_a_row_is_what_its_permitted_columns_leave(row: Row, columns: tuple[Any, ...], shown: Row | None) -> None:
    assert to_train("d", columns=columns).shown(row) == shown
    assert to_train("d").shown(row) == row


def test_rows_that_keep_nothing_to_learn_do_not_count_to_the_limit(tmp_path: Path) -> None:
    quiet = chat_row([Message(role="user", content="and?"), Message(role="assistant", content="yes")])
    with RowStore.open(tmp_path / "rows.db") as store:
        silent = [
            chat_row([Message(role="system", content=f"{n}"), Message(role="assistant", content=" x")])
            for n in range(9)
        ]
        store.add("d", [*silent, quiet], 0)
        shown = store.rows("d", permit=to_train("d", columns=("assistant",)), limit=10)
        assert len(shown) == 10
        assert {m.role for row in shown for m in row.messages} == {"assistant"}


@pytest.mark.parametrize("tag", ["", "Ada", "two words", "x" * 65, "na\u00efve", "a/b", "a\n"])
def test_tag_outside_its_alphabet_is_refused(tag: str) -> None:
    with pytest.raises(BadRows, match="small letters") as caught:
        tags_of([tag])
    assert "Ada" not in str(caught.value), "a tag may name a person: no error repeats it"


def test_a_row_has_at_most_sixteen_tags() -> None:
    assert len(tags_of([*(f"t{n}" for n in range(16)), "t3"])) == 16
    with pytest.raises(BadRows, match="17"):
        tags_of(f"t{n}" for n in range(17))
