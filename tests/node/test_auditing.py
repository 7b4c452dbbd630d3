"""The audit of a directory: an honest one is clean; every kind of damage has its code at its entry, and nothing is written."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paper import Paper, key
from seats import Sitter, Table
from world import World

from ledger import events, succession
from ledger.collective import Contribution
from ledger.cuts import Amendment, Cut, Exclusion, RegisterDigest
from ledger.entry import make
from ledger.errors import ForkSeen
from ledger.store import Store
from node.audits import auditing
from node.cli import render_audit
from node.collective import judging
from node.collective.seat import now_ms
from protocol.ids import CollectiveId, Digest, MemberId, digest
from protocol.keys import member_id
from tests.node.test_render import shown

GOOD, OTHER = {3: 0.5, 9: -0.25}, {5: 0.5}


class Directory:
    """A copy of what one member holds, to be damaged and audited."""

    def __init__(self, sitter: Sitter, folder: Path) -> None:
        self.path, self.collective, self.member = folder, sitter.collective, sitter.id
        shutil.copytree(sitter.home.blobs, folder / "blobs")
        database = sqlite3.connect(sitter.home.ledger_db)
        copy = sqlite3.connect(folder / "ledger.db")
        database.backup(copy)
        copy.execute("PRAGMA journal_mode=WAL")
        for each in (database, copy):
            each.close()

    def audit(self, observed: Mapping[str, Any] | None = None, **more: bool) -> dict[str, Any]:
        options = auditing.Options(observed=observed, **more)
        found = auditing.run(self.path / "ledger.db", self.path / "blobs", self.collective, options)
        assert isinstance(found, dict)
        return found

    def faults(self) -> list[tuple[str, str | None, int | None]]:
        """Code, member and entry of every fault."""
        return [(f["id"], f["member"], f["seq"]) for f in self.audit()["findings"] if f["severity"] == "error"]

    def tamper(self, statement: str, *values: object) -> None:
        """What somebody with a database tool can do: take the triggers away, change, put them back."""
        database = sqlite3.connect(self.path / "ledger.db")
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement, values)
        for _, sql in triggers:
            database.execute(sql)
        database.commit()
        database.close()

    def feed(self, member: MemberId) -> int:
        database = sqlite3.connect(self.path / "ledger.db")
        found = int(database.execute("SELECT id FROM feeds WHERE member = ?", (member,)).fetchone()[0])
        database.close()
        return found

    def blob(self, contribution: Contribution) -> Path:
        return self.path / "blobs" / contribution.blob


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Two releases with an amendment between them, an exclusion for a fault, an access, and what waits for the next."""
    table = Table(tmp_path_factory.mktemp("honest"), accounts=True)
    cyd = table["cyd"]
    cyd.publish(blob=cyd.blob(GOOD, base=digest(b"other")))
    table.release("ada", "bob")
    table.amend({"op": "set", "field": "recipe", "value": "sqrt-mean/1"})
    table.release()
    table["ada"].publish(OTHER)
    table.deliver()
    yield table
    table.close()


@pytest.fixture
def held(honest: Table, tmp_path: Path) -> Directory:
    return Directory(honest["bob"], tmp_path)


def contribution(table: Table, name: str, number: int = 1) -> Contribution:
    found: Contribution = table["ada"].fold.contributions[table[name].id][number - 1]
    return found


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(("-wal", "-shm"))
    }


# -- honest ------------------------------------------------------------------------------------------------------------
def test_an_honest_directory_is_clean_and_every_release_recomputed(honest: Table, held: Directory) -> None:
    before = checksums(held.path)
    found = held.audit()
    assert found["findings"] == []
    assert found["unchecked"] == []
    assert found["verdict"] == "clean"
    assert [(r["number"], r["height"], r["recomputed"], r["matches"]) for r in found["releases"]] == [
        (1, 1, True, True),
        (2, 3, True, True),
    ]
    assert [r["digest"] for r in found["releases"]] == [d.digest for d in honest["ada"].fold.releases]
    assert {f["member"]: f["name"] for f in found["feeds"]} == {s.id: s.name for s in honest}
    assert {f["member"]: f["size"] for f in found["feeds"]} == honest["ada"].fold.sizes
    assert checksums(held.path) == before
    assert "clean: 3 feeds, 2 releases" in shown(render_audit.audit, found)


def test_every_members_copy_gives_the_same_audit(honest: Table, tmp_path: Path) -> None:
    audits = []
    for sitter in honest:
        folder = tmp_path / sitter.name
        folder.mkdir()
        audits.append(Directory(sitter, folder).audit())
    assert audits[0] == audits[1] == audits[2]


