"""Promises about private rows: nothing of them is in what a node sends, and the search for them would find it."""

from __future__ import annotations

import base64
import gzip
import json
import struct

import pytest
import zstandard
from canaries import WINDOW, found, messages, plant
from line import Line, make_node, running, sentences, until

CANARIES = plant("the rows of these tests")


def tapped_node(folder, name):
    tap = folder / f"{name}.tap"
    node = make_node(folder, name, sentences(name, 60, CANARIES), module=("tapped", "--tap", str(tap)), train__rounds=1)
    return node, tap


def test_nothing_of_a_row_is_in_what_a_node_sends_and_a_node_that_leaks_is_found_out(tmp_path):
    (north, north_tap), (south, south_tap) = (tapped_node(tmp_path, name) for name in ("north", "south"))
    with running(Line.found([north, south], wait_for=2, patience_ms=60_000)) as line:
        line.agree(1)
        line.settle()
        for node, tap in ((north, north_tap), (south, south_tap)):
            sent = messages(tap)
            [published] = [body for type_, body in node.own() if type_ == "contribution.published"]
            blob = (node.home.blobs / str(published["blob"])).read_bytes()
            assert blob in b"".join(sent), "the tap sees the contribution"
            assert found(sent, CANARIES) == set()

        south.stop()
        size = len(messages(south_tap))
        south.start("--leak")
        until(lambda: any(t == "note.told" for t, _ in south.own()), what="it leaks")
        told = south.size()
        until(lambda: north.fold().sizes[south.member] >= told, what="the others have what it told")
        assert found(messages(south_tap)[size:], CANARIES)
        leaked = next(b for t, b in reversed(south.own()) if t == "contribution.published")["blob"]
        until((north.home.blobs / str(leaked)).exists, what="the others have the blob")
        sent = messages(south_tap)[size:]
        assert found([m for m in sent if b"note.told" not in m], CANARIES), "the blob alone is found too"
        assert found(messages(north_tap), CANARIES) == set(), "who received it passed nothing on"


ROW = f"a note, {CANARIES[0]}, and more of it"
WRAPPED = {
    "plain": ROW.encode(),
    "json": json.dumps({"text": ROW}).encode(),
    "a window of it": CANARIES[0][9 : 9 + WINDOW].encode(),
    "backwards": ROW[::-1].encode(),
    "wide": ROW.encode("utf-16"),
    "token ids": struct.pack(f"<{len(ROW)}I", *ROW.encode()),
    "hex": b"x" + ROW.encode().hex().encode(),
    "base64": b"xyz" + base64.urlsafe_b64encode(ROW.encode()),
    "zstd": b"head" + zstandard.compress(ROW.encode() * 9),
    "gzip in base64": base64.b64encode(gzip.compress(ROW.encode())),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_the_search_finds_a_row_however_it_is_wrapped(wrapping):
    data = WRAPPED[wrapping]
    assert found([data], CANARIES) == {CANARIES[0]}
    assert found([data[: len(data) // 2], data[len(data) // 2 :]], CANARIES) == {CANARIES[0]}


def test_the_search_finds_nothing_in_other_rows():
    assert found([row.encode() for row in sentences("clinic")], CANARIES) == set()
