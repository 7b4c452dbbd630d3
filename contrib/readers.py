"""Files into rows: JSONL, CSV, Parquet, plain text.

Readers know nothing of the store; they yield rows one by one and stop at the first that cannot be read, naming file and
line, so that the caller's transaction stores all or none. Invariant: every file is UTF-8 (a byte order mark is allowed),
every line and row is at most `MAX_ROW_BYTES` (1 MiB), and all rows of a file are of one kind.

What a row is, by the names of its fields: `messages` -> chat, `prompt` and `completion` -> pair, `text` -> text (the
first that is present wins); other fields are ignored. In CSV a `messages` cell holds JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeAlias, assert_never, get_args

from contrib.errors import (
    BadRows,
    EmptyDataset,
    MixedKinds,
    RowTooLarge,
    UnreadableFile,
    UnreadableRow,
    WrongEncoding,
)
from contrib.permit import tags_of
from contrib.row import MAX_ROW_BYTES, Message, Row, chat_row, pair_row, text_row

Format: TypeAlias = Literal["jsonl", "csv", "parquet", "text", "document"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)
SUFFIXES: Final[Mapping[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}

_SLICE: Final = 4096  # rows of a Parquet file held as Python objects at a time
_SHOWN: Final = 60  # characters of a foreign name in a message

Place: TypeAlias = str  # "file:line", "file:row n"
Record: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """The field names to look for; a name that the caller chose must be there."""

    text: str | None
    prompt: str | None
    completion: str | None
    tags: str | None
    subject: str | None

    def columns(self) -> set[str]:
        chosen = {name for name in (self.text, self.prompt, self.completion, self.tags, self.subject) if name}
        return chosen | {"messages", "prompt", "completion", "text"}


def read(
    path: Path,
    *,
    format: Format | None = None,
    text_field: str | None = None,
    prompt_field: str | None = None,
    completion_field: str | None = None,
    tags: Sequence[str] = (),
    tag_field: str | None = None,
    subject_field: str | None = None,
) -> Iterator[Row]:
    """Yield the rows of a file in its order.

    Args:
        path: the file.
        format: default by suffix; "text" makes a row of each paragraph (blank lines separate), "document" one row of
            the whole file.
        text_field: read this field as the text of plain text rows.
        prompt_field: read this field as the prompt of pairs.
        completion_field: read this field as the completion of pairs.
        tags: tags of every row.
        tag_field: a field with more tags of its row: one, a list, or several with commas between them.
        subject_field: a field that says whom the row is about (text or a whole number); empty for nobody.

    Raises:
        BadRows: field options that exclude each other or that the format has no fields for; a tag that cannot be taken.
        UnreadableFile: missing, a folder, an unknown suffix, or not of its format.
        WrongEncoding: not UTF-8.
        UnreadableRow, RowTooLarge, MixedKinds: the message names file and line.
        EmptyDataset: no row in the file.
    """
    chosen = format or _format_of(path)
    if text_field and (prompt_field or completion_field):
        raise BadRows(f"couldn't read {path.name}: choose a text field or prompt and completion fields, not both")
    if (tag_field or subject_field) and chosen in ("text", "document"):
        raise BadRows(f"couldn't read {path.name}: a {chosen} file has no fields for tags or subjects")
    common = tags_of(tags)
    names = _Names(
        text=text_field, prompt=prompt_field, completion=completion_field, tags=tag_field, subject=subject_field
    )
    kind = None
    for place, row in _rows(path, chosen, names):
        kind = kind or row.kind
        if row.kind != kind:
            raise MixedKinds(f"couldn't read {place}: a {row.kind} row after {kind} rows; use one file for each kind")
        yield replace(row, tags=_joined(place, common, row.tags)) if common else row
    if kind is None:
        raise EmptyDataset(f"couldn't read {path.name}: there are no rows in it")


def _format_of(path: Path) -> Format:
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        known = ", ".join(SUFFIXES)
        raise UnreadableFile(
            f"couldn't read {path.name}: the format of {path.suffix or 'a file without suffix'!r} is unknown;"
            f" known are {known}; or name one of {', '.join(FORMATS)}"
        ) from None


def _rows(path: Path, chosen: Format, names: _Names) -> Iterator[tuple[Place, Row]]:
    match chosen:
        case "jsonl":
            records = _jsonl(path)
        case "csv":
            records = _csv(path)
        case "parquet":
            records = _parquet(path, names)
        case "text":
            return ((place, _row(place, {"text": text}, names)) for place, text in _paragraphs(path))
        case "document":
            return ((place, _row(place, {"text": text}, names)) for place, text in _document(path))
        case _:
            assert_never(chosen)
    return ((place, _row(place, record, names)) for place, record in records)


def _lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Decode line by line, line ends kept, so that an error has a line number and no line fills the memory."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_ROW_BYTES + 2):
                number += 1
                place = f"{path.name}:{number}"
                if len(raw.rstrip(b"\r\n")) > MAX_ROW_BYTES:
                    raise RowTooLarge(f"couldn't read {place}: the line is over {MAX_ROW_BYTES} bytes; split the row")
                yield place, _decoded(place, raw, first=number == 1)
    except OSError as e:
        raise UnreadableFile(f"couldn't read {path}: {e.strerror or e}") from None


def _decoded(place: Place, raw: bytes, *, first: bool) -> str:
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as e:
        cause = f"byte {raw[e.start]:#04x} at position {e.start + 1} of the line"
    else:
        if "\0" not in text:
            return text
        cause = "a zero byte"
    raise WrongEncoding(f"couldn't read {place}: {cause} is not UTF-8 text; save the file as UTF-8") from None


def _jsonl(path: Path) -> Iterator[tuple[Place, Record]]:
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except RecursionError:
            raise UnreadableRow(f"couldn't read {place}: nested too deeply") from None
        except ValueError as e:
            cause = e.msg if isinstance(e, json.JSONDecodeError) else str(e)
            raise UnreadableRow(f"couldn't read {place}: not JSON ({cause}); one object per line is expected") from None
        if not isinstance(record, dict):
            raise UnreadableRow(f"couldn't read {place}: a {type(record).__name__}, one object per line is expected")
        yield place, record


def _csv(path: Path) -> Iterator[tuple[Place, Record]]:
    csv.field_size_limit(MAX_ROW_BYTES)  # process-wide; the library's own default would refuse long texts
    place = f"{path.name}:1"

    def lines() -> Iterator[str]:
        nonlocal place
        for at, line in _lines(path):
            place = at
            yield line

    table = csv.reader(lines(), strict=True)
    try:
        header = next(table, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            raise UnreadableFile(f"couldn't read {place}: a column name stands twice in the header")
        for cells in table:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UnreadableRow(f"couldn't read {place}: {len(cells)} cells, the header has {len(header)}")
            yield place, _with_messages(place, dict(zip(header, cells, strict=True)))
    except csv.Error as e:
        kind = RowTooLarge if "field limit" in str(e) else UnreadableRow
        raise kind(f"couldn't read {place}: {e}") from None


def _with_messages(place: Place, record: Record) -> Record:
    cell = record.get("messages")
    if not isinstance(cell, str):
        return record
    try:
        return {**record, "messages": json.loads(cell)}
    except (ValueError, RecursionError):
        raise UnreadableRow(f"couldn't read {place}: the messages cell is not JSON") from None


def _parquet(path: Path, names: _Names) -> Iterator[tuple[Place, Record]]:
    import polars

    try:
        schema = polars.read_parquet_schema(path)
        columns = [name for name in schema if name in names.columns()]
        table = polars.read_parquet(path, columns=columns)
    except (polars.exceptions.PolarsError, OSError) as e:
        raise UnreadableFile(f"couldn't read {path.name}: {str(e).splitlines()[0]}") from None
    if not columns:
        yield f"{path.name}:row 1", dict.fromkeys(schema)  # so that the refusal names the columns that are there
    number = 0
    for part in table.iter_slices(_SLICE):
        for record in part.iter_rows(named=True):
            number += 1
            yield f"{path.name}:row {number}", record


def _paragraphs(path: Path) -> Iterator[tuple[Place, str]]:
    start, lines, size = path.name, list[str](), 0
    for place, line in _lines(path):
        if line.strip():
            start = start if lines else place
            lines.append(line)
            size = _bounded(start, size + len(line))
        elif lines:
            yield start, "".join(lines).strip("\r\n")
            lines, size = [], 0
    if lines:
        yield start, "".join(lines).strip("\r\n")


def _document(path: Path) -> Iterator[tuple[Place, str]]:
    lines, size = list[str](), 0
    for _, line in _lines(path):
        lines.append(line)
        size = _bounded(path.name, size + len(line))
    if size:
        yield path.name, "".join(lines)


def _bounded(place: Place, size: int) -> int:
    if size > MAX_ROW_BYTES:
        raise RowTooLarge(f"couldn't read {place}: the row is over {MAX_ROW_BYTES} bytes; separate it by blank lines")
    return size


def _row(place: Place, record: Record, names: _Names) -> Row:
    row = _content(place, record, names)
    if not (names.tags or names.subject):
        return row
    try:
        tags = _tags(record, names.tags) if names.tags else ()
        subject = _subject(record, names.subject) if names.subject else None
    except BadRows as e:
        raise _placed(place, e) from None
    return replace(row, tags=tags, subject=subject)


def _tags(record: Record, name: str) -> tuple[str, ...]:
    value = _field(record, name)
    found = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UnreadableRow(f"couldn't take row: the field {name!r} is {_called(value)}, tags are texts")
    return tags_of(stripped for each in found if (stripped := each.strip()))


def _subject(record: Record, name: str) -> str | None:
    value = _field(record, name)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise UnreadableRow(f"couldn't take row: the field {name!r} is {_called(value)}, a text or number is expected")
    return str(value).strip() or None if value is not None else None


def _joined(place: Place, common: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tags_of((*common, *own))
    except BadRows as e:
        raise _placed(place, e) from None


def _placed(place: Place, error: BadRows) -> BadRows:
    return type(error)(f"couldn't read {place}: {str(error).partition(': ')[2]}")


def _content(place: Place, record: Record, names: _Names) -> Row:
    try:
        if names.text:
            return text_row(_text(record, names.text))
        if names.prompt or names.completion:
            return pair_row(_text(record, names.prompt or "prompt"), _text(record, names.completion or "completion"))
        if record.get("messages") is not None:
            return chat_row(_messages(record["messages"]))
        if "prompt" in record and "completion" in record:
            return pair_row(_text(record, "prompt"), _text(record, "completion"))
        if "text" in record:
            return text_row(_text(record, "text"))
        _unknown(record)
    except BadRows as e:
        raise _placed(place, e) from None


def _field(record: Record, name: str) -> object:
    if name not in record:
        raise UnreadableRow(f"couldn't take row: there is no field {name!r}")
    return record[name]


def _text(record: Record, name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise UnreadableRow(f"couldn't take row: the field {name!r} is {_called(value)}, text is expected")
    return value


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list):
        raise UnreadableRow(f"couldn't take row: messages is {_called(value)}, a list is expected")
    messages = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise UnreadableRow(f"couldn't take row: message {number} is {_called(item)}, an object is expected")
        role, content = item.get("role"), item.get("content")
        if not (isinstance(role, str) and isinstance(content, str)):
            raise UnreadableRow(f"couldn't take row: message {number} needs a role and a content that are text")
        messages.append(Message(role=role, content=content))
    return messages


def _called(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _unknown(record: Record) -> NoReturn:
    found = ", ".join(str(name)[:_SHOWN] for name in list(record)[:8]) or "none"
    raise UnreadableRow(
        "couldn't take row: it has neither messages, nor prompt and completion, nor text;"
        f" its fields are {found}; name the field to read"
    )
