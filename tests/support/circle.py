"""Three real homes of one collective without daemons: commands are run on them, the mail is carried by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paper import charter_of

from ledger import charter as charters
from ledger import charter_reading, events, rules
from ledger.charter import Member
from ledger.cuts import Amendment
from node import config
from node import session as sessions
from node.cli import run
from node.home import Home
from node.keys import identity
from node.session import Session
from protocol.ids import CollectiveId

NAMES = ("ada", "bob", "cyd")


@dataclass
class Circle:
    """Three homes of one collective; mail is carried by hand, and no daemon runs."""

    homes: dict[str, Home]
    collective: CollectiveId

    @contextmanager
    def open(self, name: str) -> Iterator[Session]:
        with sessions.writing(self.homes[name], None) as session:
            yield session

    def deliver(self) -> None:
        with ExitStack() as stack:
            opened = [stack.enter_context(self.open(n)) for n in self.homes]
            for to in opened:
                for source in opened:
                    for head in source.store.heads(self.collective):
                        held = to.need_seat().fold.sizes.get(head.member, 0)
                        page = source.store.records(self.collective, head.member, held)
                        if head.member != to.member and page:
                            to.need_seat().receive(
                                head.member, to.store.append_foreign(self.collective, head.member, page, head.note)
                            )

    def decide(self, *voters: str) -> None:
        """The first ripe amendment is proposed, accepted and committed by these voters."""
        self.deliver()
        with self.open(voters[0]) as session:
            seat = session.need_seat()
            fold, (asked, *_) = seat.fold, seat.fold.ripe_amendments()
            place = rules.place(fold, {m: n for m, n in fold.sizes.items() if m in fold.ever_members()})
            value = Amendment(place=place, proposal=asked.source.event, change=asked.change)
            assert rules.check(fold, value) == rules.Fits()
            height = fold.height
            seat.append(events.Proposed(height=height, attempt=0, valid_attempt=-1, value=value.to_json()))
        for name in voters:
            with self.open(name) as session:
                seat = session.need_seat()
                seat.append(events.Accepted(height=height, attempt=0, digest=value.digest))
                seat.append(events.Committed(height=height, attempt=0, digest=value.digest))
        self.deliver()

    def fold(self, name: str) -> Any:
        with sessions.reading(self.homes[name]) as session:
            return session.need_seat().fold


def make_circle(folder: Path) -> Circle:
    """A collective of three new homes that have bound their keys and hold each other's feeds."""
    homes = {n: Home.init(folder / n, passphrase=None, name=n) for n in NAMES}
    members = tuple(
        sorted(
            (Member(id=identity.member_of(h), name=n, role="contributor") for n, h in homes.items()), key=lambda m: m.id
        )
    )
    whole = {**charter_of(list(NAMES)).to_json(), "members": [m.to_json() for m in members]}
    collective = charters.collective_id(charter_reading.parse(whole))
    found = Circle(homes, collective)
    for name, home in homes.items():
        config.update(home.config_file, "node", "collective", collective)
        with found.open(name) as session:
            if name == "ada":
                session.need_seat().append(events.Genesis(charter=whole))
            assert session.identity is not None
            session.need_seat().append(session.identity.bound(collective))
    found.deliver()
    return found


def told(capsys: pytest.CaptureFixture[str], home: Home, *arguments: str) -> dict[str, Any]:
    code = run([*arguments, "--home", str(home.path), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found: dict[str, Any] = json.loads(printed.out)
    return found


def refused(capsys: pytest.CaptureFixture[str], home: Home, *arguments: str) -> str:
    assert run([*arguments, "--home", str(home.path), "--json"]) != 0
    return str(json.loads(capsys.readouterr().err)["error"]["message"])
