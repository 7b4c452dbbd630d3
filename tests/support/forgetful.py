"""Three real homes that publish and release by hand, for commands that look at what was merged: no daemon, no training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from circle import NAMES, Circle, make_circle

from contrib import updates
from contrib.merging import model_digest
from ledger import events
from ledger.cuts import Cut
from node.collective import judging
from node.collective.replay import Model, Replay, completed
from node.session import Session
from node.syncing.blobs import BlobStore
from protocol import contribution as blobs
from protocol import sparse
from protocol.card import Card
from protocol.ids import Digest, digest


class Forgetful:
    """A circle whose members send values and decide releases."""

    def __init__(self, folder: Path) -> None:
        self.circle: Circle = make_circle(folder)

    def home(self, name: str) -> Path:
        return self.circle.homes[name].path

    def publish(self, name: str, values: Mapping[int, float], view: Digest | None = None) -> Any:
        with self.circle.open(name) as session:
            seat = session.need_seat()
            charter = seat.fold.charter
            at = np.array(sorted(values), dtype=np.uint32)
            data = sparse.encode(
                coordinates=64, indices=at, values=np.array([values[int(i)] for i in at], dtype=np.float32),
                bits=charter.update.value_bits, block=charter.update.block,
            )  # fmt: skip
            update = sparse.decode(data, coordinates=64, max_sent=64)
            number = 1 + len(seat.fold.contributions.get(seat.me, []))
            card = Card(
                collective=seat.collective, member=seat.me, epoch=charter.epoch_id, base=charter.base.digest, number=number,
                view=view or model_digest(np.zeros(64, dtype=np.float32)), train_root=digest(b"t"), held_out_root=digest(b"h"),
                train_rows=9, steps=4, tokens=99, epsilon_micro=None, selection="fisher-r2",
                density_ppm=charter.update.density_ppm, value_bits=charter.update.value_bits, coordinates=64,
                sent=update.sent, norm_micro=updates.norm_micro(update), loss_before=420, loss_after=400,
                libraries={"numpy": "2"},
            )  # fmt: skip
            blob = blobs.pack(card, data, seat.key)
            name_ = digest(blob)
            for home in self.circle.homes.values():
                BlobStore(home.blobs).put(blob)
            seat.append(
                events.Published(epoch=charter.epoch_id, number=number, blob=name_, size=len(blob), run=f"run {number}")
            )
            found = seat.fold.contributions[seat.me][-1]
        self.circle.deliver()
        return found

    def release(self) -> Cut:
        """The cut that the first would propose is decided by all."""
        with self.circle.open(NAMES[0]) as session:
            seat, replay = session.need_seat(), self._replay(session)
            cut = judging.draft(seat, replay)
            assert isinstance(cut, Cut)
            model = replay.of_cut(seat.fold.charter, cut)
            assert isinstance(model, Model)
            cut = completed(cut, model)
            height = seat.fold.height
            seat.append(events.Proposed(height=height, attempt=0, valid_attempt=-1, value=cut.to_json()))
        for name in NAMES:
            with self.circle.open(name) as session:
                seat = session.need_seat()
                seat.append(events.Accepted(height=height, attempt=0, digest=cut.digest))
                seat.append(events.Committed(height=height, attempt=0, digest=cut.digest))
        self.circle.deliver()
        return cut

    @staticmethod
    def _replay(session: Session) -> Replay:
        store = BlobStore(session.home.blobs)
        return Replay(session.need_seat().fold, lambda name: store.read(name, 1 << 20))
