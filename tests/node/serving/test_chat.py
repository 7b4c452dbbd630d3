"""`fishernet chat` shows what a served model says, where it came from, and nothing that could move the terminal."""

from __future__ import annotations

import http.server
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from node import cli
from node.cli.chat import Talk
from node.errors_serving import AskFailed, AskRefused
from node.serving import client
from node.serving.client import Server
from protocol.ids import Digest
from tests.support.live_engine import Live

RELEASE = Digest("c4" * 32)


@pytest.fixture
def server(live: Live) -> Iterator[Server]:
    """The live API with a release."""
    path, digest = live.vector(41)
    live.loop.run(live.serving.set_release(41, RELEASE, path, model=digest))
    yield Server(url=f"http://127.0.0.1:{live.port}/v1", timeout=60)
    live.serving.drop_release(41)


def test_question_on_stdin_gives_the_answer_alone_on_stdout(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n"))
    assert cli.run(["chat", "--url", server.url, "--max-tokens", "6", "--temperature", "0"]) == 0
    said = capsys.readouterr()
    assert said.out.strip()
    assert "release-41" not in said.out
    assert f"[release-41, {RELEASE[:12]}, 6 tokens, length]" in said.err


def test_json_gives_one_value_with_model_release_and_usage(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.run(
            [
                "--json",
                "chat",
                "--url",
                server.url,
                "--max-tokens",
                "5",
                "--temperature",
                "0",
                "--model",
                "base",
                "Hello",
                "there",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "base"
    assert told["answer"]
    assert told["usage"]["completion_tokens"] == 5
    assert told["finish_reason"] == "length"
    assert len(told["release"]) == len(told["head"]) == 64


def test_answers_and_questions_go_along_with_the_next_question(server: Server) -> None:
    talk = Talk(server=server, model="latest", system="Be brief.", settings={"max_tokens": 4})
    first = talk.ask("One?", show=None)
    second = talk.ask("Two?", show=None)
    assert [m["content"] for m in talk.history] == ["One?", first.text, "Two?", second.text]
    assert second.usage["prompt_tokens"] > first.usage["prompt_tokens"] + len("Two?")


def test_pieces_come_one_after_another_and_add_up_to_the_answer(server: Server) -> None:
    pieces: list[str] = []
    answer = Talk(server=server, model="base", settings={"max_tokens": 12, "temperature": 0}).ask(
        "Tell me", show=pieces.append
    )
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text


def test_leaving_in_the_middle_cancels_the_answer_at_the_server(server: Server, live: Live) -> None:
    question = {"role": "user", "content": "Go on and on"}
    with client.ask(server, "base", [question], settings={"max_tokens": 400, "temperature": 0}) as (_, pieces):
        next(pieces)
        assert live.serving.under_way == 1
    end = time.monotonic() + 60
    while live.serving.under_way:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_interrupt_keeps_what_was_said_and_the_conversation(server: Server) -> None:
    talk = Talk(server=server, model="base", settings={"max_tokens": 400, "temperature": 0})
    seen: list[str] = []

    def stop_early(piece: str) -> None:
        seen.append(piece)
        if len(seen) == 3:
            raise KeyboardInterrupt

    answer = talk.ask("Go on and on", show=stop_early)
    assert answer.finish == "cancelled"
    assert talk.history[-1]["content"] == answer.text == "".join(seen)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://127.0.0.1:9/v1", "refused"),
        ("ftp://x/v1", "http or https"),
        ("nonsense", "http or https"),
        ("http://127.0.0.1:99999/v1", "ort"),
    ],
)
def test_server_that_is_not_there_is_said_with_the_next_step(url: str, what: str) -> None:
    with pytest.raises(AskFailed, match=what):
        client.models(Server(url=url, timeout=2))


def test_refusal_of_the_server_is_shown_in_its_own_words(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(server=server, model="relase-41")
    with pytest.raises(AskRefused, match="release-41") as caught:
        talk.ask("Hello", show=None)
    assert caught.value.status == 404
    assert talk.history == []
    assert cli.run(["chat", "--url", server.url, "--model", "nothing", "Hello"]) == 1
    assert "couldn't find model" in capsys.readouterr().err


class Hostile(http.server.BaseHTTPRequestHandler):
    """A server of somebody else: bad bytes, escape sequences, an end in the middle."""

    lines: tuple[bytes, ...] = ()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        for line in self.lines:
            self.wfile.write(line)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[Server]:
    with http.server.HTTPServer(("127.0.0.1", 0), Hostile) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield Server(url=f"http://127.0.0.1:{found.server_address[1]}/v1", timeout=5)
        found.shutdown()


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"


def test_model_cannot_move_the_cursor_or_colour_the_terminal(
    hostile: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"model":"m\\u001b[2J"}\n\ndata: [DONE]\n\n'
    Hostile.lines = (chunk(content="a\x1b]0;owned\x07\n\ud800b"), b": comment\n\n", b"data: not json\n\n", end)
    assert cli.run(["chat", "--url", hostile.url, "--model", "m", "x"]) == 0
    said = capsys.readouterr()
    assert said.out == "a\ufffd]0;owned\ufffd\n\ufffdb\n"
    assert "\x1b[2J" not in said.err


@pytest.mark.parametrize(
    "lines",
    [
        (chunk(content="a"),),
        (chunk(content="a"), b'data: {"error":{"message":"the engine ended"}}\n\n'),
        (b"<html>no API</html>",),
        (b'data: {"choices":"x"}\n\ndata: [1]\n\n',),
    ],
)
def test_answer_that_breaks_off_is_an_error_and_not_an_answer(hostile: Server, lines: tuple[bytes, ...]) -> None:
    Hostile.lines = lines
    talk = Talk(server=hostile, model="m")
    with pytest.raises(AskFailed):
        talk.ask("x", show=None)
    assert talk.history == []


def test_conversation_in_a_terminal_obeys_its_commands_and_survives_an_interrupt(server: Server) -> None:
    """A real pseudo-terminal: commands, an answer, Ctrl-C in the middle of one, and the end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "node", "chat", "--url", server.url, "--model", "base", "--max-tokens", "400"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    try:
        os.close(theirs)
        screen = Screen(ours)
        screen.until("> ")
        screen.type("/nonsense\n")
        screen.until("/help lists them")
        screen.type("/model latest\n")
        screen.until("model latest")
        screen.type("Go on and on\n")
        screen.until("> Go on and on\r\n", more=20)  # behind the prompt: what was typed early is echoed twice
        process.send_signal(signal.SIGINT)
        screen.until("cancelled")
        screen.type("/model base\n")
        screen.until("model base")
        screen.type("/reset\n")
        screen.until("(forgotten)")
        screen.type("/quit\n")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


class Screen:
    """The other side of a pseudo-terminal."""

    def __init__(self, file: int) -> None:
        self.file, self.seen, self.at = file, "", 0

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def until(self, text: str, *, more: int = 0) -> None:
        """Wait until `text`, and `more` characters behind it, were shown since the last wait."""
        import select

        end = time.monotonic() + 60
        while (found := self.seen.find(text, self.at)) < 0 or len(self.seen) < found + len(text) + more:
            assert time.monotonic() < end, self.seen
            if select.select([self.file], [], [], 0.2)[0]:
                self.seen += os.read(self.file, 4096).decode(errors="replace")
        self.at = found + len(text)


def test_chat_needs_neither_torch_nor_a_home(tmp_path: object) -> None:
    code = (
        "import sys; from node import cli; cli.run(['chat', '--url', 'http://127.0.0.1:9/v1', 'x']);"
        "bad = {'torch', 'transformers', 'httpx', 'fastapi', 'numpy'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    environment = {**os.environ, "FISHERNET_HOME": f"{tmp_path}/none"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
