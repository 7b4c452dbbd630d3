"""What a command works on: an opened home, offline or inside the daemon. One hand on the ledger at a time.

Knows no command and no network. Invariant: whoever holds a writing session holds the ledger's process lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ledger.events import DataCommitted
from ledger.store import Store
from node import identity as identities
from node.config import NodeConfig
from node.errors import NoCollective
from node.home import Home, model_cache
from node.ports import Running
from node.seat import Seat
from protocol.ids import CollectiveId, MemberId

if TYPE_CHECKING:
    from contrib.models import Model
    from contrib.rows import RowStore
    from node.identity import Identity

_HINT = "fishernet collective create --name NAME, or fishernet collective join ID MULTIADDR"


@dataclass(slots=True, kw_only=True)
class Session:
    """An opened home. `identity` is None in a reading session, `daemon` outside a running one."""

    home: Home
    config: NodeConfig
    store: Store
    member: MemberId
    identity: Identity | None = None
    daemon: Running | None = None
    seat: Seat | None = field(default=None)

    def need_seat(self) -> Seat:
        """The seat in the collective that the configuration names (raises NoCollective)."""
        if self.seat is None:
            raise NoCollective("couldn't open collective: this node has none yet", hint=_HINT)
        return self.seat

    def open_seat(self) -> None:
        """Open the seat that the configuration names, if any."""
        self.config = self.home.read_config()
        key = self.identity.key if self.identity else None
        if self.config.node.collective:
            name = CollectiveId(self.config.node.collective)
            self.seat = Seat(self.home, self.member, self.store, name, key=key)

    def find_model(self, name: str) -> Model:
        """A base model of the cache by name or digest (raises ModelNotFound)."""
        from contrib import models

        return models.find(name, model_cache())

    @contextmanager
    def rows(self, *, read_only: bool = False) -> Iterator[RowStore]:
        """The private rows."""
        from contrib.rows import RowStore

        with RowStore.open(self.home.rows_db, read_only=read_only) as rows:
            yield rows

    def commit_data(self) -> list[str]:
        """Commit in our feed to every data set that is not committed as it stands now; returns their names.

        Raises:
            AppendPaused: our feed may be longer elsewhere; the daemon commits later.
        """
        seat = self.need_seat()
        done: list[str] = []
        if not self.home.rows_db.exists():
            return done
        with self.rows(read_only=True) as rows:
            summaries = rows.datasets()
        for summary in summaries:
            event = DataCommitted(
                dataset=summary.name,
                train_rows=summary.train_rows,
                held_out_rows=summary.held_out_rows,
                train_root=summary.train_root,
                held_out_root=summary.held_out_root,
            )
            if seat.fold.data.get(seat.me, {}).get(summary.name) != event:
                seat.append(event)
                done.append(summary.name)
        return done


@contextmanager
def writing(home: Home, passphrase: str | None) -> Iterator[Session]:
    """Open a home to change it, with its key.

    Raises:
        StoreLocked: a daemon or command works on it.
        What `identity.load` raises.
    """
    identity = identities.load(home, passphrase)
    with Store.open(home.ledger_db) as store:
        session = Session(home=home, config=home.read_config(), store=store, member=identity.member, identity=identity)
        session.open_seat()
        yield session


@contextmanager
def reading(home: Home) -> Iterator[Session]:
    """Open a home to look at it: no key, no lock."""
    with Store.open(home.ledger_db, writer=False) as store:
        member = identities.member_of(home)
        session = Session(home=home, config=home.read_config(), store=store, member=member)
        session.open_seat()
        yield session
