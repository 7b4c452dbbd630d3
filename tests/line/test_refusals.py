"""Promises when something cannot be: every refusal names its cause, ends with a code, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from line import Line, published, refused, running
from real_node import add_rows, fishernet, make_node, sentences, until

from contrib import models
from node import config
from node.cli import run
from node.home import model_cache
from protocol.errors import FishernetError


@pytest.fixture
def alone(tmp_path):
    """A collective of one, for what needs no peers."""
    node = make_node(tmp_path, "alone", train__auto=False)
    line = Line.found([node], wait_for=1)
    yield node
    line.stop()


def up(node, **environment):
    """`fishernet up` where it is expected to end by itself: exit code and what it said last."""
    done = node.cli("up", "--json", **environment)
    return done.returncode, json.loads(done.stderr.splitlines()[-1])["error"]


@contextlib.contextmanager
def taken_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_second_daemon_on_the_same_home_is_refused_and_the_first_goes_on(line):
    node = line["security"]
    code, error = up(node)
    assert (code, error["code"]) == (1, "home-busy")
    assert str(node.pid) in error["message"]
    assert node.status()["ready"]


def test_a_command_that_writes_goes_to_the_running_daemon_instead_of_the_home(line):
    node = line["security"]
    listed = json.loads(node.cli("data", "list", "--json").stdout)
    assert [d["name"] for d in listed["datasets"]] == [node.name]
    assert node.status()["ready"]


def test_a_taken_network_port_is_named(alone):
    with taken_port() as port:
        config.update(alone.home.config_file, "network", "listen", [f"/ip4/127.0.0.1/tcp/{port}"])
        code, error = up(alone)
    assert (code, error["code"]) == (2, "port-in-use")
    assert str(port) in error["message"]


def test_a_taken_api_port_is_named(alone):
    with taken_port() as port:
        config.update(alone.home.config_file, "serve", "port", port)
        code, error = up(alone)
    assert (code, error["code"]) == (2, "address")
    assert str(port) in error["message"]


def test_a_wrong_passphrase_starts_nothing_and_the_right_one_does(tmp_path):
    made = fishernet(
        "init", "--home", str(tmp_path / "locked"), "--name", "locked", "--json", FISHERNET_PASSPHRASE="right one"
    )
    assert json.loads(made.stdout)["locked"] is True
    home = ["--home", str(tmp_path / "locked"), "--json"]
    for given, code in (("wrong one", "wrong-passphrase"), ("right one", "no-collective")):
        done = fishernet("up", *home, FISHERNET_PASSPHRASE=given)
        assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (1, code)


def test_a_node_with_another_base_is_told_so_and_stays_out(line, auditor, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models.tiny_folder(), other, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    base = models.add(str(other), model_cache())
    before = auditor.home.config_file.read_bytes()
    config.update(auditor.home.config_file, "node", "model", base.digest)
    try:
        code, error = up(auditor)
    finally:
        auditor.home.config_file.write_bytes(before)
    assert (code, error["code"]) == (2, "wrong-base")
    assert base.digest[:12] in error["message"]
    assert models.find("tiny", model_cache()).digest[:12] in error["message"]
    assert "tiny" in error["hint"]
    assert auditor.size() == 0
    assert auditor.fold().known, "it has read the charter, and written nothing"


GOOD = b'{"text": "a good row"}\n'
BAD_FILES = {
    "empty-dataset": ("rows.jsonl", b"", "no rows"),
    "unreadable-row": ("rows.jsonl", GOOD + b'{"text": "half a', "rows.jsonl:2"),
    "wrong-encoding": ("rows.jsonl", GOOD + '{"text": "caf\xe9"}\n'.encode("latin-1"), "rows.jsonl:2"),
    "unreadable-file": ("rows.parquet", b"not parquet at all", "rows.parquet"),
    "mixed-kinds": ("rows.jsonl", GOOD + b'{"prompt": "a", "completion": "b"}\n', "rows.jsonl:2"),
}


@pytest.mark.parametrize("code", BAD_FILES)
def test_rows_that_cannot_be_read_are_named_and_none_of_the_file_is_kept(alone, tmp_path, capsys, code):
    name, data, named = BAD_FILES[code]
    add_rows(alone, sentences("kept", 12))
    before = alone.ask("data.list"), alone.own()
    file = tmp_path / name
    file.write_bytes(data)
    assert run(["data", "add", str(file), "--dataset", "new", "--json", "--home", str(alone.home.path)]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == code
    assert named in error["message"]
    assert (alone.ask("data.list"), alone.own()) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up what is left of a file system, to the last page."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 18, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def test_a_full_disk_costs_at_most_a_run_and_never_the_node(small_disk):
    node = make_node(small_disk, "small", sentences("small"), train__auto=False)
    with running(Line.found([node], wait_for=1)) as line:
        before = node.own()
        filler = fill(small_disk)
        with pytest.raises(FishernetError, match="the disk is full"):
            line.train()
        # Room was laid out in the ledger's log: what was read of the rows is on record, and no file had room for the rest.
        assert node.own()[: len(before)] == before
        assert [kind for kind, _ in node.own()[len(before) :]] == ["access.decided", "data.used"]
        assert published(node) == []
        filler.unlink()

        with refused(lambda: node.call("train.now", 90, steps=40)) as errors:
            until(lambda: node.status()["training"]["state"] == "training", step_s=0.02, what="it trains")
            filler = fill(small_disk)
        assert len(errors) == 1
        assert "No space left" in str(errors[0])
        assert published(node) == []
        filler.unlink()

        line.release()
        assert [b["number"] for b in published(node)] == [1]
        assert node.running
        audited = node.cli("audit")
        assert audited.returncode == 0, audited.stdout
