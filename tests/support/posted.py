"""Homes of the members of a written world, so that commands run on them as on any home; nothing listens, nothing is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from paper import key
from world import World

from ledger.collective import Collective
from ledger.store import Store
from node import config
from node.cli import run
from node.files import write_new
from node.home import Home
from node.keys import identity
from protocol import binding
from protocol.ids import CollectiveId
from protocol.keys import SigningKey


class Post:
    """A world as it lies in the homes of its members."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.saved = 0

    def home(self, name: str, *, holds: bool = True) -> Home:
        """The home of a member; with `holds` it has every entry and blob that was written so far."""
        home = Home.init(self.folder / name, passphrase=None, name=name)
        home.ledger_key.unlink()
        write_new(home.ledger_key, identity.pem_of(key(name), None), mode=0o600)
        transport = SigningKey(home.transport_key.read_bytes()[4:36])
        write_new(home.binding_file, json.dumps(binding.make(key(name), transport)).encode(), mode=0o600)
        config.update(home.config_file, "node", "collective", self.world.collective)
        if holds:
            self.fill(home)
        return home

    def fill(self, home: Home) -> None:
        """Give a home every entry and blob that was written so far."""
        self.saved += 1
        folder = self.folder / f"saved-{self.saved}"
        folder.mkdir()
        self.world.save(folder)
        home.ledger_db.unlink(missing_ok=True)
        for rest in ("-wal", "-shm"):
            home.ledger_db.with_name(home.ledger_db.name + rest).unlink(missing_ok=True)
        shutil.move(folder / "ledger.db", home.ledger_db)
        for blob in (folder / "blobs").iterdir():
            shutil.move(blob, home.blobs / blob.name)


def fold_of(home: Home) -> Collective:
    """The fold of what a home holds."""
    fold = Collective(CollectiveId(home.read_config().node.collective))
    with Store.open(home.ledger_db, writer=False) as store:
        for member in store.members(fold.id):
            while page := store.records(fold.id, member, fold.sizes.get(member, 0)):
                fold.apply_all(page)
    return fold


def blobs_in(home: Home) -> set[str]:
    """Digests of the blobs that a home holds."""
    return {file.name for file in home.blobs.iterdir() if len(file.name) == 64}


def fishernet(capsys: pytest.CaptureFixture[str], home: Home, *arguments: str) -> tuple[int, Any]:
    """A command in this process: exit code, and the JSON of the answer or of the error."""
    capsys.readouterr()
    code = run([*arguments, "--home", str(home.path), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out or printed.err)
