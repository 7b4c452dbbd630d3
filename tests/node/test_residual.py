"""What one contribution could not say is said by the next ones, whatever stops in between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keeper import Desk
from pupil import COORDINATES
from seats import Table

from contrib import feedback
from node import sections
from node.data import residual
from node.training import learnt
from node.training.rounds import Rounds
from protocol import contribution, sparse
from protocol.ids import digest

SIGNS = {"update": {"density_ppm": 250_000, "value_bits": 1, "block": 16}}  # one row of 16 out of four


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    table = Table(tmp_path, rules=SIGNS)
    yield Desk(table)
    table.close()


def restarted(desk: Desk) -> Desk:
    """The same member with nothing in memory of what it did: only its disk is left."""
    desk.rounds = Rounds(
        desk.seat, desk.ada.replay, desk.ada.blobs, desk.pupil, desk.scales, permits=desk.permits, egress=desk.egress
    )
    return desk


def newest(desk: Desk) -> tuple[contribution.Contribution, sparse.SparseUpdate]:
    published = desk.seat.fold.contributions[desk.seat.me][-1]
    found = contribution.unpack(desk.ada.blobs.read(published.blob, 1 << 20), max_bytes=1 << 20)
    return found, sparse.decode(found.update, coordinates=COORDINATES, max_sent=COORDINATES)


def waiting(desk: Desk) -> Any:
    saved = desk.ada.store.get_state(residual.STATE)
    assert saved is not None
    return np.frombuffer(saved, dtype="<f4", offset=residual.HEAD.size)


def test_what_was_saved_is_read_back_in_its_own_epoch_only() -> None:
    epoch, vector = digest(b"this epoch"), np.arange(5, dtype=np.float32)
    saved = learnt.pack(epoch, 7, vector)
    found = learnt.unpack(saved, epoch, 5)
    assert found is not None
    assert (found[0], found[1].tolist()) == (7, vector.tolist())
    assert found[1].flags.writeable
    assert learnt.unpack(saved, digest(b"the next one"), 5) is None
    assert learnt.unpack(saved, epoch, 6) is None
    assert learnt.unpack(residual.nothing()[residual.STATE], epoch, 5) is None
    assert learnt.unpack(None, epoch, 5) is None


def test_a_charter_of_one_bit_is_served_by_whole_rows_and_the_card_says_so(desk: Desk) -> None:
    desk.run()
    found, update = newest(desk)
    assert (found.card.selection, found.card.value_bits, found.card.sent) == ("root-fisher-rows", 1, 16)
    assert update.indices.tolist() == list(range(48, 64)), "the row with the largest Fisher"


def test_sent_and_saved_are_what_was_learnt(desk: Desk) -> None:
    desk.run()
    _found, update = newest(desk)
    whole = waiting(desk).astype(np.float64)
    whole[update.indices] += update.values()
    np.testing.assert_allclose(whole, 0.5, rtol=1e-6)


def test_a_member_that_restarts_before_every_turn_still_says_everything(desk: Desk) -> None:
    said = np.zeros(COORDINATES)
    for _turn in range(4):
        restarted(desk).run()
        _found, update = newest(desk)
        said[update.indices] += update.values()
        desk.pupil.step = 0.0  # nothing new is learnt: what follows is what waited
    kept = feedback.DEFAULT.keep_permille / 1000
    np.testing.assert_allclose(
        said.reshape(4, 16), 0.5 * kept ** np.arange(3, -1, -1)[:, None] * np.ones(16), rtol=0.01
    )


def test_a_run_that_ended_before_a_crash_is_fed_back_once(desk: Desk) -> None:
    asyncio.run(desk.rounds.train(sections.Train()))
    restarted(desk).run()
    assert len(desk.pupil.trained) == 1, "the finished run is published, not repeated"
    first = waiting(desk)
    desk.pupil.step = 0.0
    restarted(desk).run()
    _found, update = newest(desk)
    expected = feedback.Feedback.left(feedback.DEFAULT.wanted(first, np.zeros_like(first)), update)
    assert waiting(desk).tobytes() == expected.tobytes()