def test_the_audit_needs_no_torch_and_no_network_library(held: Directory) -> None:
    program = (
        "import sys; from pathlib import Path; from node.audits import auditing;"
        f"held = Path({str(held.path)!r});"
        f"r = auditing.run(held / 'ledger.db', held / 'blobs', {held.collective!r}, None);"
        "bad = {'torch', 'transformers', 'peft', 'hivemind', 'libp2p', 'asyncio'} & set(sys.modules);"
        "print(r['verdict'], sorted(bad))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "clean []", done.stderr


# -- blobs -------------------------------------------------------------------------------------------------------------
def test_a_deleted_blob_could_not_be_checked(honest: Table, held: Directory) -> None:
    held.blob(contribution(honest, "ada")).unlink()
    found = held.audit()
    assert found["verdict"] == "could-not-check"
    assert found["findings"] == []
    assert [r["recomputed"] for r in found["releases"]] == [False, False]
    assert found["unchecked"] == [f"release {n} could not be recomputed: 1 blobs are not here" for n in (1, 2)]


def test_a_blob_that_only_the_second_release_needs_leaves_the_first_one_checked(honest: Table, held: Directory) -> None:
    held.blob(contribution(honest, "ada", 2)).unlink()
    assert [r["recomputed"] for r in held.audit()["releases"]] == [True, False]


def test_a_blob_that_waits_or_was_left_out_is_missed_only_where_it_is_proof(honest: Table, held: Directory) -> None:
    held.blob(contribution(honest, "ada", 3)).unlink()
    assert held.audit()["verdict"] == "clean", "it is in no release yet"
    held.blob(contribution(honest, "cyd")).unlink()
    found = held.audit()
    assert found["verdict"] == "could-not-check"
    assert found["unchecked"] == ["release 1: the blob left out as 'wrong-base' is not here"]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1] + bytes([d[-1] ^ 1]), lambda d: d[:9], lambda _: b"", lambda d: d + b"x"]
)
def test_a_damaged_blob_is_found_at_the_entry_that_published_it_and_left_as_it_is(
    honest: Table, held: Directory, damage: Callable[[bytes], bytes]
) -> None:
    one = contribution(honest, "ada")
    held.blob(one).write_bytes(damage(held.blob(one).read_bytes()))
    before = checksums(held.path)
    found = held.audit()
    assert held.faults() == [("blob-damaged", one.member, one.source.seq)]
    assert found["verdict"] == "findings"
    assert [r["recomputed"] for r in found["releases"]] == [False, False]
    assert checksums(held.path) == before, "an audit changes nothing that it audits"


def test_what_lies_in_the_place_of_a_blob_may_be_anything(honest: Table, held: Directory) -> None:
    one = contribution(honest, "ada")
    held.blob(one).unlink()
    held.blob(one).mkdir()
    assert held.faults() == [("blob-damaged", one.member, one.source.seq)]


def test_a_folder_without_blobs_is_not_made(held: Directory) -> None:
    shutil.rmtree(held.path / "blobs")
    assert held.audit()["verdict"] == "could-not-check"
    assert not (held.path / "blobs").exists()


# -- feeds -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0.1, 0.4, 0.7, 0.99])
def test_a_flipped_byte_in_a_line_is_found_at_its_entry(honest: Table, held: Directory, at: float) -> None:
    bob, seq = honest["bob"].id, 2
    feed = held.feed(bob)
    line = bytearray(honest["bob"].store.records(held.collective, bob, seq, 1)[0].entry.line)
    line[int(at * len(line))] ^= 1
    held.tamper("UPDATE entries SET line = ? WHERE feed = ? AND seq = ?", bytes(line), feed, seq)
    found = held.audit()
    assert found["verdict"] == "findings"
    assert ("leaf-mismatch", bob, seq) in held.faults()
    assert {(m, s) for _, m, s in held.faults()} <= {(bob, n) for n in range(seq, honest["ada"].fold.sizes[bob])}
    assert any("not followed beyond entry 2" in text for text in found["unchecked"])


def test_a_changed_body_is_found_at_its_entry(honest: Table, held: Directory) -> None:
    ada, one = honest["ada"].id, contribution(honest, "ada")
    data = honest["ada"].store.records(held.collective, ada, one.source.seq, 1)[0].body.data  # type: ignore[union-attr]
    changed = data.replace(b'"number":1', b'"number":7')
    assert changed != data
    held.tamper("UPDATE entries SET data = ? WHERE feed = ? AND seq = ?", changed, held.feed(ada), one.source.seq)
    assert held.faults() == [("bad-commitment", ada, one.source.seq)]
    assert held.audit()["verdict"] == "findings"


