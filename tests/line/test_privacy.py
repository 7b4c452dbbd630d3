"""Promises about private rows: nothing of them is in what a node sends, and the search for them would find it."""

from __future__ import annotations

import base64
import gzip
import json
import struct

import pytest
import zstandard
from canaries import WINDOW, found, messages, plant
from line import Line, running
from real_node import make_node, sentences, until

CANARIES = plant("the rows of these tests")


def test_nothing_of_a_row_is_in_what_a_node_sends_and_a_node_that_leaks_is_found_out(tmp_path):
    tap = tmp_path / "north.tap"
    north = make_node(
        tmp_path, "north", sentences("north", 60, CANARIES), module=("tapped", "--tap", str(tap)), train__rounds=1
    )
    reader = make_node(tmp_path, "reader")
    with running(Line.found([north, reader], {"reader": "auditor"}, wait_for=1)) as line:
        line.agree(1)
        line.settle()
        [published] = [body for type_, body in north.own() if type_ == "contribution.published"]
        until((reader.home.blobs / str(published["blob"])).exists, what="the reader has the contribution")
        sent = messages(tap)
        assert (north.home.blobs / str(published["blob"])).read_bytes() in b"".join(sent), "the tap sees all"
        assert found(sent, CANARIES) == set()

        north.stop()
        north.start("--leak")
        until(lambda: any(t == "note.told" for t, _ in north.own()), what="it leaks")
        leaked = north.own()[-2][1]["blob"]
        until((reader.home.blobs / str(leaked)).exists, what="the reader has the blob")
        until(lambda: reader.fold().sizes[north.member] == north.size(), what="the reader has what was told")
        fresh = messages(tap)[len(sent) :]
        assert found(fresh, CANARIES)
        told = json.dumps(north.own()[-1][1]["text"], ensure_ascii=False).encode()
        without = [m.replace(told, b"") for m in fresh]  # an entry and its blob may travel in one answer
        assert without != fresh
        assert found(without, CANARIES), "the blob alone is found too"


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
