"""The ledger against the libraries under it: verify against raw PyNaCl, append against a raw SQLite commit, proofs from disk.

Every ratio is taken in one run, its two sides by turns, so that the machine's mood hits both. What is bound by the processor
is measured in processor time of this process (other work may share the cores); what waits for the disk in wall time. The long
feed is written by the node's own batch append, every entry signed. "Lines" are the signed header lines, the leaves of the tree;
bodies and salts are what the entries are about and count as data of their own.

Single append: one `append` of an event with its body that names two seen heads, durable when it returns (WAL, synchronous=FULL),
against a raw commit of the same line, salt and body and one `SigningKey.sign`, by turns of 20, the ratio that of each turn's
medians. The raw commit has the ledger's settings and file system and the usual table, key (feed, seq); beside it stands, without
a floor, the leanest that we know: an integer key, and the INSERT a transaction by itself. The head is signed when somebody asks
for it, so `append and a head each` is what an entry costs that is announced at once: two commits and two signatures.

Full verify: every line of a stored feed is read and checked for its signature, canonical form, chain, stored leaf and stored
tree (mode `lines`), against `VerifyKey.verify` of the same messages; the whole audit, which reads every body besides, stands
below without a floor, and so do libsodium's bare calls, which nothing that verifies with PyNaCl can beat. One thread, medians of
the ratios of 40 rounds, whose order turns round each time; with their quartiles, as one round varies by some percent.
Two threads: the same against one, in wall time, and what two threads of bare calls gain over one in the same round: the
most that the machine gives at this moment. Proofs: random places of the whole feed, high nodes in memory.

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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from operator import truediv
from pathlib import Path

from harness import Figure, finish, options, table
from nacl._sodium import ffi, lib  # type: ignore[import-not-found]

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
VERIFIED = 40  # rounds of the full verify
SIGNED = 4_000  # entries of the feed whose every signature is verified
SHARE = 125  # messages that a thread takes at a time
SINGLE = 1_500  # single appends on each side
PROOFS = 5_000
TURN = 20
RAW, LEAN, OURS = "raw commit of line and body + 1 signature", "leanest raw commit of them + 1 signature", "append"
TOLD = "append and a head each"
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
    """What SQLite and libsodium alone take for one durable commit of a line, with the settings of the ledger."""

    def __init__(self, path: Path, record: Record) -> None:
        self.line = record.entry.line
        self.values = (record.entry.line, *((record.body.salt, record.body.data) if record.body else (None, None)))
        self.database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000"):
            self.database.execute(f"PRAGMA {pragma}").fetchall()
        self.database.execute(
            "CREATE TABLE lines (feed INTEGER, seq INTEGER, line BLOB, salt BLOB, data BLOB, PRIMARY KEY (feed, seq))"
        )
        self.database.execute("CREATE TABLE lean (place INTEGER PRIMARY KEY, line BLOB, salt BLOB, data BLOB)")
        self.count = 0

    def usual(self) -> None:
        """A row under the key (feed, seq), in a transaction as one writes it."""
        self.count += 1
        KEY.sign(self.line)
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute("INSERT INTO lines VALUES (1, ?, ?, ?, ?)", (self.count, *self.values))
        self.database.execute("COMMIT")

    def lean(self) -> None:
        """A row under one integer, in one statement."""
        self.count += 1
        KEY.sign(self.line)
        self.database.execute("INSERT INTO lean VALUES (?, ?, ?, ?)", (self.count, *self.values))


def single_appends(folder: Path) -> list[Figure]:
    """One durable append against raw commits, by turns."""
    with Store.open(folder / "single.db") as store, Store.open(folder / "told.db") as told:
        record = store.append_all(KEY, COLLECTIVE, drafts(0, 1, neighbours=2), now_ms=1)[0]
        raw, lean = RawCommits(folder / "raw.db", record), RawCommits(folder / "lean.db", record)

        def announced(draft: Draft) -> None:
            told.append_all(KEY, COLLECTIVE, [draft], now_ms=1)
            told.heads(COLLECTIVE)

        sides: dict[str, Callable[[Draft], object]] = {
            RAW: lambda _: raw.usual(),
            LEAN: lambda _: lean.lean(),
            OURS: lambda draft: store.append_all(KEY, COLLECTIVE, [draft], now_ms=1),
            TOLD: announced,
        }
        wall: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for start in range(1, SINGLE, TURN):
            ready = drafts(start, TURN, neighbours=2)
            for name, work in sides.items():
                times, busy = [], []
                for draft in ready:
                    before = time.thread_time()
                    times.append(clocked(lambda w=work, d=draft: w(d), time.perf_counter))
                    busy.append(time.thread_time() - before)
                wall[name].append(statistics.median(times))
                cpu[name].append(statistics.median(busy))
        raw.database.close()
        lean.database.close()

    def ratio(other: str, times: dict[str, list[float]]) -> float:
        return statistics.median(theirs / ours for theirs, ours in zip(times[other], times[OURS], strict=True))

    rows = [
        (
            name,
            1e6 * statistics.median(wall[name]),
            1e6 * statistics.median(cpu[name]),
            ratio(name, wall),
            ratio(name, cpu),
        )
        for name in sides
    ]
    table("single durable append", ("what", "median us", "of it processor us", "ratio", "of processor time"), rows)
    return [
        Figure(id="append.single.ratio", value=ratio(RAW, wall), floor=0.9),
        Figure(id="append.single.ratio-to-leanest", value=ratio(LEAN, wall), aim=0.9),
        Figure(id="append.single.rate", value=1 / statistics.median(wall[OURS]), unit="/s"),
        Figure(id="append.single.rate-announced", value=1 / statistics.median(wall[TOLD]), unit="/s"),
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
    """Every signature and line of a stored feed against the bare verification of its signatures."""
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

        def bare(messages: Sequence[bytes] = joined) -> None:
            calls = map(lib.crypto_sign_open, *[repeat(ffi.NULL)] * 2, messages, map(len, messages), repeat(public))
            if any(list(calls)):
                raise SystemExit("libsodium refuses an honest signature")

        def shared() -> None:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(bare, [joined[n : n + SHARE] for n in range(0, SIGNED, SHARE)]))

        def ours(mode: audit.Mode, threads: int = 1) -> None:
            clean(audit.feed_integrity(store, COLLECTIVE, MEMBER, mode=mode, threads=threads))

        sides = {"raw": raw, "bare": bare, "lines": lambda: ours("lines"), "whole": lambda: ours("full")}
        cpu = by_turns(sides, VERIFIED, time.process_time)
        wall = by_turns(
            {"one": lambda: ours("lines"), "two": lambda: ours("lines", 2), "bare one": bare, "bare two": shared},
            ROUNDS,
            time.perf_counter,
        )
    against = {name: [raw / mine for raw, mine in zip(cpu["raw"], times, strict=True)] for name, times in cpu.items()}
    names = ("VerifyKey.verify", "libsodium's bare calls", "every line of the feed", "whole audit of the feed")
    rows = [
        (
            what,
            SIGNED / statistics.median(cpu[side]),
            *statistics.quantiles(against[side], n=4),
            min(cpu["raw"]) / min(cpu[side]),
        )
        for what, side in zip(names, sides, strict=True)
    ]
    header = ("one thread", "per s", "against raw: quartile", "median", "quartile", "of least times")
    table("full verify, entries per second of processor time", header, rows)
    gain = [one / two for one, two in zip(wall["one"], wall["two"], strict=True)]
    most = [one / two for one, two in zip(wall["bare one"], wall["bare two"], strict=True)]
    rows = [("every line of the feed", *statistics.quantiles(gain, n=4)), ("bare", *statistics.quantiles(most, n=4))]
    table("two threads against one, wall time", ("what", "quartile", "median", "quartile"), rows)
    return [
        Figure(id="verify.full.ratio", value=statistics.median(against["lines"]), floor=0.95),
        Figure(id="verify.full.rate", value=SIGNED / statistics.median(cpu["lines"]), unit="/s/core"),
        Figure(id="verify.full.ratio-to-bare", value=statistics.median(map(truediv, cpu["bare"], cpu["lines"]))),
        Figure(id="verify.full.ratio-with-bodies", value=statistics.median(against["whole"]), aim=0.95),
        Figure(id="verify.full.two-threads", value=statistics.median(gain), unit="x", floor=1.5),
        Figure(id="verify.full.two-threads-bare", value=statistics.median(most), unit="x"),
        Figure(id="verify.full.two-threads-of-bare", value=statistics.median(map(truediv, gain, most)), aim=0.9),
    ]


def by_turns(sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each side in each round; the order turns round each time, so that no side profits from its place."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=number % 2 == 1):
            seconds[name].append(clocked(sides[name], clock))
    return seconds


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
    """Inclusion and consistency proofs at random places of the whole feed, each from the one tile it needs."""
    nodes, chance = store.tree(COLLECTIVE, MEMBER, remember=True).nodes, random.Random(1)
    places = [chance.randrange(entries) for _ in range(PROOFS)]
    cpu = min(clocked(lambda: [inclusion(place, entries, nodes) for place in places]) for _ in range(ROUNDS))
    other = min(clocked(lambda: [consistency(place + 1, entries, nodes) for place in places]) for _ in range(3))
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
        bodies = raw.execute("SELECT sum(length(salt) + length(data)) FROM entries").fetchone()[0]
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
