"""Promises of the doctor's checks: every state that hurts is named with its cause and with a command that cures it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from circle import Circle, make_circle

from ledger import events
from node import session as sessions
from node.doctor import examining, machine, ours, place
from node.doctor.finding import Finding, code
from node.home import Home

LIVE: dict[str, Any] = {
    "ready": True, "network": True, "network_error": "", "relays": 0, "paused": None, "full": None, "peers": [], "feeds": {},
    "quarantined": 0, "sync_error": "", "bans": [], "attempt": 0, "lines_lost": 0, "ports": [4242], "looks": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def circle(tmp_path_factory: pytest.TempPathFactory) -> Circle:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FISHERNET_PASSPHRASE", raising=False)
        return make_circle(tmp_path_factory.mktemp("circle"))


def look(offset: int = 0, rtt: int = 20, opens: tuple[bool | None, ...] = (True,), name: str = "bob") -> dict[str, Any]:
    return {"name": name, "offset_ms": offset, "rtt_ms": rtt, "address": "/ip4/192.0.2.1/tcp/55", "opens": list(opens)}


def by_name(found: Any) -> dict[str, Finding]:
    named = {each.name: each for each in found}
    assert all(each.cause for each in named.values())
    assert all(each.cure for each in named.values() if each.level != "ok"), "what is not well has a cure"
    return named


@pytest.mark.parametrize(
    ("offsets", "level"),
    [([0, 10, -10], "ok"), ([5_000, 5_100, 4_900], "warn"), ([-90_000, -91_000], "fail"), ([3_600_000, 10, 20], "ok")],
)
def test_the_clock_is_held_against_the_median_of_the_members(offsets: list[int], level: str) -> None:
    live = {**LIVE, "looks": [look(offset) for offset in offsets]}
    assert by_name(ours.clock({}, "me", 0, live))["clock"].level == level


def test_a_slow_answer_is_no_wrong_clock() -> None:
    live = {**LIVE, "looks": [look(offset=2_400, rtt=5_000)]}
    assert by_name(ours.clock({}, "me", 0, live))["clock"].level == "ok"


def test_without_a_daemon_entries_from_the_future_tell_that_our_clock_is_behind(circle: Circle) -> None:
    with sessions.reading(circle.homes["ada"]) as session:
        seat = session.need_seat()
        records = {m: seat.store.records(seat.collective, m, 0) for m in seat.fold.sizes}
        newest = max(r.entry.header.ts for found in records.values() for r in found)
        assert by_name(ours.clock(records, seat.me, newest, {}))["clock"].level == "ok"
        assert by_name(ours.clock(records, seat.me, newest - 3_600_000, {}))["clock"].level == "warn"


@pytest.mark.parametrize(
    ("looks", "level", "says"),
    [
        ([], "warn", "no member"),
        ([look(opens=(None,))], "ok", "not tried"),
        ([look(opens=(False,)), look(opens=(True,), name="cyd")], "ok", "cyd reaches us"),
        ([look(opens=(False,))], "warn", "port 4242 does not open there"),
    ],
)
def test_reachability_is_what_members_found(looks: list[dict[str, Any]], level: str, says: str) -> None:
    found = by_name(ours.reachability({**LIVE, "looks": looks}))["reachability"]
    assert (found.level, says in found.cause) == (level, True)


def test_missing_peers_and_a_missing_quorum_are_told_by_name(circle: Circle) -> None:
    fold, me = circle.fold("ada"), circle.fold("ada").charter.members[0].id
    rows = [{"member": m.id, "name": m.name, "connected": False} for m in fold.charter.members if m.id != me]
    alone = by_name(
        ours.peers(fold, me, {**LIVE, "peers": rows, "quarantined": 2, "bans": [{"who": "x", "why": "a flood"}]})
    )
    assert (alone["peers"].level, alone["quorum"].level) == ("fail", "warn")
    assert "a flood" in alone["bans"].cause
    assert "quarantine" in alone
    some = by_name(ours.peers(fold, me, {**LIVE, "peers": [{**rows[0], "connected": True}, rows[1]]}))
    assert rows[1]["name"] in some["peers"].cause
    assert "quorum" not in some
    assert (
        by_name(ours.peers(fold, me, {**LIVE, "peers": [{**r, "connected": True} for r in rows]}))["peers"].level
        == "ok"
    )


def test_every_reason_not_to_write_has_a_cure_of_its_own() -> None:
    cures = {}
    for reason in (
        "this node's feed was proven forked; it is frozen for ever",
        "another node writes with this node's key",
        "this node has no seat in the collective yet",
        "no other member has said yet how long our feed is",
    ):
        found = by_name(ours.paused(reason, None))["writing"]
        assert found.level != "ok"
        cures[reason] = found.cure
    assert len(set(cures.values())) == 4
    assert by_name(ours.paused(None, "the disk is full"))["writing"].level == "fail"
    assert by_name(ours.paused(None, None))["writing"].level == "ok"


def test_feeds_behind_stuck_votes_and_other_versions_are_seen(circle: Circle, tmp_path: Path) -> None:
    fold = circle.fold("ada")
    me, other = (m.id for m in fold.charter.members[:2])
    feed = {"size": 3, "known": 9, "frozen": False}
    assert "6 entries of 1 feeds" in by_name(ours.feeds(fold, me, {**LIVE, "feeds": {other: feed}}))["sync"].cause
    assert by_name(ours.feeds(fold, me, LIVE))["sync"].level == "ok"
    assert by_name(ours.votes(fold, {**LIVE, "attempt": 4}))["decision"].level == "warn"
    for name, version in (("ada", "0.1.0"), ("bob", "0.0.9")):
        with circle.open(name) as session:
            session.need_seat().append(events.NodeStarted(versions={"fishernet": version}, fork_risk_accepted=False))
    circle.deliver()
    with sessions.reading(circle.homes["ada"]) as session:
        seat = session.need_seat()
        records = {m: seat.store.records(seat.collective, m, 0) for m in seat.fold.sizes}
        found = by_name(ours.versions(seat.fold, seat.me, records))["versions"]
        assert (found.level, "bob 0.0.9" in found.cause) == ("warn", True)


def test_processor_memory_and_pins_are_read_from_what_the_system_says(tmp_path: Path) -> None:
    info = tmp_path / "info"
    for flags, level in (("fpu avx2", "ok"), ("avx2 avx512f avx512_bf16 amx_bf16", "ok"), ("fpu sse2", "warn")):
        info.write_text(f"flags\t\t: {flags}\n")
        assert by_name(machine.processor(info))["processor"].level == level
    assert machine.processor(tmp_path / "none")[0].level == "warn"
    info.write_text("MemTotal: 8000000 kB\nMemAvailable: 300000 kB\n")
    assert by_name(machine.memory(info))["memory"].level == "warn"
    lock = tmp_path / "requirements.lock"
    lock.write_text("pytest==0.0.1\nno-such-package==1.0\n")
    assert "pytest" in by_name(machine.packages(lock))["packages"].cause


def test_a_damaged_ledger_a_large_log_and_rows_put_aside_are_found(circle: Circle) -> None:
    home = circle.homes["cyd"]
    assert {f.name: f.level for f in place.databases(home)} == {"ledger": "ok"}
    home.withheld_rows.write_bytes(b"")
    assert by_name(place.databases(home))["withheld rows"].level == "warn"
    home.withheld_rows.unlink()
    whole = home.ledger_db.read_bytes()
    try:
        with home.ledger_db.open("r+b") as file:
            file.seek(2 * 4096)
            file.write(os.urandom(4096 * 3))
        assert by_name(place.databases(home))["ledger"].level == "fail"
    finally:
        home.ledger_db.write_bytes(whole)


def test_a_home_without_its_keys_or_with_open_ones_is_a_failure_and_nothing_is_changed(tmp_path: Path) -> None:
    home = Home.init(tmp_path / "home", passphrase=None)

    def files() -> list[str]:
        return sorted(
            p.name for p in home.path.iterdir() if not p.name.endswith(("-wal", "-shm"))
        )  # SQLite's, of any reader

    before = files()
    found = examining.examine(home)
    assert code(found) == 1
    assert by_name(found)["recovery key"].level == "warn"
    assert files() == before
    (home.keys / "binding.json").unlink()
    assert by_name(examining.examine(home))["keys"].level == "fail"
