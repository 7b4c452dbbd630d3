"""The ledger against the libraries under it: verify against raw PyNaCl, append against a raw SQLite commit, proofs from disk.

Every ratio is taken in one run, its two sides by turns, so that the machine's mood hits both. What is bound by the processor
is measured in processor time of this process (other work may share the cores); what waits for the disk in wall time. The long
feed is written by the node's own batch append, every entry signed. "Lines" are the signed header lines, the leaves of the tree;
bodies and salts are what the entries are about and count as data of their own. A single append is compared with two raw
commits: of its line alone with one signature, and of all the rows that it writes (line, body, head, node) with its two
signatures, which is what no design with a signed head for every entry can beat.

    python benchmarks/bench_ledger.py [--entries N] [--full] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from harness import Figure, finish, options, table
from nacl.bindings import crypto_sign_open

from ledger import audit, checkpoint, entry
from ledger.entry import Record, Seen
from ledger.store import Draft, Store
from protocol import keys
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.merkle import consistency, inclusion, verify_inclusion

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
BATCH = 1000
ROUNDS = 15
SIGNED = 2_000  # entries of the feed whose every signature is verified
SINGLE = 1_500  # single appends on each side
PROOFS = 5_000
RAW, ROWS, OURS = "raw commit of the line + 1 signature", "raw commit of all rows + 2 signatures", "append"
MILLION = 1_000_000


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument(
        "--entries", type=int, default=200_000, help="length of the feed for checkpoint mode and proofs"
    )
    parser.add_argument(
        "--full", action="store_true", help=f"a feed of {MILLION:,} entries, and the figure that asks for it"
    )
    parser.add_argument("--folder", type=Path, help="where the ledgers are written.  [default: a passing folder]")
    arguments = parser.parse_args()
    if arguments.full:
        arguments.entries = MILLION
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(arguments, Path(folder))
    return finish(found, arguments, began=began)


def measure(arguments: argparse.Namespace, folder: Path) -> list[Figure]:
    message = bytes(500)
    signs = 2000 / clocked(lambda: [KEY.sign(message) for _ in range(2000)])
    print(f"this machine now: {signs:,.0f} signatures per second of processor time")
    figures = [*single_appends(folder), *full_verify(folder)]
    path = folder / "long.db"
    figures += batched_appends(path, arguments.entries)
    figures += sizes(path, folder)
    with Store.open(path, writer=False) as store:
        figures += checkpoint_mode(store, arguments.entries)
        figures += proofs_from_disk(store, arguments.entries)
    return figures


def drafts(start: int, count: int, *, neighbours: int = 0) -> list[Draft]:
    """Events as a node writes them: a small body with a random salt, and the heads of so many others that it had seen."""
    names = sorted(MemberId(f"{n:02x}" * 32) for n in range(1, 1 + neighbours))
    return [
        Draft(
            type="test.event",
            body={"number": n, "run": f"{n:013d}"},
            salt=os.urandom(entry.SALT_BYTES),
            seen=tuple(Seen(member=name, seq=n, leaf=Digest("ab" * 32)) for name in names),
        )
        for n in range(start, start + count)
    ]


def clean(findings: Iterable[audit.Finding]) -> None:
    """An honest feed has no finding; else nothing measured here means anything."""
    if found := list(findings):
        raise SystemExit(f"the audit of an honest feed has findings: {found[:3]}")


def clocked(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that `work` took by `clock`."""
    start = clock()
    work()
    return clock() - start


# -- appending -------------------------------------------------------------------------------------------------------
class RawCommits:
    """What SQLite and libsodium alone take for one durable commit, with the settings of the ledger."""

    def __init__(self, path: Path, record: Record, head: checkpoint.Head) -> None:
        self.line, self.record, self.head = record.entry.line, record, head
        self.database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000"):
            self.database.execute(f"PRAGMA {pragma}").fetchall()
        for table_ in (
            "lines (feed INTEGER, seq INTEGER, line BLOB, leaf BLOB",
            "bodies (feed INTEGER, seq INTEGER, salt BLOB, data BLOB",
        ):
            self.database.execute(f"CREATE TABLE {table_}, PRIMARY KEY (feed, seq))")
        for table_ in (
            "heads (feed INTEGER, seq INTEGER, root BLOB, sig BLOB",
            "nodes (feed INTEGER, seq INTEGER, hash BLOB",
        ):
            self.database.execute(f"CREATE TABLE {table_}, PRIMARY KEY (feed, seq)) WITHOUT ROWID")
        self.count = 0

    def line_only(self) -> None:
        """One row, one signature."""
        KEY.sign(self.line)
        self._commit(("lines", (self.line, None)))

    def all_rows(self) -> None:
        """The rows of one entry, two signatures."""
        KEY.sign(self.line)
        KEY.sign(self.head.note)
        body = self.record.body
        self._commit(
            ("lines", (self.line, bytes(32))),
            ("bodies", (body.salt if body else None, body.data if body else None)),
            ("heads", (bytes(32), self.head.signature)),
            ("nodes", (bytes(32),)),
        )

    def _commit(self, *rows: tuple[str, tuple[bytes | None, ...]]) -> None:
        self.count += 1
        self.database.execute("BEGIN IMMEDIATE")
        for name, values in rows:
            marks = ", ?" * len(values)
            self.database.execute(f"INSERT INTO {name} VALUES (1, ?{marks})", (self.count, *values))  # noqa: S608
        self.database.execute("COMMIT")


