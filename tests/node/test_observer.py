"""Promises of the outside look: py-libp2p in its own process against real nodes."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from peers import COLLECTIVE, Node, homes, live, until

from ledger.store import Store
from node.syncing.blobs import BlobStore
from protocol.ids import digest

pytest.importorskip("trio")
BLOB = random.Random(3).randbytes(600_000)


SCRIPT = """
import json, sys
from node.syncing.observer import main
for arguments in json.loads(sys.argv[1]):
    print(main(arguments))
"""


def arguments(home, into: Path, *addresses: str):
    return ["--home", str(home.folder), "--into", str(into), "--collective", COLLECTIVE, *addresses]


async def observe(*looks):
    """Exit code and answer of each look, one after the other in one process: the library takes seconds to import."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, json.dumps(looks), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await child.communicate()
    lines = out.decode().splitlines()
    assert len(lines) == 2 * len(looks), err.decode()
    return [(int(code), json.loads(answer)) for answer, code in zip(lines[::2], lines[1::2], strict=True)]


@live
async def test_observer_confirms_what_two_nodes_hold_and_nothing_else(tmp_path):
    one, two, three = homes(tmp_path)
    members, into = [one, two, three], tmp_path / "seen"
    async with Node(one, members) as a, Node(two, members, known=[a.address]) as b:
        a.found()
        a.append("contribution.published", blob=a.blobs.put(BLOB), size=len(BLOB))
        b.append(n=0)
        await until(lambda: a.size(two) == 1 and b.size(one) == 2)
        nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{three.peer}"
        (code, report), (alone_code, alone) = await observe(
            arguments(three, into, a.address, b.address), arguments(three, tmp_path / "alone", a.address, nobody)
        )
        assert (code, report["verdict"]) == (0, "clean"), report
        feeds = {feed["member"]: feed for feed in report["feeds"]}
        assert {member: feed["status"] for member, feed in feeds.items()} == {
            home.member: "confirmed" for home in (one, two)
        }
        assert feeds[one.member]["confirmed_by"] == sorted([one.member, two.member])
        assert report["blobs"] == [{"digest": digest(BLOB), "size": len(BLOB), "fetched": True, "from": one.member}]
        assert BlobStore(into / "blobs").read(digest(BLOB), len(BLOB)) == BLOB
        with Store.open(into / "ledger.db", writer=False) as store:
            assert store.head(COLLECTIVE, one.member) == a.store.head(COLLECTIVE, one.member)

        assert (alone_code, alone["verdict"]) == (0, "could-not-check")
        assert {feed["status"] for feed in alone["feeds"]} == {"could-not-check"}
        assert [bool(node["error"]) for node in alone["nodes"]] == [False, True]


def test_observer_that_reaches_nobody_or_is_asked_wrongly_never_says_clean(tmp_path):
    one, two = homes(tmp_path, "ab")
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{two.peer}"
    (code, report), (wrong_code, wrong) = asyncio.run(
        observe(arguments(one, tmp_path / "seen", nobody), arguments(one, tmp_path / "seen", "/ip4/127.0.0.1/tcp/1"))
    )
    assert (code, report["verdict"], report["feeds"]) == (2, "could-not-check", [])
    assert (wrong_code, wrong["error"]["kind"], wrong["error"]["code"]) == (2, "refused", "malformed")
