"""A small fuzzer: seeds and a kept corpus, a mutator for bytes and one for JSON, and the law that every parser keeps.

The law: bytes of anybody raise nothing but `Refused`; time and memory are bounded by their number; what parses has the one
spelling that it came in. Inputs are drawn by a seed, so each failure comes again; coverage is what a tracer sees in our own
packages, and decides what the corpus keeps (`grow`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from protocol import canon
from protocol.canon import Json
from protocol.errors import Refused

CORPUS = Path(__file__).parent / "corpus"
ROOT = str(Path(__file__).resolve().parents[2])
PACKAGES = ("protocol", "ledger", "contrib", "node")
MAX_INPUT = 64 * 1024
_TELLING = (0, 1, 2, 3, 0x7F, 0x80, 0xFE, 0xFF, 0x0A, 0x20, 0x22, 0x2C, 0x5B, 0x5D, 0x7B, 0x7D)
_NUMBERS = (0, 1, -1, 2, 63, 64, 65, 255, 256, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 10**30, True, False, None)
_TEXTS = (
    "",
    "a",
    "A",
    "\n",
    "\x00",
    "é",
    "e\u0301",
    "0" * 64,
    "f" * 64,
    "g" * 64,
    "-",
    ".",
    "x" * 300,
    "\ud7ff",
    "\U0001f512",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser: what reads the bytes, how the value is written again (None: it is not), and bytes to begin with.

    `fix` makes an input pass a signature or a checksum after it was mutated, so that what lies behind is reached; `other` are
    kinds of errors beside Refused that the caller is known to take (a decoder of a library, say). `weight` is its part of a run.
    """

    name: str
    read: Callable[[bytes], Any]
    seeds: Callable[[], Iterable[bytes]]
    write: Callable[[Any], bytes] | None = None
    fix: Callable[[random.Random, bytes], bytes] | None = None
    json: bool = False
    weight: float = 1.0
    seconds_a_mib: float = 40.0
    bytes_a_byte: int = 200  # of memory; a Python object of one character takes 50


class Broken(AssertionError):
    """An input that breaks the law, in a form that can be added to the corpus."""

    def __init__(self, target: Target, data: bytes, why: str) -> None:
        super().__init__(f"{target.name}: {why}\n{base64.b64encode(data).decode()}")
        self.data = data


# -- the law -----------------------------------------------------------------------------------------------------------
def check(target: Target, data: bytes, *, memory: bool = False) -> bool:
    """Whether `data` was accepted; raises Broken when the law is."""
    if memory:
        tracemalloc.start()
    began = time.process_time()
    value: Any = None
    try:
        value = target.read(data)
        accepted = True
    except Refused as e:
        accepted = False
        if not str(e).startswith("couldn't "):
            raise Broken(target, data, f"a refusal without form: {e}") from None
    except MemoryError:
        raise
    except Exception as e:
        raise Broken(target, data, f"{type(e).__name__}: {e}") from e
    finally:
        most = tracemalloc.get_traced_memory()[1] if memory else 0
        if memory:
            tracemalloc.stop()
    took = time.process_time() - began
    if not memory and took > 1.0 + target.seconds_a_mib * len(data) / (1 << 20):
        raise Broken(target, data, f"{took:.1f} s for {len(data)} bytes")
    if most > (4 << 20) + target.bytes_a_byte * len(data):
        raise Broken(target, data, f"{most} bytes of memory for {len(data)} bytes")
    if accepted and target.write is not None and (again := target.write(value)) != data:
        raise Broken(target, data, f"another spelling of the same value: {again[:300]!r}")
    return accepted


# -- mutation ----------------------------------------------------------------------------------------------------------
def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flip, cut, insert, repeat, splice, or set to telling values; a few times."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(10)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice(_TELLING)
        elif kind == 2:
            del out[at : at + rng.choice((1, 1, 2, 4, 16, 10_000))]
        elif kind == 3:
            out[at:at] = bytes(rng.choice(_TELLING) for _ in range(rng.choice((1, 1, 2, 4, 32))))
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 40, 4000))]
        elif kind == 5 and other:
            start = rng.randrange(len(other))
            out[at : at + rng.choice((0, 1, 8, 10_000))] = other[start : start + rng.choice((1, 8, 64, 10_000))]
        elif kind == 6 and at + 4 <= len(out):
            number = rng.choice((0, 1, 255, 256, 65_535, 2**20, 2**31 - 1, 2**32 - 1, len(out)))
            out[at : at + 4] = (number % 2**32).to_bytes(4, rng.choice(("big", "little")))
        elif kind == 7 and at < len(out):
            out[at] = (out[at] + rng.choice((-1, 1))) % 256
        elif kind == 8 and out:
            low, high = sorted((at, rng.randrange(len(out) + 1)))
            out[low:high] = bytes(reversed(out[low:high]))
        else:
            out[at : at + 8] = rng.randbytes(rng.randrange(9))
    return bytes(out[:MAX_INPUT])


