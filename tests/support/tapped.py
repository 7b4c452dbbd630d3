"""`python -m tapped --home HOME --tap FILE [--leak]`: a node like `fishernet up`, with every byte it sends kept in a file.

The tap stands where the node hands bytes to its network daemon: before compression and encryption by the transport. With
--leak it is a traitor: it publishes a row as a blob and writes the same row into its feed, so that the search of what
was tapped can be seen to find something.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import zstandard
from permits import to_train

from ledger import events
from ledger.store import Store
from node.daemon import Daemon
from node.home import Home
from node.session import Session
from protocol.canon import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event of no known type; every node keeps and forwards it."""

    TYPE: ClassVar[str] = "note.told"
    text: str

    def to_json(self) -> Mapping[str, Json]:
        return {"text": self.text}


def leak(daemon: Daemon) -> None:
    """Send the first row of the first data set to the other members, in both ways that there are."""
    seat = daemon.seat
    with daemon.session.rows(read_only=True) as rows:
        name = rows.datasets()[0].name
        row = str(rows.rows(name, permit=to_train(name), limit=1)[0].text)
    blob = zstandard.compress(row.encode())
    epoch = seat.fold.charter.epoch_id
    number = 1 + sum(c.epoch == epoch for c in seat.fold.contributions.get(seat.me, []))
    seat.append(
        events.Published(epoch=epoch, number=number, blob=daemon.parts.blobs.put(blob), size=len(blob), run="leak")
    )
    seat.append(Told(text=row))  # type: ignore[arg-type]


async def run(session: Session, tap: Path, *, leaking: bool) -> None:
    with tap.open("ab", buffering=0) as file:
        daemon = Daemon(session, tap=lambda data: file.write(len(data).to_bytes(4, "big") + data) and None)
        if leaking:
            asyncio.get_running_loop().create_task(leak_when_ready(daemon)).add_done_callback(asyncio.Task.result)
        await daemon.run()


async def leak_when_ready(daemon: Daemon) -> None:
    await daemon.answers.settled.wait()
    leak(daemon)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--tap", type=Path, required=True)
    parser.add_argument("--leak", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    home = Home.open(given.home)
    with home.lock(), Store.open(home.ledger_db) as store:
        identity = home.unlock(None)
        session = Session(home=home, config=home.read_config(), store=store, member=identity.member, identity=identity)
        session.open_seat()
        asyncio.run(run(session, given.tap, leaking=given.leak))


if __name__ == "__main__":
    main()
