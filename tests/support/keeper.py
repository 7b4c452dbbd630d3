"""One member with private rows, everything that trains on them, and a clock set by hand. No network, no torch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from pupil import COORDINATES, Pupil
from seats import Table

from contrib.row import pair_row
from contrib.rows import RowStore
from ledger import events
from ledger.access import egress
from node.collective.measure import Scales
from node.collective.seat import now_ms
from node.data.egress import Egress
from node.data.permits import PURPOSE, Permits, self_grant
from node.sections import Train
from node.session import Session
from node.training.rounds import Rounds
from protocol import contribution, sparse
from protocol.ids import EventId

ROWS = [("consented", 0), ("consented", 1), ("minor", 2), ("minor", 3)]


class Desk:
    """Ada of a table, with rows: 20 of each kind."""

    def __init__(self, table: Table, *, datasets: tuple[str, ...] = ("notes",), grant: bool = True) -> None:
        self.table, self.ada = table, table["ada"]
        self.seat = self.ada.seat
        home = self.ada.home
        home.runs.mkdir(exist_ok=True)
        with RowStore.open(home.rows_db) as rows:
            for name in datasets:
                rows.add(
                    name,
                    [
                        replace(pair_row(f"{name} question {n} {i}", f"answer {n} {i}"), tags=(tag,))
                        for tag, n in ROWS
                        for i in range(20)
                    ],
                    200_000,
                )
            summaries = rows.datasets()
        self.session = Session(
            home=home,
            config=None,
            store=self.ada.store,
            member=self.ada.id,
            seat=self.seat,  # type: ignore[arg-type]
        )
        for each in summaries:
            self.seat.append(
                events.DataCommitted(
                    dataset=each.name,
                    train_rows=each.train_rows,
                    held_out_rows=each.held_out_rows,
                    train_root=each.train_root,
                    held_out_root=each.held_out_root,
                )
            )
            if grant:
                self_grant(self.session, each.name)
        self.later = 0
        self.pupil = Pupil()
        self.egress = Egress(self.seat, egress.DEFAULT)
        self.permits = Permits(
            self.seat, purpose=PURPOSE, policy=self.egress.in_force, now=lambda: now_ms() + self.later
        )
        self.scales = Scales(home, self.pupil, datasets, 200, permits=self.permits.evaluate)
        self.rounds = Rounds(
            self.seat,
            self.ada.replay,
            self.ada.blobs,
            self.pupil,
            self.scales,
            permits=self.permits,
            egress=self.egress,
        )

    def run(self, **config: Any) -> Any:
        return asyncio.run(self.rounds.contribute(Train(**config)))

    def measure(self) -> Any:
        return asyncio.run(self.scales.losses({"base": None}))

    def said(self, kind: type[Any]) -> list[Any]:
        """The events of one type in ada's feed, from their bytes."""
        found = []
        for record in self.ada.store.records(self.seat.collective, self.ada.id):
            if record.entry.header.type == kind.TYPE and record.body:
                found.append(events.parse(kind.TYPE, record.body.value()))
        return found

    def issue(self, dataset: str = "notes", **fields: Any) -> EventId:
        selector = {k: fields.pop(k) for k in ("columns", "tags_all", "tags_none") if k in fields}
        issued = events.GrantIssued(
            **{
                "dataset": dataset,
                "selector": events.Selector(**selector),
                "actions": ("evaluate", "train"),
                "purposes": (PURPOSE,),
                "audience": events.Audience(members=(self.seat.me,)),
                "not_before": 0,
                "expires": None,
                "uses": None,
                "epsilon_micro": None,
                "depth": 0,
                "parent": None,
                "basis": "",
                "nonce": f"{len(self.seat.book.grants):064x}",
                **fields,
            }
        )
        return self.seat.append(issued).entry.event

    def revoke(self, *grants: EventId) -> None:
        for grant in grants or list(self.seat.book.grants):
            self.seat.append(events.GrantRevoked(grant=grant, reason="withdrawn"))

    def sent(self) -> Any:
        """The values of our newest contribution."""
        published = self.seat.fold.contributions[self.seat.me][-1]
        blob = contribution.unpack(self.ada.blobs.read(published.blob, 1 << 20), max_bytes=1 << 20)
        return sparse.decode(blob.update, coordinates=COORDINATES, max_sent=COORDINATES).values()