def test_a_missing_access_is_a_warning_unless_erasure_was_asked_and_any_other_missing_body_could_not_be_checked(
    honest: Table, held: Directory
) -> None:
    cyd = honest["cyd"].id
    used = next(
        r.entry.header.seq
        for r in honest["cyd"].store.records(held.collective, cyd)
        if r.entry.header.type == "data.used"
    )
    held.tamper("UPDATE entries SET salt = NULL, data = NULL WHERE feed = ? AND seq = ?", held.feed(cyd), used)
    found = held.audit()
    assert [(f["id"], f["severity"], f["member"], f["seq"]) for f in found["findings"]] == [
        ("withheld", "warning", cyd, used),
        ("body-missing", "notice", cyd, used),
    ]
    assert found["verdict"] == "clean"
    assert held.audit(strict=True)["verdict"] == "findings"
    one = contribution(honest, "cyd")
    held.tamper(
        "UPDATE entries SET salt = NULL, data = NULL WHERE feed = ? AND seq = ?", held.feed(cyd), one.source.seq
    )
    found = held.audit()
    assert found["verdict"] != "clean"
    assert any(f"entry {one.source.seq} of {cyd[:12]}: its body is missing" in text for text in found["unchecked"])


def test_a_feed_shorter_than_its_signed_head_lacks_its_tail(honest: Table, held: Directory) -> None:
    cyd = honest["cyd"].id
    size = honest["ada"].fold.sizes[cyd]
    feed = held.feed(cyd)
    held.tamper("DELETE FROM entries WHERE feed = ? AND seq >= ?", feed, size - 1)
    faults = held.faults()
    assert ("tail-missing", cyd, size - 1) in faults
    assert {m for _, m, _ in faults} == {cyd}
    assert held.audit()["verdict"] == "findings"


def test_entries_that_a_decision_builds_on_and_nobody_can_miss_could_not_be_checked(
    honest: Table, held: Directory
) -> None:
    """A tail that is gone together with its heads: the decision after it tells."""
    cyd = honest["cyd"].id
    feed = held.feed(cyd)
    held.tamper("DELETE FROM entries WHERE feed = ? AND seq >= 1", feed)
    held.tamper("DELETE FROM heads WHERE feed = ? AND size > 1", feed)
    held.tamper("DELETE FROM nodes WHERE feed = ? AND (idx + 1) << level > 1", feed)
    found = held.audit()
    assert [(f["id"], f["severity"]) for f in found["findings"]] == [("seen-missing", "notice")]
    assert found["verdict"] == "could-not-check"
    assert any("entries it builds on are not here" in text and cyd[:12] in text for text in found["unchecked"])


def test_a_gap_in_a_feed_is_found_and_the_feed_followed_up_to_it(honest: Table, held: Directory) -> None:
    ada = honest["ada"].id
    feed = held.feed(ada)
    held.tamper("DELETE FROM entries WHERE feed = ? AND seq = 3", feed)
    assert ("gap", ada, 3) in held.faults()
    assert held.audit()["verdict"] == "findings"


def test_a_collective_that_is_not_here_could_not_be_checked(held: Directory) -> None:
    held.collective = CollectiveId("ab" * 32)
    found = held.audit()
    assert found["verdict"] == "could-not-check"
    assert found["unchecked"] == ["the founder's feed with the charter is not here"]


