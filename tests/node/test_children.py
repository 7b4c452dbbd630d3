"""A child process answers every job, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from node import children
from node.children import Child, Command
from node.errors import ChildDied, JobCrashed, JobRefused, JobTimeout
from node.errors_serving import ContextTooLong
from node.jobs import LINE_LIMIT, Event

SCRIPT = """
    import json, os, signal, subprocess, sys, threading, time
    lock, cancelled = threading.Lock(), set()
    def send(**event):
        with lock:
            print(json.dumps(event), flush=True)
    def work(job):
        n, kind = job["id"], job["job"]
        if kind == "echo":
            for i in range(job.get("ticks", 0)):
                send(id=n, event="tick", i=i)
            send(id=n, event="done", said=job.get("said"), pid=os.getpid(), nice=os.nice(0))
        elif kind == "error":
            send(id=n, event="error", **job["error"])
        elif kind == "die":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        elif kind == "wait":
            while n not in cancelled:
                send(id=n, event="tick")
                time.sleep(0.01)
            send(id=n, event="done", finish_reason="cancelled")
        elif kind == "deaf":
            send(id=n, event="tick")
            time.sleep(600)
        elif kind == "noise":
            print("no event at all", flush=True)
            print(json.dumps({"id": 99999, "event": "tick"}), flush=True)
            send(id=n, event="done")
        elif kind == "wide":
            send(id=n, event="done", text="x" * job["size"])
        elif kind == "stubborn":
            grand = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            send(id=n, event="done", pids=[os.getpid(), grand.pid])
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "stillborn" in sys.argv:
        sys.exit("no model here")
    for line in sys.stdin:
        job = json.loads(line)
        if "cancel" in job:
            cancelled.add(job["cancel"])
        else:
            threading.Thread(target=work, args=(job,), daemon=True).start()
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Child]:
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")

    def make_child(*args: str, nice: int = 0, **options: object) -> Child:
        argv = (sys.executable, "-ISE", str(script), *args)
        return Child(Command(name="echo", argv=argv, nice=nice), **options)  # type: ignore[arg-type]

    return make_child


def run(child: Child, test: Callable[[Child], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            async with asyncio.timeout(120):
                await test(child)
        finally:
            await child.stop()
        assert child.pid is None

    asyncio.run(whole())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


async def until(holds: Callable[[], object]) -> None:
    """Wait for a condition; the test as a whole has a deadline."""
    while not holds():
        await asyncio.sleep(0.01)


def test_request_returns_done_and_passes_the_events_before_it(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        seen: list[Event] = []
        done = await child.request({"job": "echo", "ticks": 3, "said": "grüße"}, seen.append)
        assert done["said"] == "grüße"
        assert [event["i"] for event in seen] == [0, 1, 2]

    run(make(), test)


def test_requests_under_way_together_each_get_their_own_events(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(child.request({"job": "echo", "ticks": 20, "said": i}) for i in range(30)))
        assert [answer["said"] for answer in answers] == list(range(30))
        assert len({answer["pid"] for answer in answers}) == 1

    run(make(), test)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"code": "bad-rows", "message": "couldn't"}, JobRefused),
        ({"code": "worker-fault", "message": "couldn't"}, JobCrashed),
        ({"code": "context_length_exceeded", "message": "couldn't", "limit": 64}, ContextTooLong),
        ({}, JobRefused),
    ],
)
def test_error_event_becomes_the_error_of_its_code(
    make: Callable[..., Child], event: Event, error: type[Exception]
) -> None:
    async def test(child: Child) -> None:
        with pytest.raises(error) as caught:
            await child.request({"job": "error", "error": event})
        if isinstance(caught.value, JobRefused):
            assert caught.value.reason == event.get("code", "refused")
        if isinstance(caught.value, ContextTooLong):
            assert caught.value.limit == 64
        assert (await child.request({"job": "echo"}))["event"] == "done"

    run(make(), test)