def single_appends(folder: Path) -> list[Figure]:
    """One durable append against raw commits, by turns."""
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with Store.open(folder / "single.db") as store:
        first = store.append_all(KEY, COLLECTIVE, drafts(0, 1, neighbours=2), now_ms=1)[0]
        head = checkpoint.parse(store.heads(COLLECTIVE)[0].note)
        raw = RawCommits(folder / "raw.db", first, head)
        rows_too = RawCommits(folder / "rows.db", first, head)
        sides: dict[str, Callable[[Draft], object]] = {
            RAW: lambda _: raw.line_only(),
            ROWS: lambda _: rows_too.all_rows(),
            OURS: lambda draft: store.append_all(KEY, COLLECTIVE, [draft], now_ms=1),
        }
        for draft in drafts(1, SINGLE, neighbours=2):
            for name, work in sides.items():
                start = time.process_time()
                wall.setdefault(name, []).append(clocked(lambda w=work, d=draft: w(d), time.perf_counter))
                cpu.setdefault(name, []).append(time.process_time() - start)
        raw.database.close()
        rows_too.database.close()
    median = {name: statistics.median(times) for name, times in wall.items()}
    rows = [
        (
            name,
            1e6 * median[name],
            1e6 * statistics.median(cpu[name]),
            SINGLE / sum(wall[name]),
            median[name] / median[OURS],
        )
        for name in sides
    ]
    table("single durable append", ("what", "median us", "of it processor us", "per s", "ratio"), rows)
    return [
        Figure(id="append.single.ratio", value=median[RAW] / median[OURS], floor=0.9),
        Figure(id="append.single.ratio-to-same-rows", value=median[ROWS] / median[OURS], aim=0.9),
        Figure(id="append.single.rate", value=SINGLE / sum(wall[OURS]), unit="/s"),
    ]


def batched_appends(path: Path, entries: int) -> list[Figure]:
    """Durable appends in batches, with tree, bodies and a head for each batch; also writes the feed that others read."""
    wall = cpu = 0.0
    with Store.open(path) as store:
        for start in range(0, entries, BATCH):
            ready = drafts(start, min(BATCH, entries - start))
            before = time.process_time()
            wall += clocked(lambda d=ready: store.append_all(KEY, COLLECTIVE, d, now_ms=1), time.perf_counter)
            cpu += time.process_time() - before
    rows = [("processor time", entries / cpu, 1e6 * cpu / entries), ("wall time", entries / wall, 1e6 * wall / entries)]
    table(f"durable append in batches of {BATCH}", ("by", "per s", "us each"), rows)
    return [
        Figure(id="append.batched.cpu-rate", value=entries / cpu, unit="/s", floor=10_000),
        Figure(id="append.batched.wall-rate", value=entries / wall, unit="/s", aim=10_000),
    ]


