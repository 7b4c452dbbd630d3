"""Promises of `fishernet storage`: what lies here and why is told, and prune drops only what may go."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from seats import Table

from node import commands, storing
from node.cli import storage as cli
from node.errors_network import BlobCorrupt
from node.sections import Storage
from tests.node.test_erasing import session_of


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path, ("ada", "bob"))
    yield found
    found.close()


def session_with_orphan(table: Table):
    """A session with a released blob of each member, and an old blob that nothing names."""
    table.release()
    ada = table["ada"]
    orphan = ada.blobs.put(b"left by a former life")
    os.utime(ada.blobs.path(orphan), (1, 1))
    session = session_of(ada)
    session.config = session.config.model_copy(update={"storage": Storage(min_free_mib=0)})
    return session, orphan


def test_what_lies_here_is_told_for_people_and_programs(table: Table, capsys) -> None:
    session, _ = session_with_orphan(table)
    told = asyncio.run(storing.show(session, {}))
    assert json.loads(json.dumps(told))["by"]["release"]["blobs"] == 2
    assert told["by"]["unknown"]["blobs"] == 1
    out = Console(file=io.StringIO(), width=120)
    cli._shown(out, told)
    shown = capsys.readouterr().out + out.file.getvalue()
    assert "damaged" not in shown
    assert "releases that are kept" in shown
    assert "named by nothing" in shown


def test_a_stopped_node_drops_what_may_go_only_when_told_that_it_may_be_the_last(table: Table, capsys) -> None:
    session, orphan = session_with_orphan(table)
    blobs = table["ada"].blobs
    kept = set(blobs.digests()) - {orphan}
    for args, left in (({}, {orphan}), ({"rare": True, "dry": True}, {orphan}), ({"rare": True}, set())):
        told = asyncio.run(storing.prune(session, args))
        assert set(blobs.digests()) == kept | left
        cli._pruned(Console(file=io.StringIO()), told)
    assert "nobody could be asked" in capsys.readouterr().out


def test_what_the_disk_damaged_is_counted_and_dropped_with_the_rest(table: Table, capsys) -> None:
    session, orphan = session_with_orphan(table)
    blobs = table["ada"].blobs
    blobs.path(orphan).write_bytes(b"bytes of another digest")
    with pytest.raises(BlobCorrupt):
        blobs.read(orphan, 1 << 20)
    told = asyncio.run(storing.show(session, {}))
    assert told["damaged"] == {"blobs": 1, "bytes": 23}
    cli._shown(Console(file=io.StringIO()), told)
    assert "damaged on the disk and put aside: 1 blobs, 0.0 KiB" in capsys.readouterr().out
    asyncio.run(storing.prune(session, {"dry": True}))
    assert blobs.damaged() == (1, 23)
    asyncio.run(storing.prune(session, {}))
    assert blobs.damaged() == (0, 0)


def test_commands_are_known_and_explain_their_units() -> None:
    assert {"storage.show", "storage.prune"} <= commands.COMMANDS.keys()
    assert "storage.show" in commands.READING
    assert "storage.prune" not in commands.READING
    text = CliRunner().invoke(cli.storage, ["--help"]).output
    assert "quota_mib" in text
    assert "MiB" in text
