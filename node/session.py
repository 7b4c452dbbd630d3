"""What a command works on: an opened home, offline or inside the daemon. One hand on the ledger at a time.

Knows no command and no network. Invariant: whoever holds a writing session holds the ledger's process lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ledger.events import DataCommitted
from ledger.store import Store
from node.collective.seat import Seat
from node.errors import NoCollective
from node.home import Home, model_cache
from node.keys import identity as identities
from node.keys.rowkey import RowKey
from node.ports import Running
from node.sections import NodeConfig
from protocol.ids import CollectiveId, MemberId

if TYPE_CHECKING:
    from contrib.datasets import DatasetSummary
    from contrib.models import Model
    from contrib.rows import RowStore
    from node.data.erasing import Eraser
    from node.guarding.growth import Growth
    from node.keys.identity import Identity


@dataclass(slots=True, kw_only=True)
class Session:
    """An opened home. `identity` is None in a reading session, `daemon` outside a running one.

    `row_key` opens sealed rows; without a passphrase it opens none, and their contents stay closed. `told(stage, part)` hears how
    far a long command is, in any thread; `growth` is what feeds may still grow by, where a daemon counts it; `carried(maker,
    made, size)` hears what a bundle says about the length of our own feed.
    """

    home: Home
    config: NodeConfig
    store: Store
    member: MemberId
    identity: Identity | None = None
    daemon: Running | None = None
    seat: Seat | None = field(default=None)
    row_key: RowKey | None = field(default=None, repr=False)
    growth: Growth | None = field(default=None, repr=False)
    told: Callable[[str, float], object] = lambda _stage, _part: None
    carried: Callable[[MemberId, int, int], None] = lambda _maker, _made, _size: None
    _eraser: Eraser | None = field(default=None, repr=False)

    def need_seat(self) -> Seat:
        """The seat in the collective that the configuration names (raises NoCollective)."""
        if self.seat is None:
            raise NoCollective("couldn't open collective: this node has none yet")
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
        """The private rows, open as far as their key is; a new store is sealed when the home has a passphrase.

        Raises:
            PassphraseNeeded, WrongPassphrase: they are sealed, and a session that writes has no key for them.
        """
        from contrib.errors import RowsOutdated
        from contrib.rows import RowStore

        lock, path = self.row_key or RowKey(self.home, None), self.home.rows_db
        if read_only:
            key = lock.try_get()
            try:
                store = RowStore.open(path, key=key, read_only=True)
            except RowsOutdated:
                RowStore.open(path, key=key).close()  # brings it up to date
                store = RowStore.open(path, key=key, read_only=True)
        else:
            store = RowStore.open(path, key=lock.create() if lock.can_create and not path.exists() else lock.get())
        with store as rows:
            yield rows

    def rows_key(self) -> bytes | None:
        """The data key of sealed rows, for the worker alone; None when they are plain."""
        return self.row_key.get() if self.row_key else None

    def eraser(self) -> Eraser:
        """What is known about erasure, kept up with the ledger."""
        from node.data.erasing import Eraser

        if self._eraser is None:
            self._eraser = Eraser(self)
        return self._eraser

    def commit_data(self) -> list[str]:
        """Bring our feed up to date with our rows; returns the names of the data sets that were committed to.

        For every data set: a commitment as it stands now, its description, and the grant to ourselves when its owner wants
        one; then the erasures that are under way.

        Raises:
            AppendPaused: our feed may be longer elsewhere; the daemon commits later.
            RowsBusy: rows that were to be forgotten are still being read; they go at the next call.
        """
        from node.data import erasing

        seat = self.need_seat()
        done: list[str] = []
        if not self.home.rows_db.exists():
            return done
        erasing.delete(self)
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
            self._declare(summary)
        erasing.announce(self)
        return done

    def _declare(self, summary: DatasetSummary) -> None:
        from node.data import permits

        said = summary.description
        permits.describe(
            self,
            summary.name,
            tags=said.tags,
            columns=summary.columns,
            purposes=said.purposes,
            retention_days=said.retention_days,
            licence=said.licence,
            basis=said.basis,
        )
        if said.grant:
            permits.self_grant(self, summary.name, purposes=said.purposes, basis=said.basis)


@contextmanager
def writing(home: Home, passphrase: str | None) -> Iterator[Session]:
    """Open a home to change it, with its key.

    Raises:
        StoreLocked: a daemon or command works on it.
        What `identity.load` raises.
    """
    identity = identities.load(home, passphrase)
    with Store.open(home.ledger_db) as store:
        session = Session(
            home=home,
            config=home.read_config(),
            store=store,
            member=identity.member,
            identity=identity,
            row_key=row_key(home, passphrase),
        )
        session.open_seat()
        yield session


def row_key(home: Home, passphrase: str | None) -> RowKey:
    """The lock of a home's rows; a passphrase that locks nothing else locks no rows either."""
    return RowKey(home, passphrase if identities.is_locked(home) else None)


@contextmanager
def reading(home: Home) -> Iterator[Session]:
    """Open a home to look at it: no key, no lock."""
    with Store.open(home.ledger_db, writer=False) as store:
        member = identities.member_of(home)
        session = Session(home=home, config=home.read_config(), store=store, member=member)
        session.open_seat()
        yield session
