"""Promises of keeping blobs within their room: by the ledger's word, on the disk, and said when it cannot be."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from seats import Sitter, Table

from ledger import events
from node.collective import forgetting, keeping, needs
from node.collective.holdings import Holdings
from node.collective.keeping import FRESH_MS, Keeper, findings
from node.sections import Storage
from node.syncing.donors import Rank
from node.syncing.retention import Why
from protocol.ids import digest

LATER = 10**15  # ms: nothing here has only just come
LAX = Storage(min_free_mib=0)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path, ("ada", "bob"))
    yield found
    found.close()


def keeper(sitter: Sitter, storage: Storage, others: int | None = 2, **more) -> Keeper:
    async def survey(digests):
        return dict.fromkeys(digests, others)

    return Keeper(sitter.seat, sitter.blobs, lambda: storage, survey, now_ms=lambda: LATER, **more)


def new_epoch(table: Table, seed: bytes) -> None:
    adapter = {**table["ada"].fold.charter.to_json()["adapter"], "seed": digest(seed)}  # type: ignore[dict-item]
    table.amend({"op": "set", "field": "adapter", "value": adapter})


def quota(sitter: Sitter, part: float, **more) -> Storage:
    """So much of what lies here now, as a quota (a quota is in MiB, and these blobs are small)."""
    used = sum(size for _, size, _ in sitter.blobs.listing())
    return LAX.model_copy(update={"quota_mib": part * used / (1 << 20), **more})


# -- what is needed ----------------------------------------------------------------------------------------------------
def test_released_pending_own_and_voted_on_are_told_apart(table: Table) -> None:
    table.release()
    ada, bob = table
    mine, theirs = ada.publish(), bob.publish()
    table.deliver()
    found = needs.needs(ada.fold, ada.id, keep_releases=1, now_ms=LATER)
    released = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    assert {found[c.blob][0] for c in released} == {Why.RELEASE}
    assert (found[mine.blob][0], found[theirs.blob][0]) == (Why.OWN, Why.PENDING)
    assert [needs.rank(ada.fold, c) for c in (released[0], mine)] == [Rank.RELEASE, Rank.PENDING]
    cut = ada.cut()
    ada.seat.append(events.Proposed(height=ada.fold.height, attempt=0, valid_attempt=-1, value=cut.to_json()))
    found = needs.needs(ada.fold, ada.id, keep_releases=1, now_ms=LATER)
    assert {found[c.blob][0] for c in (*released, mine, theirs)} == {Why.VOTE}
    assert needs.rank(ada.fold, mine) == needs.rank(ada.fold, released[0]) == Rank.VOTE


def test_former_epochs_are_history_and_never_released_ones_stale(table: Table) -> None:
    table.release()
    ada = table["ada"]
    released = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    left = ada.publish()
    table.deliver()
    new_epoch(table, b"second")
    found = needs.needs(ada.fold, ada.id, keep_releases=1, now_ms=LATER)
    assert {found[c.blob][0] for c in released} == {Why.RELEASE}, "it is the newest release still"
    assert found[left.blob][0] == Why.STALE
    table.release()
    found = needs.needs(ada.fold, ada.id, keep_releases=1, now_ms=LATER)
    assert {found[c.blob][0] for c in released} == {Why.HISTORY}
    assert {needs.rank(ada.fold, c) for c in released} == {Rank.HISTORY}
    assert {c.blob for c in needs.former(ada.fold)} == {c.blob for c in released}
    found = needs.needs(ada.fold, ada.id, keep_releases=2, now_ms=LATER)
    assert {found[c.blob][0] for c in released} == {Why.RELEASE}


def test_what_its_author_had_forgotten_is_not_kept_and_never_fetched_again(table: Table) -> None:
    table.release()
    ada, bob = table
    gone = ada.fold.contributions[ada.id][0]
    forgetting.ask(ada.seat, [gone.event], deadline=LATER - 1)
    table.deliver()
    assert needs.needs(bob.fold, bob.id, keep_releases=1, now_ms=0)[gone.blob][0] == Why.RELEASE, "a release needs it"
    table.decide(ada.cut())
    assert needs.needs(bob.fold, bob.id, keep_releases=1, now_ms=LATER - 2)[gone.blob][0] == Why.RELEASE, "until then"
    assert needs.needs(bob.fold, bob.id, keep_releases=1, now_ms=LATER)[gone.blob][0] == Why.SUPERSEDED
    assert needs.forgotten(bob.fold, gone)
    bob.blobs.remove(gone.blob)
    asked = asyncio.run(fetched(bob, [gone]))
    assert asked == []


# -- dropping ----------------------------------------------------------------------------------------------------------
def test_over_quota_the_needed_stays_the_rest_goes_and_is_not_fetched_again(table: Table) -> None:
    table.release()
    ada = table["ada"]
    old = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    new_epoch(table, b"second")
    table.release()
    live = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    kept = keeper(ada, quota(ada, 0.6))
    asyncio.run(kept.tend())
    assert not any(ada.blobs.has(c.blob) for c in old)
    assert all(ada.blobs.has(c.blob) for c in live)
    assert kept.status()["over"] == 0
    assert kept.status()["dropped_blobs"] == len(old)
    assert not any(kept.admits(c.blob, 1) for c in old)
    again = keeper(ada, LAX)
    assert not any(again.admits(c.blob, 1) for c in old), "a restart remembers"
    assert again.admits(digest(b"another"), 1)


def test_quota_that_cannot_be_met_is_said_once_with_its_cure_and_history_is_not_fetched(table: Table) -> None:
    table.release()
    ada, said, now = table["ada"], [], [0.0]
    kept = keeper(ada, quota(ada, 0.5), clock=lambda: now[0])
    kept.told = said.append
    for _ in range(3):
        asyncio.run(kept.tend())
        now[0] += 60
    assert [f.code for f in said] == ["over-quota"]
    assert "fishernet config set storage.quota_mib" in said[0].cure
    assert kept.status()["over"] > 0
    assert not kept.admits(digest(b"old"), 1)
    assert len(ada.blobs.digests()) == 2


def test_low_disk_is_an_error_and_drops_what_may_go(table: Table) -> None:
    ada = table["ada"]
    plan, room = asyncio.run(keeper(ada, Storage(min_free_mib=2**31 - 1)).report())
    (found,) = findings(plan, room)
    assert (found.severity, found.code) == ("error", "disk-low")
    plan, room = asyncio.run(keeper(ada, LAX).report())
    assert findings(plan, room) == []


def test_rare_blob_goes_last_and_prune_keeps_it(table: Table) -> None:
    table.release()
    ada = table["ada"]
    old = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    new_epoch(table, b"second")
    table.release()
    lonely = old[0].blob
    asked = []

    async def survey(digests):
        asked.extend(digests)
        return {d: 0 if d == lonely else 2 for d in digests}

    kept = Keeper(ada.seat, ada.blobs, lambda: quota(ada, 0.95), survey, now_ms=lambda: LATER)
    asyncio.run(kept.tend())
    assert set(asked) == {c.blob for c in old}
    assert ada.blobs.has(lonely)
    plan = asyncio.run(kept.prune(rare=False, dry=False))
    assert ada.blobs.has(lonely)
    assert plan.rare > 0
    asyncio.run(kept.prune(rare=True, dry=True))
    assert ada.blobs.has(lonely)
    asyncio.run(kept.prune(rare=True, dry=False))
    assert not ada.blobs.has(lonely)


def test_blob_whose_event_is_on_its_way_is_left_alone_for_an_hour(table: Table) -> None:
    ada = table["ada"]
    name = ada.blobs.put(b"published in a moment")
    changed = {n: at for n, _, at in ada.blobs.listing()}[name]
    for age, expected in ((0, Why.FRESH), (FRESH_MS, Why.UNKNOWN)):
        (found,) = [h for h in keeping.look(ada.seat, ada.blobs, LAX, now_ms=changed + age) if h.digest == name]
        assert found.why == expected
    os.utime(ada.blobs.path(name), (1, 1))
    ada.blobs.put(b"published in a moment")  # the run is published again after a stop
    assert {n: at for n, _, at in ada.blobs.listing()}[name] >= changed


def test_damaged_note_of_what_was_dropped_costs_nothing(table: Table) -> None:
    ada = table["ada"]
    (ada.blobs.folder / "dropped.txt").write_bytes(b"\xff\n" + b"a" * 64 + b"\nhalf")
    kept = keeper(ada, LAX)
    assert not kept.admits("a" * 64, 1)  # type: ignore[arg-type]
    assert kept.status()["not_fetched_again"] == 1
    assert "dropped.txt" not in ada.blobs.digests()


def test_what_is_shown_is_flat_json(table: Table) -> None:
    table.release()
    ada = table["ada"]
    plan, room = asyncio.run(keeper(ada, quota(ada, 0.5)).report())
    told = keeping.told(plan, room, LAX)
    json.dumps(told)
    assert told["by"]["release"]["blobs"] == 2  # type: ignore[index, call-overload]
    assert [f["code"] for f in told["findings"]] == ["over-quota"]  # type: ignore[union-attr, index, call-overload]
    status = keeper(ada, LAX).status()
    assert all(isinstance(v, int | float) for v in status.values())


# -- fetching ----------------------------------------------------------------------------------------------------------
class Wants:
    """Stands where the sync is: notes what is wanted, and lets it come when told."""

    def __init__(self, held=None):
        self.order, self.ranks, self.hurried, self.gates = [], [], [], {}

    async def want_blob(self, name, size, *, prefer, max_bytes, rank):
        self.order.append(name)
        self.ranks.append(rank)
        self.gates[name] = asyncio.Event()
        await self.gates[name].wait()

    def hurry_blob(self, name, rank):
        self.hurried.append((name, rank))


async def fetched(sitter, contributions, **options):
    wants = Wants()
    async with asyncio.TaskGroup() as jobs:
        holdings = Holdings(sitter.seat, sitter.blobs, wants, lambda: None, **options)
        holdings.jobs = jobs
        holdings.fetch(contributions)
        await asyncio.sleep(0)
        for gate in wants.gates.values():
            gate.set()
    return wants.order


def test_blobs_are_fetched_by_urgency_then_in_the_order_of_calls(table: Table, monkeypatch) -> None:
    from node.collective import holdings as module

    table.release()
    ada, bob = table
    old = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    new_epoch(table, b"second")
    table.release()
    live = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    pending = bob.publish()
    table.deliver()
    for c in (*old, *live, pending):
        ada.blobs.remove(c.blob)
    monkeypatch.setattr(module, "AT_ONCE", 1)

    async def run():
        wants = Wants()
        async with asyncio.TaskGroup() as jobs:
            holdings = Holdings(ada.seat, ada.blobs, wants, lambda: None)
            holdings.jobs = jobs
            holdings.fetch(old)
            holdings.fetch(live)
            holdings.fetch([*live[::-1], pending])
            for _ in range(len(old) + len(live) + 1):
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                wants.gates[wants.order[-1]].set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert holdings.waiting == 0
        return wants

    wants = asyncio.run(run())
    assert wants.order[1:] == [pending.blob, *[c.blob for c in live], *[c.blob for c in old[1:]]], "the first had begun"


def test_blob_that_becomes_urgent_while_it_is_fetched_moves_up(table: Table) -> None:
    table.release()
    ada = table["ada"]
    mine = ada.fold.contributions[table["bob"].id][0]
    ada.blobs.remove(mine.blob)

    async def run():
        wants = Wants()
        async with asyncio.TaskGroup() as jobs:
            holdings = Holdings(ada.seat, ada.blobs, wants, lambda: None)
            holdings.jobs = jobs
            holdings.fetch([mine], Rank.HISTORY)
            await asyncio.sleep(0)
            holdings.fetch([mine], Rank.VOTE)
            wants.gates[mine.blob].set()
        return wants

    wants = asyncio.run(run())
    assert (wants.ranks, wants.hurried) == ([Rank.HISTORY], [(mine.blob, Rank.VOTE)])


def test_history_comes_when_nothing_else_is_missing_and_only_into_free_room(table: Table) -> None:
    table.release()
    ada = table["ada"]
    old = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken]
    new_epoch(table, b"second")
    table.release()
    for c in old:
        ada.blobs.remove(c.blob)

    async def run(admits):
        wants = Wants()
        async with asyncio.TaskGroup() as jobs:
            holdings = Holdings(ada.seat, ada.blobs, wants, lambda: None, admits=admits)
            holdings.jobs = jobs
            holdings.tend()
            await asyncio.sleep(0)
            for gate in wants.gates.values():
                gate.set()
        return wants

    wants = asyncio.run(run(lambda _digest, _size: True))
    assert sorted(wants.order) == sorted(c.blob for c in old)
    assert set(wants.ranks) == {Rank.HISTORY}
    assert asyncio.run(run(lambda _digest, _size: False)).order == []
