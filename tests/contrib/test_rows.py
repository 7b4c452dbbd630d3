"""Promises of rows, of the split, and of the row store."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from permits import to_measure, to_train

from contrib import errors
from contrib.row import MAX_ROW_BYTES, Message, Row, chat_row, pair_row, stored_row, text_row
from contrib.rows import RowStore
from contrib.splitting import commitment_leaf, labels_of, part_of
from protocol.ids import Digest
from protocol.merkle import root_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
MESSAGES = st.builds(
    lambda before, answer: [*before, Message(role="assistant", content=answer)],
    st.lists(st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXT), max_size=4),
    TEXT,
)
ROWS = st.one_of(st.builds(text_row, TEXT), st.builds(pair_row, TEXT, TEXT), st.builds(chat_row, MESSAGES))


def texts(*numbers: int) -> list[Row]:
    return [text_row(f"private text number {n}") for n in numbers]


def counting() -> Callable[[int], bytes]:
    """What the salts come from: 0, 1, ...; the 32 bytes that a new store asks for are no salt."""
    numbers = itertools.count()
    return lambda size: bytes(size) if size == 32 else next(numbers).to_bytes(size, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.db"


@pytest.fixture
def store(path: Path) -> Iterator[RowStore]:
    with RowStore.open(path) as opened:
        yield opened


@given(ROWS)
def test_row_survives_its_canonical_bytes(row: Row) -> None:
    assert stored_row(row.canonical()) == row
    assert row.digest() == hashlib.sha256(row.canonical()).hexdigest()


def test_row_digest_ignores_unicode_spelling_but_not_blanks() -> None:
    assert text_row("caf\u00e9 au lait").digest() == text_row("cafe\u0301 au lait").digest()
    assert text_row("a text").digest() != text_row("a text ").digest()


@pytest.mark.parametrize("text", ["", "  \n", "lone surrogate \ud800"])
def test_row_refuses_text_that_nobody_could_learn(text: str) -> None:
    with pytest.raises(errors.UnreadableRow):
        text_row(text)


def test_row_over_a_mebibyte_is_refused() -> None:
    with pytest.raises(errors.RowTooLarge, match=str(MAX_ROW_BYTES)):
        text_row("x" * MAX_ROW_BYTES)


def test_chat_without_answer_or_with_a_strange_role_is_refused() -> None:
    with pytest.raises(errors.UnreadableRow, match="answer"):
        chat_row([Message(role="user", content="hello")])
    with pytest.raises(errors.UnreadableRow, match="'tool'"):
        chat_row([Message(role="tool", content="hello"), Message(role="assistant", content="hi")])


def test_other_answer_keeps_the_question() -> None:
    chat = chat_row([Message(role="user", content="good film?"), Message(role="assistant", content="yes")])
    assert chat.with_answer("no").answer() == "no"
    assert chat.with_answer("no").split_key() == chat.split_key()
    assert pair_row("2+2=", "4").with_answer("5") == pair_row("2+2=", "5")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 1_000_000), st.integers(0, 1_000_000))
def test_larger_held_out_share_keeps_what_a_smaller_one_held_out(key: bytes, one: int, other: int) -> None:
    small, large = sorted((one, other))
    if part_of(Digest(key.hex()), small) == "held_out":
        assert part_of(Digest(key.hex()), large) == "held_out"
    assert part_of(Digest(key.hex()), 0) == "train"
    assert part_of(Digest(key.hex()), 1_000_000) == "held_out"


def test_held_out_share_is_met_within_the_noise_of_a_draw() -> None:
    parts = Counter(part_of(row.split_key(), 100_000) for row in texts(*range(5000)))
    assert 400 < parts["held_out"] < 600


def test_same_prompt_never_stands_on_both_sides(store: RowStore) -> None:
    rows = [pair_row(f"question {n % 50}", f"answer {n}") for n in range(500)]
    store.add("pairs", rows, 300_000)
    train = {row.prompt for row in store.rows("pairs", permit=to_train("pairs"))}
    held_out = {row.prompt for row in store.rows("pairs", "held_out", permit=to_measure("pairs"))}
    assert train
    assert held_out
    assert not train & held_out


def test_rows_without_a_question_are_drawn_by_their_content() -> None:
    user, greeting = Message(role="user", content="q"), Message(role="assistant", content="Welcome!")
    answers = [Message(role="assistant", content=f"answer {n}") for n in range(3)]
    assert len({pair_row("", m.content).split_key() for m in answers}) == 3
    assert len({chat_row([greeting, m]).split_key() for m in answers}) == 3
    assert len({chat_row([greeting, user, m]).split_key() for m in answers}) == 1
    asked = [Message(role="user", content=f"q {n}") for n in range(3)]
    assert len({chat_row([greeting, m, greeting]).split_key() for m in asked}) == 3


def test_split_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    parts = []
    for name, rows in (("a", texts(*range(200))), ("b", texts(*reversed(range(200))))):
        with RowStore.open(tmp_path / name) as store:
            store.add("d", rows)
            parts.append({row.text for row in store.rows("d", "held_out", permit=to_measure("d"))})
    assert parts[0] == parts[1] != set()


def test_summary_counts_rows_and_dropped_duplicates(store: RowStore) -> None:
    summary = store.add("notes", [*texts(*range(100)), *texts(3, 4, 5)])
    assert summary.train_rows + summary.held_out_rows == 100
    assert summary.train_rows == len(store.rows("notes", permit=to_train("notes")))
    assert summary.held_out_rows == len(store.rows("notes", "held_out", permit=to_measure("notes")))
    assert summary.duplicates == 3
    assert summary.characters == sum(len(row.text) for row in texts(*range(100)))
    assert (summary.kind, summary.labels) == ("text", None)
    assert store.datasets() == [summary] == [store.summary("notes")]


def test_roots_are_salted_rfc6962_roots_in_order_of_arrival(path: Path) -> None:
    with RowStore.open(path, entropy=counting()) as store:
        summary = store.add("d", texts(*range(40)), 250_000)
        leaves: dict[str, list[bytes]] = {"train": [], "held_out": []}
        for n, row in enumerate(texts(*range(40))):
            leaf = commitment_leaf(n.to_bytes(16, "big"), row.canonical())
            leaves[part_of(row.split_key(), 250_000)].append(leaf)
    assert summary.train_root == root_of(leaves["train"]).hex()
    assert summary.held_out_root == root_of(leaves["held_out"]).hex()


def test_equal_rows_commit_to_different_roots_on_different_nodes(tmp_path: Path) -> None:
    roots = set()
    for name in ("a", "b"):
        with RowStore.open(tmp_path / name) as store:
            roots.add(store.add("d", texts(*range(20))).train_root)
    assert len(roots) == 2


def test_append_gives_what_one_add_of_everything_gives(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "a", entropy=counting(), clock=lambda: 7) as store:
        store.add("d", texts(*range(30)), 200_000)
        grown = store.add("d", texts(*range(30, 60)), if_exists="append")
    with RowStore.open(tmp_path / "b", entropy=counting(), clock=lambda: 7) as store:
        assert store.add("d", texts(*range(60)), 200_000) == grown


def test_append_drops_and_counts_what_is_there(store: RowStore) -> None:
    store.add("d", texts(*range(10)))
    grown = store.add("d", texts(*range(5, 15)), if_exists="append")
    assert grown.train_rows + grown.held_out_rows == 15
    assert grown.duplicates == 5


def test_taken_name_is_refused_unless_append_or_replace_is_chosen(store: RowStore) -> None:
    before = store.add("d", texts(1, 2, 3))
    with pytest.raises(errors.DatasetExists):
        store.add("d", texts(4))
    assert store.datasets() == [before]
    after = store.add("d", texts(4), if_exists="replace")
    assert after.train_rows + after.held_out_rows == 1


def test_append_with_another_share_is_refused(store: RowStore) -> None:
    store.add("d", texts(1, 2, 3))
    with pytest.raises(errors.SplitConflict):
        store.add("d", texts(4), 200_000, if_exists="append")


def test_row_held_out_in_one_data_set_cannot_be_trained_on_in_another(store: RowStore) -> None:
    store.add("d", texts(*range(50)))
    with pytest.raises(errors.SplitConflict, match="'d'"):
        store.add("test-set", texts(*range(40, 60)), 1_000_000)
    assert [s.name for s in store.datasets()] == ["d"]
    store.add("other", texts(*range(50, 60)), 1_000_000)


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 65, "naïve", "-a", "a\n"])
def test_name_that_could_not_be_typed_back_is_refused(store: RowStore, name: str) -> None:
    with pytest.raises(errors.BadDatasetName):
        store.add(name, texts(1))


def test_empty_input_is_refused_and_stores_nothing(store: RowStore) -> None:
    with pytest.raises(errors.EmptyDataset):
        store.add("d", [])
    assert store.datasets() == []


@pytest.mark.parametrize("if_exists", ["append", "replace"])
def test_refused_input_leaves_the_data_set_as_it_was(store: RowStore, if_exists: str) -> None:
    before = store.add("d", texts(*range(20)))

    def broken() -> Iterator[Row]:
        yield from texts(*range(20, 2000))
        raise errors.UnreadableRow("couldn't read rows.jsonl:2000: not JSON")

    for rows, kind in ((broken(), errors.UnreadableRow), ([*texts(99), pair_row("a", "b")], errors.MixedKinds)):
        with pytest.raises(kind):
            store.add("d", rows, if_exists=if_exists)  # type: ignore[arg-type]
    assert store.datasets() == [before]
    assert store.rows("d", permit=to_train("d")) + store.rows("d", "held_out", permit=to_measure("d")) != []


def test_full_disk_is_a_passing_error_and_stores_nothing(store: RowStore) -> None:
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(errors.RowsFull):
        store.add("d", texts(*range(5000)))
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.datasets() == []
    assert store.add("d", texts(1, 2, 3)).name == "d"


def test_second_writer_is_told_to_try_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrib.rows_file.BUSY_SECONDS", 0.1)
    with RowStore.open(path) as one, RowStore.open(path) as other:

        def rows() -> Iterator[Row]:
            yield from texts(1)
            with pytest.raises(errors.RowsBusy):
                other.add("e", texts(2))

        one.add("d", rows())
        assert [s.name for s in other.datasets()] == ["d"]


def test_files_are_readable_by_their_owner_only(path: Path) -> None:
    with RowStore.open(path) as store:
        store.add("d", texts(1))
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("rows.db*")}
    assert modes == {0o600}


def test_removed_rows_are_overwritten(path: Path) -> None:
    with RowStore.open(path) as store:
        store.add("d", [text_row("canary-5db1 " + "x" * 200)])
        store.remove("d")
        with pytest.raises(errors.UnknownDataset):
            store.rows("d", permit=to_train("d"))
    assert all(b"canary-5db1" not in file.read_bytes() for file in path.parent.glob("rows.db*"))


def test_replaced_rows_are_overwritten(path: Path) -> None:
    with RowStore.open(path) as store:
        store.add("d", [text_row("canary-77aa " + "x" * 200)])
        store.add("d", texts(1), if_exists="replace")
        files = list(path.parent.glob("rows.db*"))
        assert all(b"canary-77aa" not in file.read_bytes() for file in files)


def test_reader_process_reads_and_cannot_write(path: Path) -> None:
    with RowStore.open(path) as store:
        store.add("d", texts(*range(10)))
        with RowStore.open(path, read_only=True) as reader:
            assert reader.rows("d", permit=to_train("d")) == store.rows("d", permit=to_train("d"))
            with pytest.raises(errors.RowsDamaged):
                reader.add("e", texts(1))
    with RowStore.open(path, read_only=True) as reader:
        assert len(reader.datasets()) == 1


def test_missing_store_is_not_created_by_a_reader(path: Path) -> None:
    with pytest.raises(errors.RowsDamaged):
        RowStore.open(path, read_only=True)
    assert not path.exists()


def test_foreign_file_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 300)
    with pytest.raises(errors.RowsDamaged):
        RowStore.open(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(errors.RowsDamaged):
        RowStore.open(path)
    assert path.read_bytes() == before


def test_store_in_a_folder_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.RowsDamaged, match="No such file"):
        RowStore.open(tmp_path / "nowhere" / "rows.db")


def test_reading_order_is_arrival_and_samples_are_repeatable(store: RowStore) -> None:
    store.add("d", texts(*range(1200)), 0)
    assert store.rows("d", permit=to_train("d")) == texts(*range(1200))
    assert store.rows("d", permit=to_train("d"), limit=7) == texts(*range(7))
    sample = store.rows("d", permit=to_train("d"), limit=50, seed=4)
    assert sample == store.rows("d", permit=to_train("d"), limit=50, seed=4)
    assert sample[:10] == store.rows("d", permit=to_train("d"), limit=10, seed=4)
    assert sample != store.rows("d", permit=to_train("d"), limit=50, seed=5)
    assert len({row.text for row in sample}) == 50
    assert store.rows("d", permit=to_train("d"), limit=0) == []


def test_unknown_data_set_is_named(store: RowStore) -> None:
    with pytest.raises(errors.UnknownDataset, match="'nothing'"):
        store.rows("nothing", permit=to_train("nothing"))


def test_labels_are_found_where_answers_look_like_labels(store: RowStore) -> None:
    rows = [pair_row(f"review {n}", "good" if n % 3 else "bad") for n in range(40)]
    assert store.add("reviews", rows).labels == ("bad", "good")
    assert store.summary("reviews").labels == ("bad", "good")
    assert store.add("stories", [pair_row(f"start {n}", f"end {n}") for n in range(40)]).labels is None


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        ({"a": 4, "b": 4}, ("a", "b")),
        ({"a": 3, "b": 4}, None),
        ({"a": 100}, None),
        ({str(n): 9 for n in range(33)}, None),
        ({"x" * 41: 9, "y": 9}, None),
    ],
)
def test_labels_need_to_be_few_short_and_used(answers: dict[str, int], labels: tuple[str, ...] | None) -> None:
    assert labels_of(Counter(answers)) == labels
