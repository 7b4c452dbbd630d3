"""Keys of a node change hands: rotation, recovery, backup and restore, on real homes with the commands people type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from circle import Circle, make_circle, refused, told

from ledger import amending
from ledger.errors import BadEvent
from ledger.store import Store
from node import config
from node.cli import run
from node.collective import succeeding
from node.collective.seat import Seat
from node.errors import IdentityError, NotAHome, NotAllowed, WrongPassphrase
from node.home import Home
from node.keys import identity, keybackup
from protocol.ids import CollectiveId, MemberId
from protocol.keys import SigningKey, member_id


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Circle:
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    return make_circle(tmp_path)


# -- rotation --------------------------------------------------------------------------------------------------------
def test_a_key_is_rotated_with_one_command_a_decision_and_a_restart(
    circle: Circle, capsys: pytest.CaptureFixture[str]
) -> None:
    bob = circle.homes["bob"]
    old = identity.load(bob, None)
    done = told(capsys, bob, "key", "rotate")
    assert identity.member_of(bob) == old.member, "nothing changes before it is decided"
    assert told(capsys, bob, "key", "rotate")["next"] == done["next"], "asking again asks for the same"
    assert told(capsys, bob, "key", "show")["next"] == done["next"]
    circle.decide("ada", "bob")
    with circle.open("bob") as session:
        seat = session.need_seat()
        assert "start it again" in str(succeeding.ended(seat))
        size = seat.fold.sizes[old.member]
        assert seat.fold.ended.keys() == {old.member}
        succeeding.ended(seat)
        assert seat.fold.sizes[old.member] == size, "the last entry is written once"
        assert succeeding.adopt(bob, seat.fold) == done["next"]
    new = identity.load(bob, None)
    assert (new.member, new.peer, new.recovery) == (done["next"], old.peer, old.recovery)
    assert bytes(new.witness) != bytes(old.witness)
    assert (bob.keys / f"was-{old.member[:16]}" / "ledger.pem").exists()
    with circle.open("bob") as session:
        seat = session.need_seat()
        assert succeeding.ended(seat) is None
        seat.append(new.bound(circle.collective))
    circle.deliver()
    fold = circle.fold("ada")
    assert fold.witnesses.bound.keys() >= {old.member, new.member}
    assert not fold.flaws
    assert fold.owner(old.member) == new.member


def test_a_change_of_keys_that_a_crash_interrupted_is_finished(
    circle: Circle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = circle.homes["bob"]
    done = told(capsys, bob, "key", "rotate")
    circle.decide("ada", "bob")
    fold = circle.fold("bob")
    moved = 0
    real = succeeding.os.replace

    def crash(source: Path, target: Path) -> None:
        nonlocal moved
        moved += 1
        if moved % 2 == 0:
            raise OSError("killed")
        real(source, target)

    monkeypatch.setattr(succeeding.os, "replace", crash)
    for _ in range(20):
        try:
            if succeeding.adopt(bob, fold):
                break
        except OSError:
            continue
    assert identity.load(bob, None).member == done["next"]
    assert not bob.next_keys.exists()


def test_keys_that_wait_are_not_taken_before_the_charter_names_them(
    circle: Circle, capsys: pytest.CaptureFixture[str]
) -> None:
    bob = circle.homes["bob"]
    told(capsys, bob, "key", "rotate")
    before = identity.load(bob, None).member
    with circle.open("bob") as session:
        assert succeeding.ended(session.need_seat()) is None
        assert succeeding.adopt(bob, session.need_seat().fold) is None
    assert identity.load(bob, None).member == before


def test_a_locked_node_rotates_to_a_locked_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home.init(tmp_path / "locked", passphrase="a long one")
    heir = succeeding.prepare(home, "a long one", fresh_recovery=True)
    assert heir.recovery is not None
    for name in ("ledger.pem", "witness.key", "recovery.pem"):
        assert b"ENCRYPTED" in (home.next_keys / name).read_bytes()
        assert (home.next_keys / name).stat().st_mode & 0o077 == 0
    with pytest.raises(WrongPassphrase):
        succeeding.prepare(home, "another", fresh_recovery=True)


# -- recovery --------------------------------------------------------------------------------------------------------
def test_a_stolen_key_is_revoked_with_the_recovery_key_through_any_other_member(
    circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bob, ada = circle.homes["bob"], circle.homes["ada"]
    offline = tmp_path / "drawer.pem"
    bob.recovery_file.rename(offline)
    old = identity.load(bob, None).member
    done = told(capsys, bob, "key", "revoke", "--recovery", str(offline), "--size", "0")
    assert refused(capsys, ada, "key", "propose", done["file"]).startswith("couldn't ask for succession"), (
        "the commitment stands after the entry that is named as the last good one"
    )
    done = told(capsys, bob, "key", "revoke", "--recovery", str(offline))
    told(capsys, ada, "key", "propose", done["file"])
    circle.decide("ada", "cyd")
    with circle.open("bob") as session:
        assert succeeding.ended(session.need_seat()) is not None
        assert session.need_seat().fold.ended == {}, "a stolen key writes nothing any more"
        assert succeeding.adopt(bob, session.need_seat().fold) == done["next"]
    assert bob.recovery_file.exists(), "a new recovery key, to be moved offline again"
    fold = circle.fold("cyd")
    assert fold.charter.member(old) is None
    assert fold.charter.member(done["next"]).name == "bob"
    assert fold.charter.member(done["next"]).was[0].left == "recovery"


def test_another_recovery_key_is_refused_at_once(circle: Circle, capsys: pytest.CaptureFixture[str]) -> None:
    bob, cyd = circle.homes["bob"], circle.homes["cyd"]
    text = refused(capsys, bob, "key", "revoke", "--recovery", str(cyd.recovery_file))
    assert "committed to another recovery key" in text
    heir = succeeding.prepare(bob, None, fresh_recovery=True)
    owner, fold = identity.read_key(bob.recovery_file, None), circle.fold("ada")
    with pytest.raises(NotAllowed, match="is not here"):
        succeeding.state(fold, owner, heir, identity.member_of(bob), 999)


def test_a_statement_of_another_collective_is_not_asked_for(circle: Circle, capsys: pytest.CaptureFixture[str]) -> None:
    bob = circle.homes["bob"]
    done = told(capsys, bob, "key", "revoke", "--recovery", str(bob.recovery_file))
    path = Path(done["file"])
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "collective": "ab" * 32}))
    refused(capsys, circle.homes["ada"], "key", "propose", str(path))
    path.write_text("{}")
    refused(capsys, circle.homes["ada"], "key", "propose", str(path))
    path.write_text("nonsense")
    refused(capsys, circle.homes["ada"], "key", "propose", str(path))


def test_no_key_is_asked_for_where_no_decision_could_list_its_feed(
    circle: Circle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amending, "MAX_KEYS", 3)
    monkeypatch.setattr(amending, "FOR_RECOVERIES", 0)
    size = circle.fold("ada").sizes
    guest = member_id(SigningKey.generate())
    for command in (("collective", "invite", guest, "--name", "guest"), ("key", "rotate")):
        text = refused(capsys, circle.homes["ada"], *command)
        assert text.startswith("couldn't seat another key: 3 have, or had, a seat here")
    assert circle.fold("ada").sizes == size


def test_status_warns_while_the_recovery_key_is_on_this_machine(
    circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bob = circle.homes["bob"]
    assert told(capsys, bob, "status")["recovery_file"] == str(bob.recovery_file)
    assert run(["status", "--home", str(bob.path)]) == 0
    assert "still on this machine" in capsys.readouterr().out
    bob.recovery_file.rename(tmp_path / "drawer.pem")
    assert "recovery_file" not in told(capsys, bob, "status")
    assert identity.load(bob, None).recovery is not None, "what the feed commits to stays"


# -- backup ----------------------------------------------------------------------------------------------------------
def test_a_backup_restores_the_same_keys_into_a_new_home(
    circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FISHERNET_BACKUP_PASSPHRASE", "kept elsewhere")
    bob, file = circle.homes["bob"], tmp_path / "bob.backup"
    before = identity.load(bob, None)
    told(capsys, bob, "key", "backup", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    for secret in (bytes(before.key), bytes(before.witness), b"PRIVATE KEY"):
        assert secret not in file.read_bytes()
    assert "never overwritten" in refused(capsys, bob, "key", "backup", str(file))
    other = Home(path=tmp_path / "again")
    told(capsys, other, "key", "restore", str(file))
    after = identity.load(other, None)
    assert (after.member, after.peer, bytes(after.witness), after.recovery) == (
        before.member,
        before.peer,
        bytes(before.witness),
        before.recovery,
    )
    assert "never overwritten" in refused(capsys, other, "key", "restore", str(file))
    assert {f.stat().st_mode & 0o077 for f in other.keys.rglob("*")} == {0}


def test_a_backup_does_not_open_with_another_passphrase_or_when_it_is_damaged(circle: Circle) -> None:
    data = keybackup.seal(circle.homes["bob"], "right")
    assert set(keybackup.open_(data, "right")) >= {"keys/ledger.pem", "keys/witness.key", "recovery.pem"}
    with pytest.raises(WrongPassphrase):
        keybackup.open_(data, "wrong")
    texts = json.loads(data)
    for bad in (
        b"",
        b"{}",
        b"[]",
        json.dumps({**texts, "kind": "else"}).encode(),
        json.dumps({**texts, "salt": "00"}).encode(),
    ):
        with pytest.raises(IdentityError):
            keybackup.open_(bad, "right")
    flipped = "A" if texts["sealed"][40] != "A" else "B"
    with pytest.raises(WrongPassphrase):
        keybackup.open_(
            json.dumps({**texts, "sealed": texts["sealed"][:40] + flipped + texts["sealed"][41:]}).encode(), "right"
        )
    with pytest.raises(IdentityError):
        keybackup.seal(circle.homes["bob"], "")


def test_a_backup_writes_nowhere_but_to_keys(tmp_path: Path) -> None:
    home = Home.init(tmp_path / "h", passphrase=None, keys=False)
    with pytest.raises(NotAHome):
        identity.load(home, None)
    for name in ("../x", "/etc/x", "node.toml", "keys/../../x"):
        with pytest.raises(IdentityError):
            keybackup._inside(name)
    with pytest.raises(IdentityError, match="no ledger key"):
        keybackup.restore(home, {"keys/witness.key": b"x"})


# -- admission -------------------------------------------------------------------------------------------------------
def test_a_node_that_lost_its_witness_key_gets_another_and_binds_it(circle: Circle) -> None:
    bob = circle.homes["bob"]
    before = identity.load(bob, None)
    bob.witness_key.unlink()
    after = identity.load(bob, None)
    assert bytes(before.witness) != bytes(after.witness)
    with circle.open("bob") as session:
        fold = session.need_seat().fold
        assert fold.witnesses.announced[before.member] != after.bound(circle.collective)
        session.need_seat().append(after.bound(circle.collective))
        assert fold.witnesses.bound[before.member].witness.public == bytes(after.witness.verify_key).hex()


def test_the_post_quantum_key_is_made_when_it_is_wanted(tmp_path: Path) -> None:
    toml = config.template(name="pq").replace("post_quantum = false", "post_quantum = true")
    home = Home.init(tmp_path / "pq", passphrase="locked", toml=toml)
    found = identity.load(home, "locked")
    assert found.post_quantum is not None
    assert b"ENCRYPTED" in home.post_quantum_key.read_bytes()
    assert found.bound(CollectiveId("ab" * 32)).witness_pq is not None
    plain = Home.init(tmp_path / "plain", passphrase=None)
    assert identity.load(plain, None).post_quantum is None
    identity.add_post_quantum(plain, None)
    assert identity.load(plain, None).post_quantum is not None


def test_a_seat_without_its_keys_is_read_by_what_its_feed_says(circle: Circle) -> None:
    with Store.open(circle.homes["ada"].ledger_db, writer=False) as store:
        seat = Seat(circle.homes["ada"], MemberId("0" * 64), store, circle.collective)
        assert len(seat.fold.witnesses.bound) == 3
        assert all(isinstance(f, BadEvent) for f in seat.fold.flaws)
