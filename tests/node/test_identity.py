from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import IdentityError, NotAHome, OpenPermissions, PassphraseNeeded, WrongPassphrase
from node.home import Home
from node.keys import identity, pkcs8
from protocol import binding, keys
from protocol.ids import peer_id


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(path=tmp_path)
    made.keys.mkdir()
    return made


def test_created_keys_load_again_and_sign(home: Home) -> None:
    made = identity.create(home, None)
    loaded = identity.load(home, None)
    assert (loaded.member, loaded.peer, loaded.binding) == (made.member, made.peer, made.binding)
    keys.verify(made.member, "test", b"text", keys.sign(loaded.key, "test", b"text"))
    assert identity.member_of(home) == made.member
    assert bytes(loaded.key) != bytes(loaded.transport)


def test_the_binding_ties_exactly_these_two_keys(home: Home) -> None:
    made = identity.create(home, None)
    bound = binding.verify(made.binding)
    assert bound.member == keys.member_id(made.key)
    assert bound.peer == made.peer == peer_id(bytes(made.transport.verify_key))


def test_every_file_with_a_key_is_private_from_the_first_byte(home: Home) -> None:
    previous = os.umask(0)
    try:
        identity.create(home, None)
    finally:
        os.umask(previous)
    assert {file.name: file.stat().st_mode & 0o777 for file in home.keys.iterdir()} == {
        "ledger.pem": 0o600,
        "transport.key": 0o600,
        "binding.json": 0o600,
        "witness.key": 0o600,
        "recovery.sha256": 0o600,
    }
    assert home.recovery_file.stat().st_mode & 0o777 == 0o600


def test_the_transport_file_is_what_the_network_daemon_reads(home: Home) -> None:
    made = identity.create(home, None)
    raw = home.transport_key.read_bytes()
    assert raw == bytes.fromhex("08011240") + bytes(made.transport) + bytes(made.transport.verify_key)


def test_a_locked_key_opens_with_its_passphrase_only(home: Home) -> None:
    made = identity.create(home, "grüße")
    assert identity.is_locked(home)
    assert identity.load(home, "grüße").member == made.member
    with pytest.raises(WrongPassphrase, match="wrong passphrase"):
        identity.load(home, "gruesse")
    for nothing in (None, ""):
        with pytest.raises(PassphraseNeeded) as caught:
            identity.load(home, nothing)
        assert "FISHERNET_PASSPHRASE" in caught.value.hint
    assert identity.member_of(home) == made.member  # no key needed


def test_a_passphrase_for_an_open_key_is_not_needed(home: Home) -> None:
    assert identity.create(home, None).member == identity.load(home, "whatever").member
    assert not identity.is_locked(home)


def test_an_empty_passphrase_is_refused(home: Home) -> None:
    with pytest.raises(IdentityError, match="empty"):
        identity.create(home, "")
    assert list(home.keys.iterdir()) == []


@pytest.mark.parametrize("file", ["ledger_key", "transport_key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused_with_the_cure(home: Home, file: str, mode: int) -> None:
    identity.create(home, None)
    path: Path = getattr(home, file)
    path.chmod(mode)
    with pytest.raises(OpenPermissions, match=f"mode {mode:o}") as caught:
        identity.load(home, None)
    assert caught.value.hint == f"run: chmod 600 {path}"


def test_a_ledger_key_is_never_overwritten(home: Home) -> None:
    identity.create(home, None)
    before = home.ledger_key.read_bytes()
    with pytest.raises(IdentityError, match="never overwritten"):
        identity.create(home, None)
    assert home.ledger_key.read_bytes() == before


def test_files_that_do_not_belong_together_are_refused(home: Home, tmp_path: Path) -> None:
    identity.create(home, None)
    other = Home(path=tmp_path / "other")
    other.keys.mkdir(parents=True)
    identity.create(other, None)
    home.binding_file.write_bytes(other.binding_file.read_bytes())
    with pytest.raises(IdentityError, match="other keys"):
        identity.load(home, None)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("ledger.pem", b""),
        ("ledger.pem", b"-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n"),
        ("transport.key", b""),
        ("transport.key", bytes.fromhex("08011240") + bytes(64)),
        ("transport.key", bytes(68)),
        ("binding.json", b"{"),
        ("binding.json", b"[]"),
        ("binding.json", b'{"member": 1}'),
        ("binding.json", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(home: Home, file: str, data: bytes) -> None:
    identity.create(home, None)
    (home.keys / file).write_bytes(data)
    with pytest.raises(IdentityError, match=file):
        identity.load(home, None)


@pytest.mark.parametrize("file", ["ledger.pem", "transport.key", "binding.json"])
def test_a_missing_file_is_named(home: Home, file: str) -> None:
    identity.create(home, None)
    (home.keys / file).unlink()
    with pytest.raises(NotAHome, match=file):
        identity.load(home, None)


def test_a_changed_binding_is_refused(home: Home) -> None:
    identity.create(home, None)
    statement = json.loads(home.binding_file.read_text())
    statement["by_member"] = statement["by_transport"]
    home.binding_file.write_text(json.dumps(statement))
    with pytest.raises(IdentityError, match="signature"):
        identity.load(home, None)


def test_keys_do_not_show_when_an_identity_is_printed(home: Home) -> None:
    made = identity.create(home, None)
    assert "SigningKey" not in repr(made)
    assert bytes(made.key).hex() not in repr(made)


@settings(max_examples=5, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_seed_and_passphrase_come_back(seed: bytes, passphrase: str) -> None:
    pem = pkcs8.dump(seed, passphrase, salt=bytes(16), iv=bytes(range(16)))
    assert pkcs8.is_locked(pem)
    assert pkcs8.load(pem, passphrase) == seed


LOCKED = b"""\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSsGAQQB2kcECzAcBBAAAQIDBAUGBwgJCgsM
DQ4PAgJAAAIBCAIBBTAdBglghkgBZQMEASoEEBAREhMUFRYXGBkaGxwdHh8EQESI
Q09I6lMqgnob8ucxOTtbqO5bS8mXcuT3HW+Z6Wr5GIAUDjZee8xKLyD8V8qJ0diz
cLQOeJv6C5XWCoAMmwA=
-----END ENCRYPTED PRIVATE KEY-----
"""


def test_a_locked_file_is_the_same_bytes_for_the_same_inputs() -> None:
    seed, passphrase = bytes(range(32)), "correct horse"
    assert pkcs8.dump(seed, passphrase, salt=bytes(range(16)), iv=bytes(range(16, 32))) == LOCKED
    assert pkcs8.load(LOCKED, passphrase) == seed


def test_openssl_opens_both_forms(tmp_path: Path) -> None:
    for passphrase in (None, "secret"):
        (file := tmp_path / "key.pem").write_bytes(
            pkcs8.dump(bytes(range(32)), passphrase, salt=bytes(16), iv=bytes(16))
        )
        command = ["openssl", "pkey", "-in", str(file), "-passin", f"pass:{passphrase}", "-text", "-noout"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        except FileNotFoundError:
            pytest.skip("openssl is not installed here")
        assert "00:01:02:03:04:05:06:07" in shown