def test_two_entries_signed_for_one_place_are_a_fork(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    table = Table(tmp_path / "table", accounts=True)
    bob, ada = table["bob"], table["ada"]
    bob.publish(GOOD)
    table.deliver()
    fork = make(
        key("bob"), collective=table.collective, seq=0, prev=Digest("0" * 64), ts=9, type="node.started", seen=(),
        body={"versions": {}, "fork_risk_accepted": False}, salt=bytes(16),
    )  # fmt: skip
    with pytest.raises(ForkSeen):
        ada.store.append_foreign(table.collective, bob.id, [fork], None)
    (tmp_path / "copy").mkdir()
    held = Directory(ada, tmp_path / "copy")
    assert held.faults() == [("fork", bob.id, 0)]
    assert held.audit()["verdict"] == "findings"
    assert len(held.audit()["feeds"]) == 2
    table.close()


# -- what was signed ---------------------------------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    folder = tmp_path / "table"
    folder.mkdir()
    found = Table(folder, accounts=True)
    yield found
    found.close()


def audited(sitter: Sitter, folder: Path) -> Directory:
    folder.mkdir()
    return Directory(sitter, folder)


def test_a_release_that_a_quorum_signed_falsely_is_a_mismatch_at_its_proposal(table: Table, tmp_path: Path) -> None:
    for sitter in table:
        sitter.publish(GOOD)
    table.deliver()
    table.decide(replace(table["ada"].cut(), model=digest(b"another model")))
    held = audited(table["cyd"], tmp_path / "copy")
    proposal = table["ada"].fold.decisions[0].proposal
    assert held.faults() == [("C9", table["ada"].id, proposal.seq)]
    (release,) = held.audit()["releases"]
    assert (release["recomputed"], release["matches"]) == (True, False)


def test_a_release_over_a_contribution_with_a_fault_is_found_at_that_contribution(table: Table, tmp_path: Path) -> None:
    table["ada"].publish(GOOD)
    cyd = table["cyd"]
    bad = cyd.publish(blob=cyd.blob(GOOD, base=digest(b"other")))
    table.deliver()
    cut = table["ada"].cut()
    registers = tuple(sorted((*cut.registers, replace(cut.registers[0], member=cyd.id)), key=lambda r: r.member))
    table.decide(replace(cut, excluded=(), registers=registers))
    held = audited(table["bob"], tmp_path / "copy")
    proposal = table["ada"].fold.decisions[0].proposal.seq
    assert sorted(held.faults()) == [
        ("C9", table["ada"].id, proposal),
        ("covers-wrong-base", cyd.id, bad.source.seq),
    ]


def test_a_contribution_left_out_for_a_fault_it_does_not_have_is_found(table: Table, tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        table[name].publish(GOOD)
    table.deliver()
    ada, cut = table["ada"], table["ada"].cut()
    good = ada.fold.contributions[table["bob"].id][0]
    bent = replace(cut, excluded=(Exclusion(event=good.event, reason="norm", evidence=()),))
    model = ada.replay.merge(ada.fold.charter, ada.fold.contributions[ada.id])
    kept = tuple(r for r in cut.registers if r.member == ada.id)
    table.decide(replace(bent, registers=kept, model=model.digest))  # type: ignore[union-attr]
    held = audited(table["cyd"], tmp_path / "copy")
    assert held.faults() == [("exclusion-without-fault", ada.id, ada.fold.decisions[0].proposal.seq)]


def test_a_decision_that_breaks_a_rule_is_found_although_a_quorum_signed_it(table: Table, tmp_path: Path) -> None:
    table["ada"].publish(GOOD)
    table.deliver()
    table.decide(replace(table["ada"].cut(), number=2))
    held = audited(table["bob"], tmp_path / "copy")
    assert ("bad-decision", table["ada"].id, table["ada"].fold.decisions[0].proposal.seq) in held.faults()
    assert any("wrong-parent-release" in f["text"] for f in held.audit()["findings"])


def test_a_double_vote_is_found_at_the_second_vote(table: Table, tmp_path: Path) -> None:
    table["ada"].publish(GOOD)
    table.deliver()
    cut = table["ada"].cut()
    bob = table["bob"]
    bob.seat.append(events.Committed(height=1, attempt=5, digest=None))
    second = bob.seat.append(events.Committed(height=1, attempt=5, digest=cut.digest))
    table.decide(cut)
    held = audited(table["cyd"], tmp_path / "copy")
    assert held.faults() == [("double-vote", bob.id, second.entry.header.seq)]
    assert held.audit()["releases"][0]["matches"] is True


def test_two_values_that_quorums_committed_at_one_height_are_found(table: Table, tmp_path: Path) -> None:
    table["ada"].publish(GOOD)
    table.deliver()
    cut = table["ada"].cut()
    other = replace(cut, model=digest(b"other"))
    for name in ("ada", "bob"):
        table[name].seat.append(events.Committed(height=1, attempt=1, digest=other.digest))
    table.decide(cut)
    held = audited(table["cyd"], tmp_path / "copy")
    assert {code for code, _, _ in held.faults()} == {"two-decisions"}


def test_a_flawed_entry_is_found_at_its_place_and_an_unknown_type_is_a_notice(table: Table, tmp_path: Path) -> None:
    bob = table["bob"]
    bob.seat.append(events.Published(epoch=bob.fold.charter.epoch_id, number=9, blob=digest(b"b"), size=9, run="9"))
    bob.store.append(key("bob"), table.collective, "grant.given", {}, now_ms=now_ms(), salt=bytes(16))
    bob.sit()
    table.deliver()
    held = audited(table["cyd"], tmp_path / "copy")
    assert held.faults() == [("bad-event", bob.id, 0)]
    assert [f["id"] for f in held.audit()["findings"] if f["severity"] == "notice"] == ["unknown-type"]


def test_a_recipe_that_this_version_does_not_know_could_not_be_checked(table: Table, tmp_path: Path) -> None:
    ada = table["ada"]
    asked = ada.seat.append(events.AmendmentProposed(change={"op": "set", "field": "recipe", "value": "median/9"}))
    table.deliver()
    table["bob"].seat.append(events.AmendmentApproved(proposal=asked.entry.event))
    table.deliver()
    value = ada.draft()
    assert isinstance(value, Amendment)
    table.decide(value)
    ada.publish(GOOD)
    table.deliver()
    cut = judging.draft(ada.seat, ada.replay)
    assert isinstance(cut, Cut)
    table.decide(replace(cut, registers=(RegisterDigest(member=ada.id, digest=digest(b"r")),)))
    held = audited(table["cyd"], tmp_path / "copy")
    found = held.audit()
    assert held.faults() == []
    assert found["verdict"] == "could-not-check"
    assert any("unknown recipe" in text for text in found["unchecked"])


# -- what an observer adds ---------------------------------------------------------------------------------------------
def test_a_head_that_only_one_node_confirmed_is_not_clean(honest: Table, held: Directory) -> None:
    def seen(status: str) -> dict[str, Any]:
        return {"feeds": [{"member": honest["ada"].id, "status": status}]}

    assert held.audit(seen("confirmed"))["verdict"] == "clean"
    found = held.audit(seen("could-not-check"))
    assert found["verdict"] == "could-not-check"
    assert member_id(key("ada"))[:12] in found["unchecked"][0]


# -- what was erased ---------------------------------------------------------------------------------------------------
def forgotten(tmp_path: Path, *, again: bool) -> tuple[World, dict[str, Any]]:
    """Ada's contribution is released, forgotten, its blob deleted everywhere; `again`: a release without it was made."""
    world = World.opened()
    mine = world.published("ada")
    world.release("bob", "cyd")
    request = world.forgotten("ada", contributions=[mine])
    for name in world.feeds:
        world.erased(name, request)
    if again:
        world.published("bob")
        world.objected(mine, "bob", "cyd", reason="erased")
        world.decide(world.draft(exclude=[mine.entry.event]))
    body: Any = mine.body.value() if mine.body else {}
    path = world.save(tmp_path)
    (tmp_path / "blobs" / body["blob"]).unlink()
    found = auditing.run(path, tmp_path / "blobs", world.collective)
    assert isinstance(found, dict)
    return world, found


def test_a_release_that_lost_a_blob_to_an_erasure_is_superseded_and_neither_a_fault_nor_clean(tmp_path: Path) -> None:
    _world, found = forgotten(tmp_path, again=True)
    first, second = found["releases"]
    assert (first["recomputed"], first["matches"], first["superseded"]) == (False, None, True)
    assert (second["recomputed"], second["matches"], second["superseded"]) == (True, True, False)
    assert [(f["id"], f["severity"]) for f in found["findings"]] == [("superseded", "notice")]
    assert found["verdict"] == "clean", "what is served can be recomputed"
    assert "superseded" in shown(render_audit.audit, found)


def test_without_a_later_release_it_could_not_be_checked(tmp_path: Path) -> None:
    _world, found = forgotten(tmp_path, again=False)
    assert [r["recomputed"] for r in found["releases"]] == [False]
    assert found["findings"] == []
    assert found["verdict"] == "could-not-check"
    assert any("erased on request" in text for text in found["unchecked"])


def test_entries_that_somebody_signed_with_a_key_whose_seat_was_recovered_are_told(tmp_path: Path) -> None:
    """What a thief wrote after the last good entry counts for nothing, and the auditor hears of it."""
    table = Paper.found(["ada", "bob", "cyd"])
    bob = table.members["bob"]
    bob.bind_keys(recovery=key("recovery of bob"))
    table.release()
    good = len(bob.feed)
    bob.say(events.NodeAlive())  # the thief
    statement = succession.make(
        key("recovery of bob"), key("bob two"), collective=bob.collective, old=bob.id, size=good,
        leaf=bob.feed[good - 1].entry.leaf,
    )  # fmt: skip
    table.guest("bob two")
    table.dead.add("bob two")
    table.members["ada"].say(events.AmendmentProposed(change=statement.change()))
    table.decide()
    with Store.open(tmp_path / "ledger.db") as store:
        for member in table.members.values():
            if member.feed:
                store.append_foreign(member.collective, member.id, member.feed, None)
    found = auditing.run(tmp_path / "ledger.db", tmp_path / "blobs", bob.collective)
    assert isinstance(found, dict)
    assert ("untrusted-entry", bob.id, good) in [(f["id"], f["member"], f["seq"]) for f in found["findings"]]
