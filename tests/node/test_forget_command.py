"""`forget`, `verify-bundle` and `replay` as a person uses them, on homes without a daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from circle import NAMES, refused, told
from forgetful import Forgetful

from ledger import bundle
from node.audits import replaying
from node.cli import run
from protocol import canon

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Forgetful:
    """Everybody sent one; release 1 has them; bob sent a second from there."""
    found = Forgetful(tmp_path_factory.mktemp("story"))
    for n, name in enumerate(NAMES):
        found.publish(name, {n: 0.5, 20 + n: 0.25})
    cut = found.release()
    found.publish("bob", {30: 0.5}, view=cut.model)
    return found


@pytest.fixture
def copied(story: Forgetful, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forgetful:
    """The same homes, to be changed."""
    found = Forgetful.__new__(Forgetful)
    homes = {}
    for name, home in story.circle.homes.items():
        shutil.copytree(home.path, tmp_path / name)
        homes[name] = type(home)(path=tmp_path / name)
    found.circle = type(story.circle)(homes, story.circle.collective)
    monkeypatch.chdir(tmp_path)
    return found


def outside(*arguments: str, cwd: Path, check: str) -> dict[str, Any]:
    """Run a command in a process of its own, far from any home, and look at what it imported."""
    code = (
        "import sys, json\n"
        "from node.cli import run\n"
        f"code = run({list(arguments)!r})\n"
        f"loaded = sorted(m for m in {check.split()!r} if m in sys.modules)\n"
        "print(json.dumps({'code': code, 'loaded': loaded}), file=sys.stderr)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FISHERNET_HOME": str(cwd / "nowhere")}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    answer: dict[str, Any] = {**json.loads(done.stderr.splitlines()[-1]), "said": done.stdout}
    return answer


def test_a_dry_run_says_what_it_would_come_to_and_writes_nothing(
    story: Forgetful, capsys: pytest.CaptureFixture[str]
) -> None:
    home = story.circle.homes["ada"]
    before = home.ledger_db.read_bytes()
    plan = told(capsys, home, "forget", "ada/1", "--dry-run")
    assert [(a["name"], a["number"], a["fate"]) for a in plan["asked"]] == [("ada", 1, "released")]
    assert [(r["number"], r["later"], r["twice"]) for r in plan["releases"]] == [(1, 2, True)]
    assert [(d["name"], d["number"], d["certainty"]) for d in plan["descendants"]] == [("bob", 2, "contains")]
    assert home.ledger_db.read_bytes() == before
    assert run(["forget", "ada/1", "--dry-run", "--home", str(home.path)]) == 0
    assert "bob/2 contains something of it" in capsys.readouterr().out


def test_what_is_meant_must_be_clear(story: Forgetful, capsys: pytest.CaptureFixture[str]) -> None:
    home = story.circle.homes["ada"]
    assert "no contribution of this epoch" in refused(capsys, home, "forget", "nobody", "--dry-run")
    assert "no contribution of this epoch" in refused(capsys, home, "forget", "ada/7", "--dry-run")
    assert "nobody can be asked here" in refused(capsys, home, "forget", "ada/1")
    everything = told(capsys, home, "forget", "bob", "--dry-run")
    assert [a["number"] for a in everything["asked"]] == [1, 2]
    event = everything["asked"][0]["event"]
    assert told(capsys, home, "forget", event[:12], "--dry-run")["asked"] == everything["asked"][:1]


def test_ones_own_goes_at_ones_own_word_and_the_proof_holds_anywhere(
    copied: Forgetful, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = copied.circle.homes["ada"]
    asked = told(capsys, ada, "forget", "ada/1", "--yes", "--no-wait")
    assert (len(asked["requests"]), asked["proposals"], asked["state"]["stage"]) == (1, [], "release")
    assert told(capsys, ada, "forget", "ada/1", "--yes", "--no-wait")["requests"] == [], "nothing is asked for twice"
    copied.circle.deliver()
    cut = copied.release()
    assert [x.reason for x in cut.excluded] == ["erased"]
    done = told(capsys, ada, "forget", "ada/1", "--out", "proof.json")
    assert (done["state"]["stage"], done["state"]["number"]) == ("done", 2)
    (shown,) = done["bundle"]["shown"]["asked"]
    assert (shown["name"], shown["number"], shown["reason"], shown["was_in"]) == ("ada", 1, "erased", [1])
    away = tmp_path / "away"
    away.mkdir()
    shutil.move("proof.json", away / "proof.json")
    answer = outside(
        "verify-bundle", "proof.json", "--json", cwd=away, check="torch sqlite3 sqlite_utils numpy transformers peft"
    )
    assert (answer["code"], answer["loaded"]) == (0, [])
    assert json.loads(answer["said"])["holds"] is True
    again = told(capsys, ada, "verify-bundle", str(away / "proof.json"), "--blobs", str(copied.home("bob") / "blobs"))
    assert (again["repeated"]["releases"], again["repeated"]["without"], again["repeated"]["views"]) == ([1, 2], [1], 1)
    assert run(["forget", "--verify", str(away / "proof.json")]) == 0
    assert "removal from a merge is not unlearning" in capsys.readouterr().out.lower()
    empty = away / "empty"
    empty.mkdir()
    assert run(["verify-bundle", str(away / "proof.json"), "--blobs", str(empty)]) == 2
    capsys.readouterr()


def test_anothers_needs_a_quorum_and_the_same_command_there_approves(
    copied: Forgetful, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ada, cyd = copied.circle.homes["ada"], copied.circle.homes["cyd"]
    asked = told(capsys, ada, "forget", "bob/1", "--yes", "--no-wait", "--days", "0")
    assert (len(asked["proposals"]), asked["state"]["stage"]) == (1, "approvals")
    assert asked["state"]["text"] == "waits for approvals: 1 of 2"
    copied.circle.deliver()
    assert "forget bob/1" in told(capsys, ada, "collective", "requests")["proposals"][0]["text"]
    approved = told(capsys, cyd, "forget", "bob/1", "--yes", "--no-wait")
    assert (approved["approved"], approved["proposals"]) == (asked["proposals"], [])
    copied.circle.decide(*NAMES)
    assert told(capsys, ada, "forget", "bob/1", "--yes", "--no-wait")["state"]["stage"] == "release"
    cut = copied.release()
    assert [x.reason for x in cut.excluded] == ["forgotten"]
    done = told(capsys, cyd, "forget", "bob/1", "--out", "proof.json")
    assert done["bundle"]["shown"]["asked"][0]["reason"] == "forgotten"
    with copied.circle.open("cyd") as session:
        assert bundle.decode(Path("proof.json").read_bytes()).maker == session.member
    wrong = {"bad-decision", "exclusion-without-fault", "C9", "C10"}
    assert not [f for f in told_audit(capsys, ada) if f["id"] in wrong], "an auditor finds nothing wrong with it"


def told_audit(capsys: pytest.CaptureFixture[str], home: Any) -> list[dict[str, Any]]:
    run(["audit", "--home", str(home.path), "--json"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["findings"]
    return found


# -- replay --------------------------------------------------------------------------------------------------------------
def test_a_release_is_recomputed_without_torch_and_everybody_writes_the_same_log(
    story: Forgetful, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = story.circle.homes
    answer = outside(
        "replay",
        "latest",
        "--home",
        str(homes["ada"].path),
        "--log",
        "ada.log",
        cwd=tmp_path,
        check="torch transformers peft",
    )
    assert (answer["code"], answer["loaded"]) == (0, [])
    assert "release 1 was recomputed byte for byte" in answer["said"]
    log = (tmp_path / "ada.log").read_bytes()
    folder = tmp_path / "observed"  # as an observer leaves it: a ledger and blobs, no configuration
    folder.mkdir()
    shutil.copy(homes["bob"].ledger_db, folder / "ledger.db")
    shutil.copytree(homes["bob"].blobs, folder / "blobs")
    found = told(capsys, homes["cyd"], "replay", "1", "--from", str(folder))
    assert replaying.log_bytes(found["log"]) == log
    assert canon.decode(log, max_bytes=replaying.MAX_LOG)["recomputed"] is True  # type: ignore[index, call-overload]
    assert [s["holds"] for s in found["steps"]] == [True] * 8
    assert [s["step"] for s in found["steps"]] == [
        "entries", "rules", "certificate", "taken-in", "left-out", "recipe", "registers", "model"
    ]  # fmt: skip
    assert told(capsys, homes["cyd"], "replay", found["release"][:8])["model"] == found["model"]
    assert "0 have this name" in refused(capsys, homes["cyd"], "replay", "7")


def test_what_is_missing_could_not_be_recomputed_and_what_differs_is_wrong(
    copied: Forgetful, capsys: pytest.CaptureFixture[str]
) -> None:
    home = copied.circle.homes["ada"]
    fold = copied.circle.fold("ada")
    blob = home.blobs / next(c.blob for by in fold.in_cut(fold.cut).values() for c in by)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # a damaged blob counts as missing
    assert run(["replay", "latest", "--home", str(home.path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["log"]["recomputed"]) == ("could-not-check", False)
    blob.write_bytes(data)
    with contextlib.closing(sqlite3.connect(home.ledger_db, isolation_level=None)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE entries SET leaf = zeroblob(32) WHERE place = (SELECT max(place) FROM entries)")
    assert run(["replay", "latest", "--home", str(home.path)]) == 1
    assert "WRONG           entries" in capsys.readouterr().out
