"""A child process that answers jobs: JSON lines in, JSON events out, started on use, started again after a death.

It runs `contrib.worker` and `node.serving.engine` and knows nothing of what either does. Several jobs may be under way; the child
decides their order. `{"cancel": id}` asks the child to end a job early; one that ignores this is killed.

Invariant: every job ends, with its "done" event or with exactly one error; no process outlives `stop()`, nor, on Linux, us
(the death signal follows the thread that starts the child: keep the event loop in the main thread).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from node.errors import ChildDied, JobCrashed, JobTimeout
from node.jobs import LINE_LIMIT, Call, Event, Job, error_of, is_last, job_line, parse_event

log = logging.getLogger("fishernet.children")

STDERR_LINES, STDERR_WIDTH = 50, 500
TERMINATE_GRACE = 2.0  # s between SIGTERM and SIGKILL
CANCEL_GRACE = 10.0  # s a job may take to end after its cancel
EXIT_GRACE = 1.0  # s between the end of a child's output and SIGKILL
BACKOFF_FIRST, BACKOFF_LAST = 0.2, 10.0  # s before the start that follows a death


def python(module: str, *args: str) -> tuple[str, ...]:
    """The command line of `python -m module` in this interpreter."""
    return (sys.executable, "-m", module, *args)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start: command line, additions to our environment, scheduling niceness."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0

    def full_argv(self) -> list[str]:
        """The command behind `nice` and `setpriv --pdeathsig`, which both exec and so keep the process id."""
        argv = list(self.argv)
        if sys.platform == "linux" and (setpriv := shutil.which("setpriv")):
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        if self.nice and (nice := shutil.which("nice")):
            argv = [nice, "-n", str(self.nice), *argv]
        return argv


def _no_setup() -> Sequence[Job]:
    return ()


class Child:
    """A process that answers jobs."""

    def __init__(
        self,
        command: Command,
        *,
        setup: Callable[[], Sequence[Job]] = _no_setup,
        setup_timeout: float = 300.0,
        cancel_grace: float = CANCEL_GRACE,
    ) -> None:
        """Nothing starts yet. Each new process first gets the jobs that `setup` names (such as loading a model)."""
        self.command = command
        self._setup, self._setup_timeout, self._cancel_grace = setup, setup_timeout, cancel_grace
        self._process: asyncio.subprocess.Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ready = self._closed = False
        self._calls: dict[int, Call] = {}
        self._number = self._deaths = 0
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)

    @property
    def running(self) -> bool:
        """True while a process is up and has finished its setup jobs."""
        return self._ready and self._process is not None

    @property
    def pid(self) -> int | None:
        """Process id of the present process."""
        return self._process.pid if self._process else None

    @property
    def busy(self) -> bool:
        """Whether jobs are under way in the present process."""
        return bool(self._calls)

    @property
    def stderr(self) -> tuple[str, ...]:
        """The last lines the child wrote to its standard error."""
        return tuple(self._stderr)

    # -- jobs --------------------------------------------------------------------------------------------------------
    async def request(
        self, job: Job, on_event: Callable[[Event], None] | None = None, timeout: float | None = None
    ) -> Event:
        """Run `job` and return its "done" event; `on_event` gets each event before it.

        Raises:
            ChildDied: the process ended, could not start, or was stopped.
            JobTimeout: no end within `timeout` seconds after it was sent (it is cancelled, and killed if it goes on).
            JobRefused, ContextTooLong: the child refused the job.
            JobCrashed: the job failed inside the child.
        """
        async with contextlib.aclosing(self.stream(job, timeout)) as events:
            async for event in events:
                if is_last(event):
                    return event
                if on_event is not None:
                    on_event(event)
        raise ChildDied(f"couldn't finish job in {self.command.name}: the events stopped")

    async def stream(self, job: Job, timeout: float | None = None) -> AsyncGenerator[Event, None]:
        """Run `job` and yield its events, "done" last. Closing the generator cancels the job. Raises as `request`."""
        await self._ensure()
        async with contextlib.aclosing(self._run(job, timeout)) as events:
            async for event in events:
                if is_last(event):
                    self._deaths = 0
                yield event

    async def _run(self, job: Job, timeout: float | None) -> AsyncGenerator[Event, None]:
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        call = await self._send(job)
        ended = False
        try:
            while not ended:
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await call.get()
                except TimeoutError:
                    raise JobTimeout(f"couldn't finish job in {self.command.name}: no end in {timeout} s") from None
                ended = is_last(event)
                if event["event"] == "error":
                    raise error_of(event)
                yield event
        finally:
            if not ended:
                self._abandon(call)

    async def _send(self, job: Job) -> Call:
        process = self._process
        if process is None or process.stdin is None:
            raise ChildDied(f"couldn't ask {self.command.name}: it is not running")
        self._number += 1
        line = job_line(self._number, job)
        call = self._calls[self._number] = Call(self._number)
        try:
            if not process.stdin.is_closing():  # libuv's loop would call a write a RuntimeError
                process.stdin.write(line)
                await process.stdin.drain()
        except OSError:
            pass  # the process has just died: `_live` fails the call and says why
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        return call

    def _abandon(self, call: Call) -> None:
        """Ask the child to end a job nobody waits for, and kill the child when it goes on for too long."""
        process = self._process
        if call.number not in self._calls or process is None or process.stdin is None:
            return
        call.abandoned = True
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.write(b'{"cancel":%d}\n' % call.number)
        asyncio.get_running_loop().call_later(self._cancel_grace, self._enforce, call, process)

    def _enforce(self, call: Call, process: asyncio.subprocess.Process) -> None:
        if self._calls.get(call.number) is not call or process is not self._process:
            return
        if any(other.number < call.number and not other.abandoned for other in self._calls.values()):
            # It may only be queued behind a job that somebody still wants.
            asyncio.get_running_loop().call_later(self._cancel_grace, self._enforce, call, process)
            return
        log.warning("event=child-ignored-cancel name=%s pid=%d", self.command.name, process.pid)
        _kill(process)

    # -- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Start the process and run its setup jobs (else the first job does it). Also reopens after `stop`."""
        self._closed = False
        await self._ensure()

    async def stop(self) -> None:
        """End the process (SIGTERM, 2 s, SIGKILL), reap it, and fail what was under way. Later jobs are refused."""
        self._closed = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        life, process = self._life, self._process
        if life is None:
            return
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        done, _ = await asyncio.wait([life], timeout=TERMINATE_GRACE)
        if not done and process is not None:
            _kill(process)
            await asyncio.wait([life])

    async def _ensure(self) -> None:
        if self.running:
            return
        if self._closed:
            raise ChildDied(f"couldn't start {self.command.name}: it was stopped")
        if self._starting is None or self._starting.done():
            # Its own task: all who wait share one start, and whoever gives up does not end it for the others.
            self._starting = asyncio.create_task(self._start(), name=f"start {self.command.name}")
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            if starting.cancelled():
                raise ChildDied(f"couldn't start {self.command.name}: it was stopped") from None
            raise

    async def _start(self) -> None:
        if self._life is not None:
            await asyncio.wait([self._life])
        if self._deaths:
            await asyncio.sleep(min(BACKOFF_FIRST * 2 ** (self._deaths - 1), BACKOFF_LAST))
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command.full_argv(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **self.command.env},
                limit=LINE_LIMIT,
                start_new_session=True,  # an interrupt from the terminal is ours to handle; and a group to kill
            )
        except OSError as e:
            self._deaths += 1
            raise ChildDied(f"couldn't start {self.command.name}: {e.strerror or e}") from e
        self._process = process
        self._life = asyncio.create_task(self._live(process), name=f"child {self.command.name}")
        log.info("event=child-started name=%s pid=%d", self.command.name, process.pid)
        try:
            for job in self._setup():
                async with contextlib.aclosing(self._run(job, self._setup_timeout)) as events:
                    async for _ in events:
                        pass
            self._ready = True
        finally:
            if not self._ready:
                _kill(process)

    async def _live(self, process: asyncio.subprocess.Process) -> None:
        """Read one process to its end, then fail what is left."""
        cause = ""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_stderr(process))
                cause = await self._read_events(process)
                if not cause:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(EXIT_GRACE):
                            await process.wait()
                _kill(process)  # without its output a child is of no use, whatever it still does
            await process.wait()
        finally:
            _kill(process)
            self._ready, self._process = False, None
            self._deaths += 0 if self._closed else 1
            last = next((line for line in reversed(self._stderr) if line.strip()), "")
            cause = cause or f"it ended with code {process.returncode}" + (f" ({last})" if last else "")
            error = ChildDied(f"couldn't finish job in {self.command.name}: {cause}")
            log.info("event=child-ended name=%s pid=%d code=%s", self.command.name, process.pid, process.returncode)
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.fail(error)

    async def _read_events(self, process: asyncio.subprocess.Process) -> str:
        """Hand each event to its job until the output ends; returns why we stopped, "" at the end of the output."""
        stdout = process.stdout
        while stdout is not None:
            try:
                line = await stdout.readline()
            except ValueError:
                return f"it wrote a line of more than {LINE_LIMIT} bytes"
            if not line:
                break
            event = parse_event(line)
            if event is None:
                self._stderr.append(line[:STDERR_WIDTH].decode(errors="replace").rstrip())
            elif (call := self._calls.get(event["id"])) is not None:
                if is_last(event):
                    del self._calls[call.number]
                if not call.put(event):
                    call.fail(JobCrashed(f"couldn't finish job in {self.command.name}: nobody read its events"))
        return ""

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        stderr, rest = process.stderr, b""
        while stderr is not None and (chunk := await stderr.read(4096)):
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            self._stderr.extend(line[:STDERR_WIDTH].decode(errors="replace") for line in lines if line)
            rest = rest[-STDERR_WIDTH:]
        if rest:
            self._stderr.append(rest.decode(errors="replace"))


def _kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL to the child's whole group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
