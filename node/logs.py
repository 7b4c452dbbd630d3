"""What the running node says of itself, line by line: the form of a line, where lines go, and the last warnings for `status`.

Every record is `event=NAME key=value ...`, made from a template and its arguments; ids and digests only, never row text,
prompts or keys. As text it is one line of that form whatever a peer has put into a value; as JSON the values keep their
types. A log that cannot be written costs lines, not the node. Knows no part of the node.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from node.errors import ConfigError
from node.sections import Log
from protocol.canon import Json

_NOISY: Final = ("httpx", "asyncio")  # libraries that report what is ours to report
_PAIR: Final = re.compile(r"(?:^|\s)([A-Za-z_][\w-]*)=(%[-#0 +]*\d*(?:\.\d+)?([sdrfgx])|[^\s%]+)")
_DIRECTIVE: Final = re.compile(r"%(?!%)")
_MAX_VALUE: Final = 2000  # characters of one value; a traceback is cut at ten times this


class RecentErrors(logging.Handler):
    """Keeps the last warnings for `status`."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.last: deque[dict[str, Json]] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record."""
        self.last.append(
            {"time": int(record.created * 1000), "code": record.levelname.lower(), "text": record.getMessage()[:300]}
        )


# -- one line --------------------------------------------------------------------------------------------------------
def fields(record: logging.LogRecord) -> dict[str, object]:
    """The keys and values of a record, `event` first; a record of another form is event "note" with its `text`."""
    template = record.msg if isinstance(record.msg, str) else ""
    args = record.args if isinstance(record.args, tuple) else ()
    found: dict[str, object] = {}
    used, rest = 0, template
    for match in _PAIR.finditer(template):
        key, value, directive = match.groups()
        rest = rest.replace(match.group(0), "", 1)
        if directive is None:
            found[key] = value
        elif used < len(args):
            found[key] = _value(args[used], value)
            used += 1
    if found.get("event") and not rest.strip() and used == len(args) == len(_DIRECTIVE.findall(template)):
        return {"event": found.pop("event"), **found}
    return {"event": "note", "text": _cut(record.getMessage())}


def _value(given: object, directive: str) -> object:
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, int):
        return given if -(2**53) < given < 2**53 else str(given)
    if isinstance(given, float):
        text = directive % given
        return float(text) if re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", text) else text
    return _cut(directive % given)


def _cut(text: str, most: int = _MAX_VALUE) -> str:
    return text if len(text) <= most else text[:most] + "..."


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextLines(logging.Formatter):
    """`ts=... level=... log=... event=... key=value ...`; what would break the line or the terminal is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; a traceback follows on lines of its own, each with a bar."""
        said = _cut(record.getMessage())
        line = f"ts={_time(record)} level={record.levelname} log={record.name} {_printable(said)}"
        if record.exc_info:
            trace = _cut(self.formatException(record.exc_info), 10 * _MAX_VALUE)
            line += "".join(f"\n| {_printable(each)}" for each in trace.splitlines())
        return line


class JsonLines(logging.Formatter):
    """One object a line: `ts`, `level`, `log`, `event` and the event's own keys."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; a traceback is the value of `trace`."""
        said = fields(record)
        line: dict[str, object] = {"ts": _time(record), "level": record.levelname.lower(), "log": record.name}
        line |= {"event": said.pop("event")}
        line |= {(f"{key}_" if key in line else key): value for key, value in said.items()}
        if record.exc_info:
            line["trace"] = _cut(self.formatException(record.exc_info), 10 * _MAX_VALUE)
        return json.dumps(line, ensure_ascii=True)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# -- where lines go --------------------------------------------------------------------------------------------------
class _File(RotatingFileHandler):
    """A private file that begins anew when it is full; a disk without room costs lines, which `status` counts."""

    def __init__(self, path: Path, settings: Log) -> None:
        self.lost = 0
        super().__init__(path, maxBytes=settings.max_mib << 20, backupCount=settings.keep, encoding="utf-8")

    def _open(self) -> Any:
        raw = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Written at once: what a full disk refuses is lost, and does not wait in a buffer that grows.
        return io.TextIOWrapper(
            os.fdopen(raw, "ab", buffering=0), encoding="utf-8", errors="replace", write_through=True
        )

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the lost line."""
        self.lost += 1


class Logs:
    """Where the lines of this process go: made once, turned to other settings while it runs."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._handlers: list[logging.Handler] = []
        self._turning = threading.Lock()
        self.errors = RecentErrors()

    def turn(self, settings: Log) -> None:
        """Write as `settings` say from now on; nothing changes when they cannot be kept.

        Raises:
            ConfigError: the file cannot be opened.
        """
        with self._turning:
            made = self._make(settings)
            root = logging.getLogger()
            for handler in (*made, self.errors):
                root.addHandler(handler)
            for handler in self._handlers:
                root.removeHandler(handler)
                handler.close()
            self._handlers = made
            root.setLevel(settings.level.upper())
            for noisy in _NOISY:
                logging.getLogger(noisy).setLevel(logging.ERROR)

    def check(self, settings: Log) -> None:
        """See whether `turn` could keep these settings (raises ConfigError)."""
        for handler in self._make(settings):
            handler.close()

    def _make(self, settings: Log) -> list[logging.Handler]:
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
        if settings.file:
            path = self._home / Path(settings.file).expanduser()
            try:
                handlers.append(_File(path, settings))
            except OSError as e:
                raise ConfigError(
                    f"couldn't write the log to {path}: {e.strerror or e}",
                    hint='name another file: fishernet config set log.file PATH, or "" for stderr only',
                ) from None
        for handler in handlers:
            handler.setFormatter(JsonLines() if settings.format == "json" else TextLines())
        return handlers

    def status(self) -> Mapping[str, Json]:
        """Flat counters: lines that found no room."""
        return {"lines_lost": sum(h.lost for h in self._handlers if isinstance(h, _File))}


__all__ = ["JsonLines", "Logs", "RecentErrors", "TextLines", "fields"]