# -- verifying -------------------------------------------------------------------------------------------------------
def full_verify(folder: Path) -> list[Figure]:
    """Every signature, line, body and node of a feed against the bare verification of its signatures."""
    with Store.open(folder / "signed.db") as store:
        store.append_all(KEY, COLLECTIVE, drafts(0, SIGNED), now_ms=1)
        signed = []
        for record in store.records(COLLECTIVE, MEMBER, 0, SIGNED):
            message = b"fishernet/entry/v1\0" + entry.signed_part(record.entry.line)
            signed.append((message, record.entry.signature))
        joined, public = [s + m for m, s in signed], bytes(KEY.verify_key)

        def raw() -> None:
            for message, signature in signed:
                KEY.verify_key.verify(message, signature)

        def lowest() -> None:
            for both in joined:
                crypto_sign_open(both, public)

        def ours(threads: int = 1) -> None:
            clean(audit.feed_integrity(store, COLLECTIVE, MEMBER, threads=threads))

        sides = {"raw": raw, "lowest": lowest, "ours": ours}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, work in sides.items():
                cpu[name].append(clocked(work))
        wall: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(7):
            for threads, times in wall.items():
                times.append(clocked(lambda t=threads: ours(t), time.perf_counter))
    rate = {name: SIGNED / min(times) for name, times in cpu.items()}  # the least disturbed round of each side
    speedups = [one / two for one, two in zip(wall[1], wall[2], strict=True)]
    rows = [
        ("VerifyKey.verify", rate["raw"], 1.0),
        ("crypto_sign_open (the lowest call of PyNaCl)", rate["lowest"], rate["lowest"] / rate["raw"]),
        ("whole audit of the feed, one thread", rate["ours"], rate["ours"] / rate["raw"]),
    ]
    table("full verify, entries per second of processor time", ("what", "per s", "against raw"), rows)
    print(f"two threads against one, wall time: {', '.join(f'{s:.2f}' for s in speedups)}")
    return [
        Figure(id="verify.full.ratio", value=rate["ours"] / rate["raw"], floor=0.95),
        Figure(id="verify.full.ratio-to-lowest-call", value=rate["ours"] / rate["lowest"], aim=0.95),
        Figure(id="verify.full.rate", value=rate["ours"], unit="/s/core"),
        Figure(id="verify.full.two-threads", value=statistics.median(speedups), unit="x", floor=1.5),
    ]


def checkpoint_mode(store: Store, entries: int) -> list[Figure]:
    """Chain, canonical form and tree of every entry, and one signature."""

    def work() -> None:
        clean(audit.feed_integrity(store, COLLECTIVE, MEMBER, mode="checkpoint", threads=1))

    cpu, wall = [], []
    for _ in range(5):
        start = time.process_time()
        wall.append(clocked(work, time.perf_counter))
        cpu.append(time.process_time() - start)
    rate = entries / min(cpu)
    table(
        "checkpoint mode",
        ("entries", "processor s", "wall s", "per s and core"),
        [(entries, min(cpu), min(wall), rate)],
    )
    figures = [Figure(id="verify.checkpoint.rate", value=rate, unit="/s/core", floor=150_000)]
    if entries >= MILLION:
        figures.append(Figure(id="verify.checkpoint.million", value=min(wall), unit="s", floor=10.0, lower=True))
    return figures


def proofs_from_disk(store: Store, entries: int) -> list[Figure]:
    """Inclusion and consistency proofs at random places of the whole feed, each one query."""
    nodes, chance = store.tree(COLLECTIVE, MEMBER, remember=True).nodes, random.Random(1)
    places = [chance.randrange(entries) for _ in range(PROOFS)]
    cpu = min(clocked(lambda: [inclusion(place, entries, nodes) for place in places]) for _ in range(ROUNDS))
    other = clocked(lambda: [consistency(place + 1, entries, nodes) for place in places])
    head = checkpoint.parse(store.heads(COLLECTIVE)[0].note)
    for place in places[:200]:
        leaf = bytes.fromhex(store.records(COLLECTIVE, MEMBER, place, 1)[0].entry.leaf)
        verify_inclusion(place, entries, leaf, inclusion(place, entries, nodes), bytes.fromhex(head.root))
    table("proofs from disk", ("kind", "per s"), [("inclusion", PROOFS / cpu), ("consistency", PROOFS / other)])
    return [
        Figure(id="proofs.inclusion.rate", value=PROOFS / cpu, unit="/s", floor=20_000),
        Figure(id="proofs.consistency.rate", value=PROOFS / other, unit="/s"),
    ]


# -- size ------------------------------------------------------------------------------------------------------------
def sizes(path: Path, folder: Path) -> list[Figure]:
    """File bytes without what bodies and salts are themselves, over the bytes of the lines: batches, and a head an entry."""
    rows, ratios = [], {}
    for name, file in (("batches", path), ("single appends, two heads seen", folder / "single.db")):
        raw = sqlite3.connect(file)
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        lines, count = raw.execute("SELECT sum(length(line)), count(*) FROM entries").fetchone()
        bodies = raw.execute("SELECT sum(length(salt) + length(data)) FROM bodies").fetchone()[0]
        raw.close()
        ratios[name] = (file.stat().st_size - bodies) / lines
        rows.append((name, count, lines / count, bodies / count, file.stat().st_size / count, ratios[name]))
    table("size", ("written by", "entries", "line", "body", "file bytes each", "file less bodies / lines"), rows)
    return [
        Figure(id="size.batched", value=ratios["batches"], unit="x", floor=1.5, lower=True),
        Figure(id="size.single", value=ratios["single appends, two heads seen"], unit="x", floor=1.5, lower=True),
    ]


if __name__ == "__main__":
    sys.exit(main())
