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
from node.blobs import BlobStore
from protocol.ids import digest

pytest.importorskip("trio")
BLOB = random.Random(3).randbytes(600_000)


async def observe(home, into: Path, *addresses: str):
    command = ["-m", "node.observer", "--home", str(home.folder), "--into", str(into), "--collective", COLLECTIVE]
    child = await asyncio.create_subprocess_exec(
        sys.executable, *command, *addresses, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await child.communicate()
    return child.returncode, json.loads(out), err.decode()


@live
async def test_observer_confirms_what_two_nodes_hold_and_nothing_else(tmp_path):
    one, two, three = homes(tmp_path)
    members, into = [one, two, three], tmp_path / "seen"
    async with Node(one, members) as a, Node(two, members, known=[a.address]) as b:
        a.found()
        a.append("contribution.published", blob=a.blobs.put(BLOB), size=len(BLOB))
        b.append(n=0)
        await until(lambda: a.size(two) == 1 and b.size(one) == 2)

        code, report, err = await observe(three, into, a.address, b.address)
        assert (code, report["verdict"]) == (0, "clean"), err
        feeds = {feed["member"]: feed for feed in report["feeds"]}
        assert {member: feed["status"] for member, feed in feeds.items()} == {
            home.member: "confirmed" for home in (one, two)
        }
        assert feeds[one.member]["confirmed_by"] == sorted([one.member, two.member])
        assert report["blobs"] == [{"digest": digest(BLOB), "size": len(BLOB), "fetched": True, "from": one.member}]
        assert BlobStore(into / "blobs").read(digest(BLOB), len(BLOB)) == BLOB
        with Store.open(into / "ledger.db", writer=False) as store:
            assert store.head(COLLECTIVE, one.member) == a.store.head(COLLECTIVE, one.member)

        code, report, _ = await observe(three, tmp_path / "alone", a.address, "/ip4/127.0.0.1/tcp/1/p2p/" + three.peer)
        assert (code, report["verdict"]) == (0, "could-not-check")
        assert {feed["status"] for feed in report["feeds"]} == {"could-not-check"}
        assert [bool(node["error"]) for node in report["nodes"]] == [False, True]


def test_observer_that_reaches_nobody_could_not_check(tmp_path):
    (home,) = homes(tmp_path, "a")
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{homes(tmp_path, 'b')[0].peer}"
    code, report, _ = asyncio.run(observe(home, tmp_path / "seen", nobody))
    assert (code, report["verdict"], report["feeds"]) == (2, "could-not-check", [])


def test_bad_arguments_are_an_error_object(tmp_path):
    (home,) = homes(tmp_path, "a")
    code, answer, _ = asyncio.run(observe(home, tmp_path / "seen", "/ip4/127.0.0.1/tcp/1"))
    assert (code, answer["error"]["kind"], answer["error"]["code"]) == (2, "refused", "malformed")
