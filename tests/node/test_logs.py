"""Promises of the log: one event a line, as text or JSON, whatever a peer sends; it rotates, and may fail."""

from __future__ import annotations

import ast
import json
import logging
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node import logs
from node.errors import ConfigError
from node.sections import Log

NODE = Path(logs.__file__).parent


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of ours; the root logger is as before afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers = []
    yield logging.getLogger("fishernet.test")
    for handler in root.handlers:
        handler.close()
    root.handlers = before
    root.setLevel(level)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """All that went to stderr so far."""
    seen: list[str] = []

    def read() -> str:
        seen.append(capsys.readouterr().err)
        return "".join(seen)

    return read


def test_a_line_as_json_has_time_level_event_and_its_own_keys_with_their_types(
    log: logging.Logger, said: Callable[[], str], tmp_path: Path
) -> None:
    logs.Logs(tmp_path).turn(Log(format="json"))
    log.info("event=decided height=%s kind=%s share=%.2f digest=%s ok=%s", 7, "release", 0.256, "ab12", None)
    line = json.loads(said())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {
        "level": "info", "log": "fishernet.test", "event": "decided", "height": 7, "kind": "release", "share": 0.26,
        "digest": "ab12", "ok": None,
    }  # fmt: skip


def test_values_with_blanks_equal_signs_and_line_ends_stay_one_value_and_one_line(
    log: logging.Logger, said: Callable[[], str], tmp_path: Path
) -> None:
    hostile = 'no room\nts=2026 level=ERROR event=ready member="you" \x1b[2J'
    logs.Logs(tmp_path).turn(Log(format="json"))
    log.warning("event=run-lost code=%s cause=%s", "disk-full", hostile)
    line = json.loads(said())
    assert (line["event"], line["code"], line["cause"]) == ("run-lost", "disk-full", hostile)

    logs.Logs(tmp_path).turn(Log())
    log.warning("event=run-lost code=%s cause=%s", "disk-full", hostile)
    text = said().splitlines()[-1]
    assert "event=run-lost code=disk-full cause=no room\\nts=2026" in text
    assert "\x1b" not in said()


def test_a_record_of_another_library_is_a_note_and_an_exception_keeps_its_trace(
    log: logging.Logger, said: Callable[[], str], tmp_path: Path
) -> None:
    logs.Logs(tmp_path).turn(Log(format="json"))
    log.info("%d of %d things, key=value", 3, 5)
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("event=handler-error protocol=%s", "/x/1")
    note, error = (json.loads(line) for line in said().splitlines())
    assert (note["event"], note["text"]) == ("note", "3 of 5 things, key=value")
    assert (error["event"], error["level"], error["protocol"]) == ("handler-error", "error", "/x/1")
    assert "ValueError: a" in error["trace"]


def test_a_turn_changes_level_and_form_at_once_and_one_that_cannot_be_kept_changes_nothing(
    log: logging.Logger, said: Callable[[], str], tmp_path: Path
) -> None:
    mine = logs.Logs(tmp_path)
    mine.turn(Log(level="warning"))
    log.info("event=one")
    mine.turn(Log(level="debug", format="json"))
    log.debug("event=two")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="couldn't write the log"):
        mine.turn(Log(file="taken"))
    log.debug("event=three")
    assert [json.loads(line)["event"] for line in said().splitlines()] == ["two", "three"]
    mine.turn(Log())
    log.warning("event=four n=%d", 1)
    assert [e["text"] for e in mine.errors.last] == ["event=four n=1"], "remembered once, however often it was turned"


def test_the_file_is_private_rotates_by_size_and_keeps_so_many(
    log: logging.Logger, said: Callable[[], str], tmp_path: Path
) -> None:
    mine = logs.Logs(tmp_path)
    mine.turn(Log(file="node.log", max_mib=1, keep=1, level="info"))
    for number in range(1_200):
        log.info("event=many number=%d text=%s", number, "x" * 1900)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["node.log", "node.log.1"]
    for name in files:
        assert (tmp_path / name).stat().st_size <= 1 << 20
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert "number=1199 " in (tmp_path / "node.log").read_text().splitlines()[-1]


def test_a_log_that_finds_no_room_costs_lines_and_not_the_node(
    log: logging.Logger, said: Callable[[], str], tmp_path: Path
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    mine = logs.Logs(tmp_path)
    (tmp_path / "node.log").symlink_to(full)
    mine.turn(Log(file="node.log"))
    log.info("event=unwritten")
    assert mine.status()["lines_lost"] == 1
    assert "event=unwritten" in said()
    mine.turn(Log())


def test_every_line_that_the_node_writes_names_its_event() -> None:
    bare = []
    for path in (p for p in NODE.rglob("*.py") if "getLogger" in p.read_text()):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            where, name = call.func.value, call.func.attr
            if not (isinstance(where, ast.Name) and where.id in {"log", "_log", "logger"}):
                continue
            at = {"log": 1, "debug": 0, "info": 0, "warning": 0, "error": 0, "exception": 0, "critical": 0}.get(name)
            if at is None:
                continue
            template = call.args[at]
            if not (isinstance(template, ast.Constant) and str(template.value).startswith("event=")):
                bare.append(f"{path.name}:{call.lineno}")
                continue
            record = logging.LogRecord("", 0, "", 0, str(template.value), tuple("x" for _ in call.args[at + 1 :]), None)
            record.args = tuple(1 for _ in call.args[at + 1 :])
            if logs.fields(record)["event"] == "note":
                bare.append(f"{path.name}:{call.lineno}: {template.value}")
    assert not bare