def test_death_fails_every_request_and_the_next_use_starts_again(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        first = (await child.request({"job": "echo"}))["pid"]
        begun: list[list[Event]] = [[], [], []]
        waiting = [asyncio.create_task(child.request({"job": "wait"}, each.append)) for each in begun]
        await until(lambda: all(begun))
        with pytest.raises(ChildDied, match=r"code 3 \(the last words\)"):
            await child.request({"job": "die"})
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, ChildDied)
        assert "the last words" in child.stderr
        assert (await child.request({"job": "echo"}))["pid"] != first

    run(make(), test)


def test_killed_child_starts_again(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        pid = (await child.request({"job": "echo"}))["pid"]
        assert pid == child.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ChildDied):
            await child.request({"job": "wait"})
        assert (await child.request({"job": "echo"}))["pid"] != pid

    run(make(), test)


def test_deaths_in_a_row_are_followed_by_growing_pauses(
    make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "BACKOFF_FIRST", 0.2)

    async def test(child: Child) -> None:
        took = []
        for _ in range(3):
            since = time.monotonic()
            with pytest.raises(ChildDied):
                await child.request({"job": "die"})
            took.append(time.monotonic() - since)
        assert took[1] >= 0.2
        assert took[2] >= 0.4

    run(make(), test)


def test_setup_jobs_come_first_in_every_life(make: Callable[..., Child]) -> None:
    asked: list[int] = []

    def setup() -> list[dict[str, object]]:
        asked.append(1)
        return [{"job": "echo", "said": "loaded"}]

    async def test(child: Child) -> None:
        await child.request({"job": "echo"})
        with pytest.raises(ChildDied):
            await child.request({"job": "die"})
        await child.request({"job": "echo"})
        assert len(asked) == 2

    run(make(setup=setup), test)


def test_failed_setup_is_the_error_of_all_who_waited(make: Callable[..., Child]) -> None:
    refusal = {"job": "error", "error": {"code": "bad-model", "message": "couldn't load"}}

    async def test(child: Child) -> None:
        outcomes = await asyncio.gather(*(child.request({"job": "echo"}) for _ in range(4)), return_exceptions=True)
        assert [getattr(outcome, "reason", None) for outcome in outcomes] == ["bad-model"] * 4
        assert not child.running

    run(make(setup=lambda: [refusal]), test)


def test_who_gives_up_waiting_does_not_end_the_start_for_others(make: Callable[..., Child]) -> None:
    slow = {"job": "echo", "ticks": 2000}

    async def test(child: Child) -> None:
        hasty = asyncio.create_task(child.request({"job": "echo"}))
        patient = asyncio.create_task(child.request({"job": "echo"}))
        await asyncio.sleep(0.01)
        hasty.cancel()
        assert (await patient)["event"] == "done"
        assert hasty.cancelled()

    run(make(setup=lambda: [slow]), test)


