"""Brings a ledger of version 2 up to version 3: line and body in one row, the tree in tiles.

Runs inside the transaction of the caller, so a stop leaves the old ledger as it was. Verifies nothing and loses nothing: rows
are carried over as they lie, and the tree is made from the lines, so the audit finds afterwards what it would have found
before. Knows no keys; heads, fork proofs, erasures and state stay where they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from ledger import tree
from ledger.tree import GrowingTree
from protocol.merkle import leaf_hash

BEFORE: Final = 2
_CHUNK: Final = 4096


def rebuild(connection: sqlite3.Connection, tables: Mapping[str, str]) -> None:
    """Replace the tables `entries`, `bodies` and `nodes` by those whose texts are given; every trigger is gone afterwards."""

    def run(sql: str, *values: object) -> list[Any]:
        return connection.execute(sql, values).fetchall()

    for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
        run(f'DROP TRIGGER "{name}"')
    run("ALTER TABLE entries RENAME TO old_entries")
    run("DROP TABLE nodes")
    for text in tables.values():
        run(text)
    run(
        "INSERT INTO entries (place, line, leaf, salt, data) SELECT (e.feed << 40) + e.seq, e.line, e.leaf, b.salt, b.data"
        " FROM old_entries e LEFT JOIN bodies b ON b.feed = e.feed AND b.seq = e.seq ORDER BY e.feed, e.seq"
    )
    run("DROP TABLE old_entries")
    run("DROP TABLE bodies")
    for (feed,) in run("SELECT id FROM feeds"):
        _plant(connection, int(feed))


def _plant(connection: sqlite3.Connection, feed: int) -> None:
    """Store the tree over the entries of a feed, up to the first that is missing."""
    growing, base = GrowingTree(), tree.place_of(feed, 0)
    while True:
        start = growing.size
        found = connection.execute(
            "SELECT place - ?1, line FROM entries WHERE place >= ?1 + ?2 AND place < ?1 + ?2 + ?3 ORDER BY place",
            (base, start, _CHUNK),
        ).fetchall()
        leaves = [leaf_hash(line) for at, (seq, line) in enumerate(found, start) if seq == at]
        if not leaves:
            return
        grown = growing.extend(leaves)
        connection.executemany(tree.INSERT_TILE, tree.tile_rows(feed, grown.tiles))
        connection.executemany(tree.INSERT_NODE, tree.node_rows(feed, grown.nodes))
