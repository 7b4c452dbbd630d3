"""What the command line says when something is missing or wrong: which thing, and what to do next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli import run

SRC = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A node of the test model without a collective."""
    monkeypatch.setenv("FISHERNET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    assert run(["init", "--name", "clinic", "--model", "tiny"]) == 0
    assert "next: fishernet model add tiny\n" in capsys.readouterr().out
    return tmp_path / "home"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) in {1, 2}
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit",), ("log",), ("replay", "1"), ("conflicts",), ("export", "latest", "--out", "x"), ("key", "rotate"),
        ("prove", "abcdef12"), ("forget", "me"), ("ledger", "export", "--format", "jsonl", "--out", "x"),
        ("collective", "show"), ("storage",), ("fork", "list"), ("bundle", "export", "x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_node_without_a_collective_is_told_how_to_get_one(
    arguments: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, *arguments)
    assert "hint:  fishernet collective create --name NAME, or fishernet collective join ID MULTIADDR\n" in shown


@pytest.mark.parametrize("command", ["verify-bundle", "fork check", "forget --verify"])
def test_a_file_of_another_kind_is_named_with_what_was_expected(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    for content, what in ((b"not at all", "it is not JSON"), (b"\xff", "it is not UTF-8")):
        file.write_bytes(content)
        shown = said(capsys, *command.split(), str(file))
        assert f"couldn't read {file} as a proof" in shown
        assert shown.endswith(f": {what}\n")


def test_a_name_that_is_nearly_a_recipe_gets_the_recipe_and_where_all_are(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("trimmed-mean", "trimed-mean/1"):
        shown = said(capsys, "recipes", text)
        assert "did you mean trimmed-mean/1?" in shown
        assert "`fishernet recipes`" in shown
    assert "did you mean" not in said(capsys, "recipes", "zzz")


def test_an_address_without_a_peer_is_shown_and_so_is_the_form_of_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, "peer", "add", "/ip4/192.0.2.7/tcp/4242")
    assert "'/ip4/192.0.2.7/tcp/4242'" in shown
    assert "/p2p/12D3KooW..." in shown
    assert "not 'clinic'" in said(capsys, "collective", "invite", "clinic")


def test_what_is_missing_on_a_line_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "completion")
    assert "Choose from: bash, zsh, fish\n" in shown
    assert "\ufffd" not in shown


def test_examples_in_a_help_stand_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("recipes", "--help"):
        assert run([command, "--help"] if command != "--help" else [command]) == 0
        shown = capsys.readouterr().out
        assert "\\b" not in shown
        assert (
            sum(line.strip().startswith(("fishernet ", "For example:  fishernet ")) for line in shown.splitlines()) > 2
        )


@pytest.mark.parametrize(
    ("command", "cure"),
    [
        ("key backup FILE", "FISHERNET_BACKUP_PASSPHRASE"),
        ("backup FILE", "FISHERNET_BACKUP_PASSPHRASE"),
        ("init --passphrase --home FILE", "--passphrase-file"),
    ],
)
def test_where_nobody_can_be_asked_for_a_passphrase_it_is_said_how_to_give_it(
    command: str, cure: str, home: Path, tmp_path: Path
) -> None:
    """In a session without a terminal, as under cron."""
    words = [str(tmp_path / "new") if word == "FILE" else word for word in command.split()]
    done = subprocess.run(
        [sys.executable, "-c", "from node.cli import main; main()", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=SRC,
        env={k: v for k, v in os.environ.items() if k not in {"FISHERNET_PASSPHRASE", "FISHERNET_BACKUP_PASSPHRASE"}},
        start_new_session=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "there is no terminal" in done.stderr
    assert cure in done.stderr
    assert "Warning" not in done.stderr
    assert not (tmp_path / "new").exists()
