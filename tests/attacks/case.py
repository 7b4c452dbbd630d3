"""How an attack of the corpus is written down: what it is, how it is done, and what an audit must say about it, where.

A case is one function with two lives: told to lie, it attacks; told not to, it does the honest thing that looks most like
it. Numbers are those of the attack list in README.md; a rule's own id stands where the list has no number.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from world import World

from ledger.entry import Record
from protocol.ids import MemberId
from protocol.merkle import leaf_hash


@dataclass(frozen=True)
class Place:
    """An entry."""

    member: MemberId
    seq: int | None


@dataclass
class Held:
    """What an auditor holds of a world: a real store, to be changed as somebody with a database tool could."""

    world: World
    path: Path

    def tamper(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as database:
            triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                database.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                database.execute(statement)
            for _, sql in triggers:
                database.execute(sql)
            database.commit()

    def feed(self, name: str) -> int:
        with closing(sqlite3.connect(self.path)) as database:
            row = database.execute("SELECT id FROM feeds WHERE member = ?", (self.world.ids[name],)).fetchone()
        return int(row[0])

    def line(self, name: str, seq: int) -> bytes:
        return self.world.feeds[name][seq].entry.line

    def put(self, line: bytes, name: str, seq: int) -> str:
        """The statement of an attacker who keeps the stored leaf hash right."""
        return (
            f"UPDATE entries SET line = x'{line.hex()}', leaf = x'{leaf_hash(line).hex()}'"  # noqa: S608
            f" WHERE feed = {self.feed(name)} AND seq = {seq}"
        )

    def place(self, name: str, seq: int) -> Place:
        return Place(self.world.ids[name], seq)


Act = Callable[[World, bool], Record | Place]
Change = Callable[[Held], Place]


@dataclass(frozen=True)
class Case:
    """One attack: `act` builds the history, or `change` the file; a finding `id` (`case`) must stand at the returned place."""

    number: str
    name: str
    id: str
    case: str | None
    severity: str
    also: frozenset[str]
    act: Act | None = None
    change: Change | None = None
    world: Callable[[], World] = field(default=World.opened)

    @property
    def label(self) -> str:
        return f"{self.number} {self.name}"


CASES: list[Case] = []


def attack(
    number: str | int, name: str, id: str, case: str | None = None, *, severity: str = "error", also: str = "",
    world: Callable[[], World] = World.opened,
) -> Callable[[Act], Act]:  # fmt: skip
    """Register an attack by what members write; `also` are ids of findings that it causes besides."""

    def register(act: Act) -> Act:
        CASES.append(Case(str(number), name, id, case, severity, frozenset(also.split()), act=act, world=world))
        return act

    return register


def _busy() -> World:
    world = World.opened()
    world.release()
    world.served("ada")
    return world


def long() -> World:
    """Ada's feed fills a tile of the stored tree."""
    world = _busy()
    while len(world.feeds["ada"]) < 64:
        world.alive("ada")
    return world


def tampering(
    number: str | int, name: str, id: str, *, also: str = "", world: Callable[[], World] = _busy
) -> Callable[[Change], Change]:
    """Register an attack on the file of an honest history."""

    def register(change: Change) -> Change:
        CASES.append(Case(str(number), name, id, None, "error", frozenset(also.split()), change=change, world=world))
        return change

    return register


def place_of(found: Record | Place) -> Place:
    if isinstance(found, Place):
        return found
    return Place(found.entry.header.member, found.entry.header.seq)
