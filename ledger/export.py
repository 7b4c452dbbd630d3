"""Writes a feed for other programs: its leaves as JSON lines, or a static transparency log in the tlog-tiles layout.

    jsonl   FOLDER/<member>.jsonl      one line for each leaf, exactly the bytes that were hashed
            FOLDER/<member>.checkpoint the signed head over them
    tiles   FOLDER/<member>/checkpoint, tile/<level>/<number>[.p/<width>], tile/entries/<number>[.p/<width>]
Hashes are computed from the lines, so a stored tree that is wrong cannot get into an export; the root must be the signed one.
Memory does not grow with the feed. The checkpoint is written last: an export without one was interrupted.
Formats: c2sp.org/tlog-tiles (tiles of 256 hashes, 8 levels each), RFC 6962.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ledger.checkpoint import Head
from ledger.entry import MAX_LINE
from ledger.errors import StoreBroken
from protocol.merkle import Frontier, leaf_hash, root_of

WIDTH: Final = 256


def jsonl(lines: Iterable[bytes], head: Head, note: bytes, folder: Path) -> int:
    """Write the first `head.size` leaves and the note; how many bytes of leaves.

    Raises:
        StoreBroken: the lines do not have the root of the head; no checkpoint was written.
        OSError: the folder cannot be written.
    """
    tree, written = Frontier(), 0
    target = folder / f"{head.member}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        for line in lines:
            tree.append(leaf_hash(line))
            written += file.write(line + b"\n")
    _same_root(tree, head)
    partial.replace(target)
    _write(folder / f"{head.member}.checkpoint", note)
    return written


def tiles(lines: Iterable[bytes], head: Head, note: bytes, folder: Path) -> int:
    """Write the first `head.size` leaves as a static log under `folder/<member>`; how many files.

    Raises:
        StoreBroken: the lines do not have the root of the head; no checkpoint was written.
        OSError: the folder cannot be written.
    """
    base, tree, files = folder / head.member, Frontier(), 0
    bundle: list[bytes] = []
    rows: list[list[bytes]] = []  # by tile level: the hashes of the tile that is not full yet
    for line in lines:
        if len(line) > MAX_LINE:
            raise StoreBroken(
                f"couldn't export feed of {head.member[:12]}: entry {tree.size} is too long; run the audit"
            )
        leaf = leaf_hash(line)
        tree.append(leaf)
        bundle.append(len(line).to_bytes(2, "big") + line)
        if len(bundle) == WIDTH:
            _write(base / path("entries", tree.size // WIDTH - 1), b"".join(bundle))
            bundle, files = [], files + 1
        for level, number, hashes in _full(rows, leaf, tree.size):
            _write(base / path(str(level), number), b"".join(hashes))
            files += 1
    _same_root(tree, head)
    if bundle:
        _write(base / path("entries", tree.size // WIDTH, len(bundle)), b"".join(bundle))
        files += 1
    for level, hashes in enumerate(rows):
        if hashes:
            number = (tree.size >> 8 * level) // WIDTH
            _write(base / path(str(level), number, len(hashes)), b"".join(hashes))
            files += 1
    _write(base / "checkpoint", note)
    return files + 1


def path(level: str, number: int, width: int = WIDTH) -> str:
    """Where a tile lies: its number in groups of three digits, all but the last marked by an x."""
    digits = f"{number:03d}"
    digits = digits.zfill((len(digits) + 2) // 3 * 3)
    groups = [digits[n : n + 3] for n in range(0, len(digits), 3)]
    name = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return f"tile/{level}/{name}" + (f".p/{width}" if width < WIDTH else "")


def _full(rows: list[list[bytes]], leaf: bytes, size: int) -> Iterator[tuple[int, int, list[bytes]]]:
    """Add a leaf; each tile that is full now, as (level, number, hashes), from the lowest up."""
    level, carried = 0, leaf
    while True:
        if level == len(rows):
            rows.append([])
        rows[level].append(carried)
        if len(rows[level]) < WIDTH:
            return
        hashes, rows[level] = rows[level], []
        yield level, (size >> 8 * (level + 1)) - 1, hashes
        level, carried = level + 1, root_of(hashes)


def _same_root(tree: Frontier, head: Head) -> None:
    if (tree.size, tree.root().hex()) != (head.size, head.root):
        raise StoreBroken(
            f"couldn't export feed of {head.member[:12]}: its {tree.size} lines do not have the root that was signed for"
            f" size {head.size}; run the audit"
        )


def _write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(data)
    partial.replace(target)
