"""What passes between us and a child process: a job, its events, the state of a job under way.

One JSON object a line. A job has `id` and `job`; an event has the `id` and `event`, and the last event of a job is "done" or
"error" (with `code` and `message`). It knows no process: `node.children` does.

Invariant: a call ends with its "done" event or with exactly one error, and holds at most `EVENT_LIMIT` unread events.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeAlias

from contrib.errors import BadAdapter
from node.errors import JobCrashed, JobRefused, NodeError
from node.errors_serving import BadVector, Busy, ContextTooLong

Job: TypeAlias = Mapping[str, Any]
Event: TypeAlias = dict[str, Any]

LINE_LIMIT = 8 << 20  # bytes of one job or event line
EVENT_LIMIT = 8192  # events of one job that nobody has read yet
CRASHED = frozenset({"job-crashed", "worker-fault", "no-memory"})  # codes of what no job asked for: another try may do


class Call:
    """One job under way: its unread events, then its error if it failed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.abandoned = False  # nobody reads it any more
        self._events: deque[Event] = deque()
        self._error: NodeError | None = None
        self._wake = asyncio.Event()

    def put(self, event: Event) -> bool:
        """Keep `event` for the reader; False when the reader is too far behind."""
        if len(self._events) >= EVENT_LIMIT:
            return False
        if not self.abandoned:
            self._events.append(event)
            self._wake.set()
        return True

    def fail(self, error: NodeError) -> None:
        """End the call with `error`, unless it has ended with one."""
        self._error = self._error or error
        self._wake.set()

    async def get(self) -> Event:
        """The next event; raises the call's error after the last one."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()


def job_line(number: int, job: Job) -> bytes:
    """The line of a job. Raises JobRefused above `LINE_LIMIT`."""
    line = json.dumps({"id": number, **job}, separators=(",", ":")).encode() + b"\n"
    if len(line) > LINE_LIMIT:
        message = f"couldn't send job: it has {len(line)} bytes, the limit is {LINE_LIMIT}"
        raise JobRefused(message, reason="too-large")
    return line


def parse_event(line: bytes) -> Event | None:
    """The event in a line, or None when it is none (a library that prints to the standard output)."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(event, dict) and type(event.get("id")) is int and isinstance(event.get("event"), str)):
        return None
    return event


def is_last(event: Event) -> bool:
    """True for the event that ends a job."""
    return event["event"] in ("done", "error")


def error_of(event: Event) -> NodeError:
    """The typed error of an "error" event."""
    code, message = str(event.get("code", "refused")), str(event.get("message", "no reason given"))
    if code == Busy.code:
        return Busy(message, retry_after=int(event.get("retry_after", 1)))
    if code in (BadVector.code, BadAdapter.code):
        return BadVector(message)
    if code == ContextTooLong.code:
        return ContextTooLong(message, limit=int(event.get("limit", 0)))
    if code in CRASHED:
        return JobCrashed(message)
    return JobRefused(message, reason=code)