def test_closing_a_stream_cancels_its_job(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        stream = child.stream({"job": "wait"})
        assert (await anext(stream))["event"] == "tick"
        pid = child.pid
        await stream.aclose()
        await until(lambda: not child._calls)
        assert child.pid == pid, "a job that ends when it is cancelled costs no process"

    run(make(), test)


def test_child_that_ignores_a_cancel_is_killed(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        stream = child.stream({"job": "deaf"})
        await anext(stream)
        pid = child.pid
        assert pid is not None
        await stream.aclose()
        await until(lambda: child.pid != pid)
        assert not is_alive(pid)
        assert (await child.request({"job": "echo"}))["pid"] != pid

    run(make(cancel_grace=0.3), test)


def test_cancelled_job_behind_a_wanted_one_does_not_cost_the_process(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        wanted = child.stream({"job": "wait"})
        await anext(wanted)
        unwanted = child.stream({"job": "deaf"})
        await anext(unwanted)
        pid = child.pid
        await unwanted.aclose()
        await asyncio.sleep(0.5)
        assert child.pid == pid
        await wanted.aclose()

    run(make(cancel_grace=0.2), test)


def test_job_without_an_answer_ends_at_its_deadline(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        since = time.monotonic()
        with pytest.raises(JobTimeout):
            await child.request({"job": "deaf"}, timeout=0.3)
        assert time.monotonic() - since < 5
        assert (await child.request({"job": "echo"}))["event"] == "done"

    run(make(), test)


def test_what_is_no_event_is_kept_as_error_text(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        await child.request({"job": "noise"})
        assert "no event at all" in child.stderr

    run(make(), test)


def test_line_over_the_limit_costs_the_process_not_our_memory(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        assert len((await child.request({"job": "wide", "size": LINE_LIMIT - 100}))["text"]) == LINE_LIMIT - 100
        with pytest.raises(ChildDied, match="wrote a line of more than"):
            await child.request({"job": "wide", "size": LINE_LIMIT * 2})
        with pytest.raises(JobRefused, match="limit"):
            await child.request({"job": "echo", "said": "x" * LINE_LIMIT})

    run(make(), test)


def test_stop_ends_a_child_that_ignores_sigterm_and_its_own_children(
    make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "TERMINATE_GRACE", 0.3)

    async def test(child: Child) -> None:
        pids = (await child.request({"job": "stubborn"}))["pids"]
        await child.stop()
        await until(lambda: not any(map(is_alive, pids)))
        with pytest.raises(ChildDied, match="stopped"):
            await child.request({"job": "echo"})
        await child.start()
        assert (await child.request({"job": "echo"}))["event"] == "done"

    run(make("stubborn"), test)


def test_stop_fails_what_is_under_way(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        begun: list[Event] = []
        waiting = asyncio.create_task(child.request({"job": "wait"}, begun.append))
        await until(lambda: begun)
        await child.stop()
        with pytest.raises(ChildDied):
            await waiting

    run(make(), test)


def test_stop_in_the_middle_of_a_start_leaves_nothing(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        starting = asyncio.create_task(child.start())
        while child.pid is None:
            await asyncio.sleep(0.001)
        pid = child.pid
        await child.stop()
        with pytest.raises(ChildDied):
            await starting
        assert not is_alive(pid)

    run(make(setup=lambda: [{"job": "wait"}]), test)


def test_child_that_cannot_start_says_why(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        with pytest.raises(ChildDied, match="no model here"):
            await child.request({"job": "echo"})

    run(make("stillborn"), test)


def test_missing_program_is_an_error_of_ours() -> None:
    async def test(child: Child) -> None:
        with pytest.raises(ChildDied):
            await child.request({"job": "echo"})

    run(Child(Command(name="none", argv=("/nonexistent/program",))), test)


@pytest.mark.skipif(not shutil.which("nice"), reason="no nice here")
def test_niceness_is_passed_on(make: Callable[..., Child]) -> None:
    async def test(child: Child) -> None:
        assert (await child.request({"job": "echo"}))["nice"] == os.nice(0) + 5

    run(make(nice=5), test)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("setpriv"), reason="the death signal is Linux's")
def test_kill_of_the_parent_takes_the_child_along(tmp_path: Path) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent(
            '''
            import asyncio, sys
            from node.children import Child, Command
            async def main():
                code = """import time; input(); print('{"id":1,"event":"done"}', flush=True); time.sleep(600)"""
                child = Child(Command(name="sleeper", argv=(sys.executable, "-c", code)))
                await child.request({"job": "sleep"})
                print(child.pid, flush=True)
                await asyncio.sleep(600)
            asyncio.run(main())
            '''
        ),
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, str(parent)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.kill()
        end = time.monotonic() + 60
        while is_alive(pid):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_child_that_dies_at_once_is_said_to_have_died_on_the_loop_of_the_daemon_too() -> None:
    """libuv's loop raises RuntimeError for a write to a pipe that has closed, where asyncio's own says nothing."""

    async def died() -> str:
        child = Child(Command(name="gone", argv=("/nonexistent/python",)), setup=lambda: [{"job": "echo"}])
        with pytest.raises(ChildDied) as caught:
            await child.start()
        await child.stop()
        return str(caught.value)

    async def often() -> set[str]:
        return {(await died())[:24] for _ in range(60)}

    assert uvloop.run(often()) == {"couldn't finish job in g"}