def mutated_json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The same for the tree behind canonical JSON, written canonically again; what is no JSON is mutated as bytes."""
    try:
        value, pool = canon.decode(data, max_bytes=1 << 20), canon.decode(other, max_bytes=1 << 20)
    except Refused:
        return mutated(rng, data, other)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _bent(rng, value, pool, 0)
    try:
        return canon.encode(value, max_bytes=1 << 20)[:MAX_INPUT]
    except (Refused, ValueError, RecursionError, UnicodeError, TypeError):
        with contextlib.suppress(ValueError, RecursionError, UnicodeError):  # no canonical form: as people write it
            return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")[:MAX_INPUT]
        return data


def _bent(rng: random.Random, value: Json, pool: Json, depth: int) -> Json:
    """`value` with one place changed."""
    deeper = rng.random() < 0.8 and depth < 12
    if isinstance(value, dict) and value and deeper:
        name = rng.choice(list(value))
        return {**value, name: _bent(rng, value[name], pool, depth + 1)}
    if isinstance(value, list) and value and deeper:
        at = rng.randrange(len(value))
        return [*value[:at], _bent(rng, value[at], pool, depth + 1), *value[at + 1 :]]
    kind = rng.randrange(8)
    if isinstance(value, dict) and kind < 3:
        if kind == 0 or not value:
            return {**value, rng.choice((*_TEXTS, *map(str, value))): _any(rng, pool)}
        gone = rng.choice(list(value))
        return {k: v for k, v in value.items() if k != gone}
    if isinstance(value, list) and kind < 4:
        at = rng.randrange(len(value) + 1)
        if kind == 0:
            return [*value[:at], *value[at : at + 1] * rng.choice((2, 3, 70, 300)), *value[at + 1 :]]
        if kind == 1:
            return value[:at] + value[at + 1 :]
        if kind == 2:
            return [*value[:at], _any(rng, pool), *value[at:]]
        return sorted(value, key=repr)
    if isinstance(value, str) and kind < 5:
        return mutated(rng, value.encode("utf-8", "surrogatepass"), b"0123456789abcdef").decode("utf-8", "replace")
    if isinstance(value, int) and kind < 4:
        return value + rng.choice((-1, 1, 256, -(2**31), 2**40))
    return _any(rng, pool)


def _any(rng: random.Random, pool: Json) -> Json:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        return rng.choice(_TEXTS)
    if kind == 2:
        return []
    if kind == 3:
        return {}
    found: Json = pool
    for _ in range(rng.randrange(8)):  # some part of another input
        if isinstance(found, dict) and found:
            found = found[rng.choice(list(found))]
        elif isinstance(found, list) and found:
            found = rng.choice(found)
    return found


# -- runs --------------------------------------------------------------------------------------------------------------
def corpus(target: Target) -> list[bytes]:
    """What earlier runs kept for a target, oldest first."""
    path = CORPUS / f"{target.name}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def inputs(
    target: Target, rng: random.Random, count: int, seeds: Sequence[bytes], pool: Sequence[bytes]
) -> Iterable[bytes]:
    """`count` mutations, half of them of `seeds` (all good), half of `pool`; fixed where the target can be."""
    for _ in range(count):
        data, other = rng.choice(seeds if rng.random() < 0.5 else pool), rng.choice(pool)
        bend = mutated_json if target.json and rng.random() < 0.8 else mutated
        data = bend(rng, data, other)
        yield target.fix(rng, data) if target.fix is not None and rng.random() < 0.9 else data


def run(target: Target, *, count: int, seed: int) -> tuple[int, int]:
    """Try seeds, corpus and `count` mutations; how many were tried and how many accepted (raises Broken)."""
    rng = random.Random(f"{target.name} {seed}")
    seeds = list(target.seeds())
    pool = [*seeds, *corpus(target)]
    accepted = sum(check(target, data) for data in pool)
    for number, data in enumerate(inputs(target, rng, count, seeds, pool)):
        accepted += check(target, data, memory=number % 128 == 0)
    return len(pool) + count, accepted


def grow(target: Target, *, count: int, seed: int, most: int = 60) -> list[bytes]:
    """Mutations that reach code no seed or corpus input reaches, as new corpus inputs; slow, as it traces."""
    rng = random.Random(f"{target.name} grow {seed}")
    seeds = list(target.seeds())
    pool = [*seeds, *corpus(target)]
    seen: set[object] = set()
    for data in pool:
        seen |= traced(target, data)
    kept: list[bytes] = []
    for data in inputs(target, rng, count, seeds, pool):
        found = traced(target, data) - seen
        if found and len(data) <= 4096:
            seen |= found
            kept.append(data)
            pool.append(data)
            if len(kept) == most:
                break
    return kept


def traced(target: Target, data: bytes) -> set[object]:
    """The steps between lines of our own packages that reading `data` takes."""
    steps: set[object] = set()

    def enter(frame: FrameType, event: str, _argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(ROOT) or name[len(ROOT) + 1 :].split("/", 1)[0] not in PACKAGES:
            return None
        before = [0]

        def step(frame: FrameType, event: str, _argument: object) -> Any:
            if event == "line":
                steps.add((name, before[0], frame.f_lineno))
                before[0] = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        check(target, data)
    finally:
        sys.settrace(None)
    return steps


def keep(target: Target, found: Iterable[bytes]) -> int:
    """Add inputs to the corpus on disk; how many it holds now."""
    whole = list(dict.fromkeys([*corpus(target), *found]))
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{target.name}.txt").write_text("".join(base64.b64encode(data).decode() + "\n" for data in whole))
    return len(whole)
