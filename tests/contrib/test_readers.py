"""Promises of the file readers: what they read, and that every bad input is named with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contrib import errors
from contrib.readers import SUFFIXES, read
from contrib.row import MAX_ROW_BYTES, Message, chat_row, pair_row, text_row
from contrib.rows import RowStore

Put = Callable[[str, "str | bytes"], Path]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CHAT_ROW = chat_row([Message(role="user", content="Hi"), Message(role="assistant", content="Hello")])


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_jsonl_gives_texts_pairs_and_chats(put: Put) -> None:
    assert list(read(put("a.jsonl", lines({"text": "one", "id": 7}, {"text": "two"})))) == [
        text_row("one"),
        text_row("two"),
    ]
    assert list(read(put("b.jsonl", lines({"prompt": "2+2=", "completion": "4"})))) == [pair_row("2+2=", "4")]
    assert list(read(put("c.ndjson", lines({"messages": CHAT})))) == [CHAT_ROW]


def test_jsonl_allows_blank_lines_windows_line_ends_and_a_byte_order_mark(put: Put) -> None:
    path = put("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    assert [row.text for row in read(path)] == ["one", "two"]


def test_csv_gives_texts_pairs_and_chats(put: Put) -> None:
    assert list(read(put("a.csv", 'id,text\n1,"two\nlines, one cell"\n'))) == [text_row("two\nlines, one cell")]
    assert list(read(put("b.csv", "prompt,completion\nq,a\n"))) == [pair_row("q", "a")]
    cell = json.dumps(CHAT).replace('"', '""')
    assert list(read(put("c.csv", f'messages\n"{cell}"\n'))) == [CHAT_ROW]


def test_parquet_gives_texts_pairs_and_chats(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    polars.DataFrame({"id": [1, 2], "text": ["one", "two"]}).write_parquet(path)
    assert list(read(path)) == [text_row("one"), text_row("two")]
    polars.DataFrame({"prompt": ["q"], "completion": ["a"]}).write_parquet(path)
    assert list(read(path)) == [pair_row("q", "a")]
    polars.DataFrame({"messages": [CHAT]}).write_parquet(path)
    assert list(read(path)) == [CHAT_ROW]


def test_plain_text_gives_its_paragraphs_or_itself(put: Put) -> None:
    path = put("a.txt", "first line\nsecond line\n\n \n  indented\r\n\r\nlast")
    assert [row.text for row in read(path)] == ["first line\nsecond line", "  indented", "last"]
    whole = [row.text for row in read(path, format="document")]
    assert whole == [path.read_bytes().decode()]


def test_other_field_names_can_be_chosen(put: Put) -> None:
    path = put("a.jsonl", lines({"body": "b", "question": "q", "label": "l", "text": "t"}))
    assert list(read(path, text_field="body")) == [text_row("b")]
    assert list(read(path, prompt_field="question", completion_field="label")) == [pair_row("q", "l")]
    with pytest.raises(errors.BadRows, match="not both"):
        list(read(path, text_field="body", prompt_field="question"))


def test_chosen_fields_are_read_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    polars.DataFrame({"body": ["b"], "label": ["l"]}).write_parquet(path)
    assert list(read(path, prompt_field="body", completion_field="label")) == [pair_row("b", "l")]


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', errors.UnreadableRow, "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "x"}\n["x"]\n', errors.UnreadableRow, "a.jsonl:2: a list"),
        ("a.jsonl", '{"text": 5}\n', errors.UnreadableRow, "a.jsonl:1: the field 'text' is a int"),
        ("a.jsonl", '{"text": " "}\n', errors.UnreadableRow, "a.jsonl:1: the text is missing or blank"),
        ("a.jsonl", '{"body": "x"}\n', errors.UnreadableRow, "its fields are body; name the field"),
        ("a.jsonl", '{"text": "\\ud800"}\n', errors.UnreadableRow, "a.jsonl:1: .*surrogate"),
        ("a.jsonl", "[" * 100_000, errors.UnreadableRow, "a.jsonl:1: nested too deeply"),
        ("a.jsonl", '{"text": NaN}\n', errors.UnreadableRow, "a.jsonl:1"),
        ("a.jsonl", lines({"messages": CHAT[:1]}), errors.UnreadableRow, "a.jsonl:1: the assistant's answer"),
        ("a.jsonl", lines({"messages": "Hi"}), errors.UnreadableRow, "a list is expected"),
        ("a.jsonl", lines({"messages": ["Hi"]}), errors.UnreadableRow, "message 1 is a str"),
        ("a.jsonl", lines({"messages": [{"role": "user"}]}), errors.UnreadableRow, "message 1 needs a role"),
        ("a.jsonl", lines({"messages": [{"role": "tool", "content": "x"}]}), errors.UnreadableRow, "the role 'tool'"),
        ("a.jsonl", lines({"text": "x"}, {"prompt": "x", "completion": "y"}), errors.MixedKinds, "a.jsonl:2: a pair"),
        ("a.jsonl", "", errors.EmptyDataset, "a.jsonl"),
        ("a.jsonl", "\n\n", errors.EmptyDataset, "a.jsonl"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "caf\xe9"}\n', errors.WrongEncoding, "a.jsonl:2: byte 0xe9"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), errors.WrongEncoding, "a.jsonl:1"),
        ("a.txt", "abc".encode("utf-16-le"), errors.WrongEncoding, "a zero byte"),
        ("a.txt", " \n\n", errors.EmptyDataset, "a.txt"),
        ("a.csv", "", errors.EmptyDataset, "a.csv"),
        ("a.csv", "text\n", errors.EmptyDataset, "a.csv"),
        ("a.csv", "text,id\nx,1\ny\n", errors.UnreadableRow, "a.csv:3: 1 cells, the header has 2"),
        ("a.csv", 'text\n"never closed\n', errors.UnreadableRow, "a.csv:2"),
        ("a.csv", "text,text\nx,y\n", errors.UnreadableFile, "twice"),
        ("a.csv", b"text\ncaf\xe9\n", errors.WrongEncoding, "a.csv:2"),
        ("a.csv", "messages\nhello\n", errors.UnreadableRow, "a.csv:2: the messages cell is not JSON"),
        ("a.parquet", "PAR1 not really PAR1", errors.UnreadableFile, "a.parquet"),
        ("a.parquet", "", errors.UnreadableFile, "a.parquet"),
        ("a.docx", "x", errors.UnreadableFile, "known are .jsonl"),
        ("notes", "x", errors.UnreadableFile, "without suffix"),
    ],
)
def test_bad_input_is_named_with_its_place(
    put: Put, name: str, content: str | bytes, kind: type[errors.BadRows], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        list(read(put(name, content)))
    assert str(caught.value).startswith("couldn't read ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "' + "x" * MAX_ROW_BYTES + '"}\n'),
        ("a.csv", "text\n" + "x" * (MAX_ROW_BYTES + 1) + "\n"),
        ("a.csv", 'text\n"' + "some line\n" * 120_000 + '"\n'),
        ("a.txt", "some line\n" * 120_000),
        ("a.txt", "x" * (3 * MAX_ROW_BYTES)),
    ],
)
def test_row_over_a_mebibyte_is_refused_before_it_fills_the_memory(put: Put, name: str, content: str) -> None:
    with pytest.raises(errors.RowTooLarge, match=name):
        list(read(put(name, content)))


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with pytest.raises(errors.UnreadableFile, match="nothing"):
            list(read(tmp_path / f"nothing{suffix}"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(errors.UnreadableFile, match="folder"):
        list(read(tmp_path / "folder.jsonl"))


def test_parquet_cell_that_is_empty_or_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    polars.DataFrame({"text": ["x", None]}).write_parquet(path)
    with pytest.raises(errors.UnreadableRow, match=r"a\.parquet:row 2: the field 'text' is empty"):
        list(read(path))
    polars.DataFrame({"text": [5]}).write_parquet(path)
    with pytest.raises(errors.UnreadableRow, match="is a int"):
        list(read(path))
    polars.DataFrame({"text": []}, schema={"text": polars.String}).write_parquet(path)
    with pytest.raises(errors.EmptyDataset):
        list(read(path))
    polars.DataFrame({"body": ["x"]}).write_parquet(path)
    with pytest.raises(errors.UnreadableRow, match="name the field"):
        list(read(path))


def test_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    polars.DataFrame({"text": [f"text {n}" for n in range(500)]}).write_parquet(path)
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(errors.UnreadableFile):
            list(read(path))


def test_nothing_of_a_bad_file_is_stored(put: Put, tmp_path: Path) -> None:
    path = put("a.jsonl", lines(*({"text": f"row {n}"} for n in range(3000))) + "oops\n")
    with RowStore.open(tmp_path / "rows.db") as store:
        with pytest.raises(errors.UnreadableRow, match=r"a\.jsonl:3001"):
            store.add("d", read(path))
        assert store.datasets() == []
        assert store._db.execute("SELECT count(*) FROM rows").fetchone()[0] == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.sampled_from(["a.jsonl", "a.csv", "a.txt", "a.parquet"]), st.binary(max_size=200))
def test_any_bytes_give_rows_or_a_refusal(put: Put, name: str, content: bytes) -> None:
    try:
        rows = list(read(put(name, content)))
    except errors.BadRows:
        return
    assert rows


# -- tags and subjects -----------------------------------------------------------------------------------------------
def test_tags_and_subjects_are_read_from_fields(tmp_path: Path) -> None:
    records = [
        {"text": "a", "kinds": ["b", "a"], "who": "Ada"},
        {"text": "b", "kinds": "x, y", "who": 17},
        {"text": "c", "kinds": None, "who": None},
        {"text": "d", "kinds": "", "who": " "},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = list(read(file, tags=["all"], tag_field="kinds", subject_field="who"))
    assert [row.tags for row in rows] == [("a", "all", "b"), ("all", "x", "y"), ("all",), ("all",)]
    assert [row.subject for row in rows] == ["Ada", "17", None, None]
    assert rows == list(read(file)), "tags and subject are no content"
    assert all(row.tags == () and row.subject is None for row in read(file))


def test_tags_and_subjects_come_from_csv_and_parquet_too(tmp_path: Path) -> None:
    polars.DataFrame({"text": ["a"], "kinds": ["x,y"], "who": ["Ada"], "more": [1]}).write_parquet(
        tmp_path / "r.parquet"
    )
    (tmp_path / "r.csv").write_text('text,kinds,who\na,"x,y",Ada\n')
    for name in ("r.parquet", "r.csv"):
        (row,) = read(tmp_path / name, tag_field="kinds", subject_field="who")
        assert (row.tags, row.subject) == (("x", "y"), "Ada")


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({"text": "a", "who": "Ada"}, "no field 'kinds'"),
        ({"text": "a", "kinds": "x"}, "no field 'who'"),
        ({"text": "a", "kinds": "Not A Tag", "who": "Ada"}, "small letters"),
        ({"text": "a", "kinds": [1], "who": "Ada"}, "tags are texts"),
        ({"text": "a", "kinds": {"x": 1}, "who": "Ada"}, "tags are texts"),
        ({"text": "a", "kinds": ",".join(f"t{n}" for n in range(17)), "who": "Ada"}, "17 tags"),
        ({"text": "a", "kinds": "x", "who": ["Ada"]}, "a list"),
        ({"text": "a", "kinds": "x", "who": True}, "a bool"),
    ],
)
def test_filing_that_cannot_be_read_names_the_line_and_nobody(
    tmp_path: Path, record: dict[str, object], cause: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "good", "kinds": "x", "who": "Bob"}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(errors.BadRows, match=cause) as caught:
        list(read(file, tag_field="kinds", subject_field="who"))
    assert "rows.jsonl:2" in str(caught.value)
    assert "Ada" not in str(caught.value)


def test_more_tags_than_a_row_may_have_are_refused_with_the_common_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a", "kinds": [f"t{n}" for n in range(16)]}) + "\n")
    assert len(next(read(file, tag_field="kinds")).tags) == 16
    with pytest.raises(errors.BadRows, match=r"rows.jsonl:1.*17 tags"):
        list(read(file, tag_field="kinds", tags=["one-more"]))


def test_plain_text_has_no_fields_for_tags_or_subjects(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("one\n\ntwo\n")
    assert [row.tags for row in read(file, tags=["a"])] == [("a",), ("a",)]
    with pytest.raises(errors.BadRows, match="no fields"):
        list(read(file, subject_field="who"))
