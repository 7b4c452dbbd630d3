"""Promises of sealed rows: a stolen file tells counts and dates, no content, no tag, no label, and confirms no guess."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from permits import to_measure, to_train

from contrib.errors import RowsDamaged, RowsFull, RowsSealed
from contrib.row import Row, pair_row, text_row
from contrib.rows import RowStore
from contrib.sealing import Sealer, key_from_hex, row_place
from protocol.ids import Digest

KEY, OTHER = hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()


def rows(count: int = 40) -> list[Row]:
    return [
        replace(
            pair_row(f"prompt-canary {n}", f"label-canary-{n % 2}"), tags=("tag-canary",), subject=f"Ada Canary {n}"
        )
        for n in range(count)
    ]


def canaries() -> list[bytes]:
    return [b"prompt-canary", b"label-canary", b"tag-canary", b"Ada Canary", KEY, KEY.hex().encode()]


def raw(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def standing(folder: Path, wanted: Iterable[bytes]) -> list[bytes]:
    data = raw(folder)
    return [each for each in wanted if each in data]


@given(st.binary(max_size=200), st.integers(1, 1000))
def test_sealed_bytes_open_at_their_own_place_only(data: bytes, row: int) -> None:
    sealer = Sealer.of(KEY)
    sealed = sealer.seal(row_place("d", row, "content"), data, os.urandom(12))
    assert sealer.open(row_place("d", row, "content"), sealed) == data
    for place in (row_place("d", row + 1, "content"), row_place("e", row, "content"), row_place("d", row, "tags")):
        with pytest.raises(RowsDamaged):
            sealer.open(place, sealed)
    with pytest.raises(RowsDamaged):
        Sealer.of(OTHER).open(row_place("d", row, "content"), sealed)


@given(st.data())
def test_a_changed_byte_of_a_sealed_row_is_found(data: st.DataObject) -> None:
    sealer, place = Sealer.of(KEY), row_place("d", 1, "content")
    sealed = bytearray(sealer.seal(place, b"a private text", os.urandom(12)))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RowsDamaged):
        sealer.open(place, bytes(sealed))
    with pytest.raises(RowsDamaged):
        sealer.open(place, bytes(sealed[:5]))


def test_places_with_other_names_never_read_the_same() -> None:
    assert row_place("a", 1, "b") != row_place("a1", 1, "b") != row_place("a", 11, "b")


def test_key_in_a_job_is_hex_and_never_repeated_in_an_error() -> None:
    assert key_from_hex(KEY.hex()) == KEY
    assert key_from_hex(None) is None
    for wrong in ("secret-but-short", KEY.hex().upper(), 5, KEY.hex() + "\n"):
        with pytest.raises(RowsSealed) as caught:
            key_from_hex(wrong)
        assert str(wrong) not in str(caught.value)
    with pytest.raises(RowsSealed, match="16 bytes"):
        Sealer.of(KEY[:16])
    assert KEY.hex() not in repr(Sealer.of(KEY))
    assert repr(KEY) not in repr(Sealer.of(KEY))


def test_sealed_store_answers_as_a_plain_one_does(tmp_path: Path) -> None:
    found = []
    for name, key in (("plain", None), ("sealed", KEY)):
        with RowStore.open(tmp_path / name, key=key, entropy=lambda n: b"\7" * n, clock=lambda: 5) as store:
            summary = store.add("d", rows())
            read = store.rows("d", permit=to_train("d", tags_all=("tag-canary",)), seed=1)
            held = store.rows("d", "held_out", permit=to_measure("d"))
            found.append((replace(summary, sealed=False), read, held, store.find("d", subject="Ada Canary 3").ids))
            assert summary.sealed == store.sealed == (key is not None)
    assert found[0] == found[1]


def test_sealed_file_holds_no_content_tag_label_or_subject(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        store.add("d", rows())
        assert store.summary("d").labels == ("label-canary-0", "label-canary-1")
        assert standing(tmp_path, canaries()) == []
    assert standing(tmp_path, canaries()) == []


def test_plain_file_holds_content_but_no_subject(tmp_path: Path) -> None:
    """The search above can find something: the same rows in a plain store."""
    with RowStore.open(tmp_path / "rows.db") as store:
        store.add("d", rows())
    assert standing(tmp_path, canaries()) == [b"prompt-canary", b"label-canary", b"tag-canary"]


def test_a_guess_of_a_row_is_not_confirmed_by_digest_split_key_or_salt(tmp_path: Path) -> None:
    row = text_row("the patient is Ada")
    with RowStore.open(tmp_path / "plain.db") as store:
        store.add("d", [row], 0)
    with RowStore.open(tmp_path / "sealed.db", key=KEY) as store:
        store.add("d", [row], 0)
    guesses = [row.digest().encode(), bytes.fromhex(row.digest())]
    assert any(guess in (tmp_path / "plain.db").read_bytes() for guess in guesses)
    assert not any(guess in (tmp_path / "sealed.db").read_bytes() for guess in guesses)
    with sqlite3.connect(tmp_path / "sealed.db") as db:
        assert db.execute("SELECT DISTINCT salt FROM rows").fetchall() == [(b"",)]
    db.close()


def test_equal_rows_of_two_homes_are_stored_as_other_bytes(tmp_path: Path) -> None:
    stored = []
    for name, key in (("a", KEY), ("b", OTHER)):
        with RowStore.open(tmp_path / name, key=key) as store:
            store.add("d", rows(1), 0)
        with sqlite3.connect(tmp_path / name) as db:
            stored.append(db.execute("SELECT digest, split_key, subject, filing, content FROM rows").fetchone())
        db.close()
    assert not set(stored[0]) & set(stored[1])


def test_without_the_key_counts_are_told_and_contents_are_not(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        known = store.add("d", rows())
    with RowStore.open(tmp_path / "rows.db", read_only=True) as store:
        (told,) = store.datasets()
        assert told == replace(known, labels=None)
        with pytest.raises(RowsSealed, match="passphrase"):
            store.rows("d", permit=to_train("d"))
        with pytest.raises(RowsSealed):
            store.find("d", subject="Ada Canary 1")
    with RowStore.open(tmp_path / "rows.db") as store, pytest.raises(RowsSealed):
        store.add("e", rows())


def test_another_key_is_found_at_opening(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "rows.db", key=KEY).close()
    with pytest.raises(RowsSealed, match="another key"):
        RowStore.open(tmp_path / "rows.db", key=OTHER)
    RowStore.open(tmp_path / "rows.db", key=KEY).close()


def test_moved_or_swapped_rows_are_refused(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        store.add("d", [text_row(f"text {n}") for n in range(4)], 0)
    with sqlite3.connect(tmp_path / "rows.db") as db:
        db.execute("UPDATE rows SET content = (SELECT content FROM rows WHERE id = 2) WHERE id = 1")
    db.close()
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store, pytest.raises(RowsDamaged):
        store.rows("d", permit=to_train("d"))


def test_sealing_a_plain_store_keeps_everything_and_leaves_no_plain_byte(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db") as store:
        before = store.add("d", rows(400))
        shown = store.rows("d", permit=to_train("d", tags_all=("tag-canary",)))
        about = store.find("d", subject="Ada Canary 7")
        assert store.seal(KEY) == 400
        assert standing(tmp_path, canaries()) == []
        assert store.rows("d", permit=to_train("d", tags_all=("tag-canary",))) == shown
    assert standing(tmp_path, canaries()) == []
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        assert store.summary("d") == replace(before, sealed=True)
        assert store.rows("d", permit=to_train("d")) == shown
        assert store.find("d", subject="Ada Canary 7") == about
        assert store.find("d", digest=rows()[3].digest()).ids == (4,)
        again = store.add("d", rows(401), if_exists="append")
        assert (again.train_rows + again.held_out_rows, again.duplicates) == (401, 400)
        assert store.seal(KEY) == 401
    with pytest.raises(RowsSealed):
        RowStore.open(tmp_path / "rows.db", key=OTHER)


def test_plain_store_stays_plain_when_a_key_is_there(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db") as store:
        store.add("d", rows(2))
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        assert not store.sealed
        assert store.add("d", rows(3), if_exists="append").sealed is False
        assert store.find("d", digest=Digest(rows(1)[0].digest())).ids == (1,)


def test_a_plain_store_that_was_emptied_is_sealed_by_the_first_key(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db") as store:
        store.add("d", rows(3))
        store.remove("d")
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        assert store.add("d", rows(3), 0).sealed
        assert store.find("d", subject="Ada Canary 1").ids == (5,)
    with RowStore.open(tmp_path / "rows.db", key=KEY) as store:
        assert store.find("d", subject="Ada Canary 1").ids == (5,)
    assert standing(tmp_path, canaries()) == []


def test_sealing_that_fails_leaves_a_plain_store_that_works(tmp_path: Path) -> None:
    with RowStore.open(tmp_path / "rows.db") as store:
        before = store.add("d", rows(300))
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RowsFull):
            store.seal(KEY)
        assert not store.sealed
        assert store.datasets() == [before]
        assert store.rows("d", permit=to_train("d"))
