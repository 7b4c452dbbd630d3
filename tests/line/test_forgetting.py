"""Promises of forgetting on running nodes: two `fishernet up` processes, one with plain rows, one with sealed ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line, refused, running
from real_node import Node, make_node, sentences, until

from ledger.cuts import Cut
from node.keys.rowkey import RowKey

PERSON = "Canary Person-41d2"
TEXT = "canary-row-77b0"
PASSPHRASE = "a passphrase for bob"
pytestmark = pytest.mark.slow  # real daemons; without them the same is shown by tests/node/test_erasing.py


def rows(node: Node, *, about: int) -> None:
    """Ordinary rows, and some about a person, filed under that person."""
    lines = [{"text": text, "who": f"patient {n}"} for n, text in enumerate(sentences(node.name, 60))]
    lines += [
        {"text": f"{TEXT} {n}: {PERSON} came with a cough and went with a smile.", "who": PERSON} for n in range(about)
    ]
    file = node.home.path.parent / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    node.ask("data.add", path=str(file), dataset=node.name, subject_field="who", held_out_ppm=300_000)
    file.unlink()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("forgetting")
    ada = make_node(folder, "ada", train__auto=False)
    bob = make_node(folder, "bob", train__auto=False, passphrase=PASSPHRASE)
    for node in (ada, bob):
        rows(node, about=30)
    with running(Line.found([ada, bob], wait_for=2)) as line:
        line.release()
        yield line


def raw(node: Node) -> bytes:
    """Every byte of a home and of the daemon's log; sockets are no files."""
    files = [file for file in sorted(node.home.path.rglob("*")) if file.is_file()]
    return b"\0".join(file.read_bytes() for file in [*files, node.log])


def left_out(node: Node) -> set[str]:
    cut = node.fold().cut
    return {x.event for x in cut.excluded if x.reason == "erased"} if cut else set()


def serves(node: Node) -> set[str]:
    return {name for name in node.status()["serving"]["models"] if name.startswith("release-")}


def test_sealed_rows_train_a_release_and_the_key_is_in_no_file_argument_or_environment(pair: Line) -> None:
    bob = pair["bob"]
    key = RowKey(bob.home, PASSPHRASE).get()
    assert key is not None
    assert bob.fold().contributions[bob.member]
    told = [raw(bob)]
    for pid in bob.tree() - {bob.pid}:
        process = Path(f"/proc/{pid}")
        assert not process.exists() or PASSPHRASE.encode() not in (process / "environ").read_bytes()
        told += [(process / name).read_bytes() for name in ("cmdline", "environ") if process.exists()]
    for secret in (key, key.hex().encode(), base64.b64encode(key), TEXT.encode(), PERSON.encode()):
        assert not any(secret in each for each in told)
    assert TEXT.encode() in raw(pair["ada"]), "the search finds what lies in plain rows"


def test_no_key_of_a_member_stands_in_any_feed(pair: Line) -> None:
    """Attack 72: neither the keys that sign, dial or open rows, nor the passphrase, in what every member copies."""
    for node in pair.nodes:
        identity = node.home.unlock(node.passphrase)
        keys = [
            bytes(identity.key),
            bytes(identity.transport),
            RowKey(node.home, node.passphrase).get() or PASSPHRASE.encode(),
        ]
        forms = [form for key in keys for form in (key, key.hex().encode(), base64.b64encode(key))]
        for holder in pair.nodes:
            ledger = b"".join(file.read_bytes() for file in holder.home.path.glob("ledger.db*"))
            assert identity.member.encode() in ledger
            assert not any(form in ledger for form in forms)


def test_a_run_on_rows_that_are_forgotten_meanwhile_is_thrown_away(pair: Line) -> None:
    ada = pair["ada"]
    pair.settle()
    before = len(ada.fold().contributions[ada.member])
    look = {"dataset": "ada", "dry_run": True}
    who = next(w for n in range(60) if ada.ask("data.forget", subject=(w := f"patient {n}"), **look)["train_rows"])
    with refused(lambda: ada.call("train.now", 120, steps=400)) as errors:
        until(lambda: ada.status()["training"].get("step"), what="the run has drawn its rows")
        result = ada.call("data.forget", 60, dataset="ada", subject=who)
    assert (result["rows"], len(result["requests"])) == (1, 1)
    assert ["forgotten meanwhile" in str(error) for error in errors] == [True]
    assert len(ada.fold().contributions[ada.member]) == before
    assert not list(ada.home.runs.glob("*/theta.npy"))


def test_forgetting_on_running_nodes_ends_with_every_holder_clean_and_the_record_sound(pair: Line) -> None:
    ada, bob = pair["ada"], pair["bob"]
    pair.settle()
    done = ada.cli("data", "forget", "ada", "--subject", PERSON, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], len(result["requests"])) == (30, 1)
    assert result["contributions"] == [c.event for c in ada.fold().contributions[ada.member]]
    for node in pair.nodes:
        until(lambda node=node: node.status().get("erasures") == [], 60, what=f"{node.name} knows that all confirmed")
    assert [body["bodies"] for kind, body in bob.own() if kind == "erasure.done"][-1] == result["bodies"]
    marked = set(result["contributions"])
    assert result["releases"] == [d.value.number for d in ada.fold().releases if isinstance(d.value, Cut)][:1]
    for node in pair.nodes:
        until(lambda node=node: marked <= left_out(node), 120, what=f"{node.name} decides a release without them")
        until(
            lambda node=node: serves(node) == {f"release-{len(node.releases())}"}, what=f"{node.name} serves that alone"
        )
    for secret in (TEXT, PERSON, "canary"):
        assert secret.encode() not in raw(ada)
        assert secret.encode() not in bob.log.read_bytes()
    for node in pair.nodes:
        audited = node.cli("audit", "--json")
        assert audited.returncode == 0, audited.stdout[-3000:]
        told = json.loads(audited.stdout)
        assert told["erased"] >= result["bodies"] > 0
        assert {each["severity"] for each in told["findings"]} <= {"notice"}, told["findings"]
    pair.release()
    assert len(ada.fold().contributions[ada.member]) == 2, "what remains is trained on"
