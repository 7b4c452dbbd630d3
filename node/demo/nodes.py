"""One node of the demo, driven as an operator drives it: commands in processes, HTTP for answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from node import control
from node.errors import NodeError
from node.home import Home

_COMMAND_S: Final = 300.0
_STOP_S: Final = 8.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()


@dataclass(slots=True)
class DemoNode:
    """A home and, once started, its daemon."""

    name: str
    home: Path
    port: int
    member: str = ""
    peer: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None)

    # -- commands ----------------------------------------------------------------------------------------------------
    def cli(self, *args: str) -> Any:
        """Run one command with --json and return its result.

        Raises:
            NodeError: it failed; its own message.
        """
        command = [sys.executable, "-m", "node", *args, "--home", str(self.home), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
        if done.returncode not in {0, 1} or not done.stdout.strip():
            raise NodeError(f"couldn't do {' '.join(args[:2])} on {self.name}: {done.stderr.strip()[-800:]}")
        return json.loads(done.stdout)

    def init(self, model: str, settings: Mapping[str, str], *, preload: bool) -> None:
        """Make the home with these settings of [train]; it listens on this machine only."""
        toml = self.home.with_suffix(".toml")
        listen = f'["/ip4/127.0.0.1/tcp/{self.port or 4242}"]'
        lines = ["[node]", f'name = "{self.name}"', "[network]", f"listen = {listen}", "[serve]", "port = 0"]
        lines += [f"preload = {str(preload).lower()}", "[train]"]
        toml.write_text("\n".join([*lines, *(f"{k} = {v}" for k, v in settings.items()), ""]), encoding="utf-8")
        made = self.cli("init", "--config", str(toml), "--model", model)
        self.member, self.peer = str(made["member"]), str(made["peer"])

    def address(self) -> str:
        """Where others dial this node."""
        return f"/ip4/127.0.0.1/tcp/{self.port}/p2p/{self.peer}"

    def addresses(self) -> Sequence[str]:
        """What `observe` is given."""
        return [self.address()]

    def observe(self, collective: str, addresses: Sequence[str]) -> Any:
        """Fetch and audit everything from outside, as this member."""
        return self.cli("observe", "--collective", collective, *addresses)

    # -- the daemon --------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """`fishernet up`, its log beside the home."""
        with self.home.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "node", "up", "--home", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def call(self, name: str) -> Any:
        """Ask the daemon."""
        return control.call(Home(path=self.home), name, {}, timeout=_COMMAND_S)

    def status(self) -> Any:
        """What the daemon says of itself."""
        return self.call("status")

    def check_alive(self) -> None:
        """Raise NodeError with the last words of a daemon that ended."""
        if self.process is not None and self.process.poll() is not None:
            print(self.last_words(), flush=True)
            raise NodeError(f"couldn't go on: node {self.name} ended; its log is above")

    def last_words(self) -> str:
        """The end of the daemon's log."""
        log = self.home.with_suffix(".log")
        return log.read_text(encoding="utf-8", errors="replace")[-1500:] if log.exists() else ""

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not end."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(_STOP_S)

    # -- the API -----------------------------------------------------------------------------------------------------
    def answers(self, prompt: str) -> dict[str, str]:
        """A short greedy completion of `prompt` by every served model."""
        for _ in range(240):
            serving = self.status()["serving"]
            if serving["url"]:
                break
            time.sleep(0.5)
        else:
            raise NodeError(f"couldn't ask {self.name}: its API did not come up")
        url = urlsplit(str(serving["url"]))
        return {model: _complete(url.netloc, url.path, str(model), prompt) for model in serving["models"]}


def _complete(netloc: str, path: str, model: str, prompt: str) -> str:
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0})
    connection = http.client.HTTPConnection(netloc, timeout=_COMMAND_S)
    try:
        connection.request("POST", f"{path}/completions", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "choices" not in answer:
        raise NodeError(f"couldn't get an answer of {model}: {answer}")
    return str(answer["choices"][0]["text"])
