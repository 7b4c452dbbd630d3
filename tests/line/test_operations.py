"""Promises to whoever runs a node: it takes up settings, peers and bans while it runs, and says what it cannot."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from line import published
from real_node import Node, free_port, until

from node import config
from node.cli import run
from node.home import Home

DASHBOARD = Path(__file__).parents[2] / "configs" / "grafana-dashboard.json"


@pytest.fixture
def node(line):
    """One of the three, whose node.toml is afterwards what it was, in the file and in the running node."""
    node = line["security"]
    text = node.home.config_file.read_bytes()
    yield node
    node.home.config_file.write_bytes(text)
    node.call("config.reload")


def typed(node, *arguments):
    """`fishernet ARGUMENTS --home HOME` in this process: its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*arguments, "--home", str(node.home.path)])
    return code, out.getvalue(), err.getvalue()


def answer(node, *arguments):
    """What a command prints with --json; it has to succeed."""
    code, out, err = typed(node, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def status_of(node, path, key=""):
    """The HTTP status of a GET at the node's API."""
    port = int(node.status()["serving"]["url"].split(":")[2].split("/")[0])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as api:
        api.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
        return api.getresponse().status


def test_a_reload_changes_what_can_change_at_once_and_names_what_needs_a_restart(node):
    pid, key = node.pid, "a-key-of-eight-or-more"
    assert status_of(node, "/v1/models") == 200
    for name, value in {
        "serve.api_keys": [key],
        "serve.port": 1,
        "train.steps": 3,
        "egress.max_norm": 40.0,
        "log.level": "debug",
        "log.format": "json",
        "log.file": "node.log",
    }.items():
        section, _, field = name.partition(".")
        config.update(node.home.config_file, section, field, value)
    told = answer(node, "config", "reload")
    assert set(told["changed"]) == {
        "serve.api_keys", "train.steps", "egress.max_norm", "log.level", "log.format", "log.file",
    }  # fmt: skip
    assert list(told["restart"]) == ["serve.port"]
    assert told["failed"] == {}
    assert node.pid == pid
    assert node.running
    assert (status_of(node, "/v1/models"), status_of(node, "/v1/models", key)) == (401, 200)
    said = [json.loads(line) for line in (node.home.path / "node.log").read_text().splitlines()]
    assert "reloaded" in [each["event"] for each in said]
    assert key not in (node.home.path / "node.log").read_text()
    assert node.call("train.now", 240)["steps"] == 3
    policies = [body["policy"]["max_norm_micro"] for type_, body in node.own() if type_ == "egress.set"]
    assert policies[-1] == 40_000_000, "the new policy stood in the feed before anything left under it"

    again = answer(node, "config", "reload")
    assert (again["changed"], list(again["restart"])) == ([], ["serve.port"]), "named until it is done"


def test_a_broken_file_changes_nothing_and_is_explained(node):
    whole = node.home.config_file.read_text()
    node.home.config_file.write_text(whole.replace("api_keys = []", 'api_keys = ["another-key-1"]\nprot = 3'))
    code, _, err = typed(node, "config", "reload")
    assert code == 1
    assert "prot" in err
    os.kill(node.pid, signal.SIGHUP)
    until(lambda: "event=not-reloaded" in node.log.read_text(), what="SIGHUP says it too")
    assert status_of(node, "/v1/models") == 200, "it asks for no key"

    node.home.config_file.write_text(whole.replace('file = ""', 'file = "missing/folder/node.log"'))
    code, _, err = typed(node, "config", "reload")
    assert code == 1
    assert "couldn't write the log" in err
    assert node.running


def test_a_banned_member_is_out_at_once_and_back_when_the_ban_is_lifted_without_a_restart(line):
    node, other = line["clinic"], line["cinema"]

    def connected():
        return {each["name"]: each["connected"] for each in answer(node, "peer", "list")["members"]}[other.name]

    until(connected, what="they are connected")
    made = answer(node, "peer", "ban", other.name, "--for", "2h", "--why", "a test")
    assert (made["member"], made["name"], made["by"]) == (other.member, other.name, "operator")
    assert 7_100_000 < made["until"] - made["since"] <= 7_200_000
    until(lambda: not connected(), what="it is hung up on")
    assert "a test" in typed(node, "peer", "list")[1]
    assert answer(node, "peer", "unban", other.member[:8])["lifted"] == [other.member]
    until(connected, what="it is back")
    assert typed(node, "peer", "unban", other.name)[0] == 1


def test_peers_and_bans_of_a_stopped_node_wait_for_its_start(auditor, line):
    stranger = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    before = auditor.home.config_file.read_bytes()
    with contextlib.ExitStack() as undo:
        undo.callback(auditor.home.config_file.write_bytes, before)
        address = f"/ip4/192.0.2.7/tcp/4242/p2p/{stranger}"
        assert answer(auditor, "peer", "add", address)["dialled"] is False
        assert address in auditor.home.read_config().network.peers
        assert typed(auditor, "peer", "add", "192.0.2.7:4242")[0] == 1
        answer(auditor, "peer", "ban", stranger)
        shown = answer(auditor, "peer", "list")
        assert not shown["running"]
        assert [(ban["peer"], ban["until"]) for ban in shown["bans"]] == [(stranger, None)]
        assert typed(auditor, "peer", "ban", "nobody")[0] == 1
        assert answer(auditor, "peer", "unban", stranger)["lifted"] == [stranger]
        assert answer(auditor, "peer", "remove", stranger)["removed"] == 1
        assert answer(auditor, "peer", "list")["bans"] == []


def test_prometheus_finds_every_number_of_the_dashboard_and_members_by_name(line):
    node = line["clinic"]
    port = int(node.status()["serving"]["url"].split(":")[2].split("/")[0])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as api:
        api.request("GET", "/v1/models")
        api.getresponse().read()
        api.request("GET", "/metrics")
        text = api.getresponse().read().decode()
    declared = set(re.findall(r"^# TYPE (\w+) ", text, flags=re.MULTILINE))
    asked = set(re.findall(r"\b(?:fishernet|process)_\w+", DASHBOARD.read_text())) - {"fishernet_nodes"}
    assert len(asked) > 15
    assert {re.sub(r"_bucket$", "", name) for name in asked} <= declared
    numbers = dict(re.findall(r"^(fishernet_\S+) (\S+)$", text, flags=re.MULTILINE))
    assert float(numbers["fishernet_ledger_releases"]) == len(node.releases())
    assert float(numbers['fishernet_member_entries{member="cinema"}']) > 0
    assert float(numbers['fishernet_member_connected{member="security"}']) == 1
    assert float(numbers["fishernet_ledger_paused"]) == 0
    assert {'member="auditor"'} <= {m for name in numbers for m in re.findall(r'member="\w+"', name)}
    for name in numbers:
        assert re.fullmatch(r'fishernet_\w+(\{(\w+="[\w ./+-]*",?)*\})?', name), name


def test_the_doctor_of_a_running_node_finds_members_clock_and_reachability_well(line):
    node = line["clinic"]
    others = len(line.nodes) - 1
    until(
        lambda: sum(each["connected"] for each in answer(node, "peer", "list")["members"]) >= others, what="connected"
    )
    well = {
        "daemon",
        "writing",
        "ports",
        "permissions",
        "keys",
        "ledger",
        "rows",
        "sync",
        "versions",
        "base model",
        "clock",
    }

    def examined():
        """What a doctor found whom everybody answered in time: on a busy machine some do not, and it says so."""
        began = time.monotonic()
        code, out, _ = typed(node, "doctor", "--json")
        seconds = time.monotonic() - began
        assert code == json.loads(out)["code"], out
        found = {each["name"]: each for each in json.loads(out)["findings"]}
        assert all(each["cure"] for each in found.values() if each["level"] != "ok")
        fine = {name for name, each in found.items() if each["level"] == "ok"}
        said = {"clock": f"{others} members", "reachability": "reaches us at /ip4/127.0.0.1"}
        answered = all(name in found and text in found[name]["cause"] for name, text in said.items())
        return seconds if answered and code < 2 and well <= fine else 0.0

    seconds = until(examined, 240, what="everything is well")
    assert seconds < 30, "a bound for a machine that does much else; measured: about two"
    assert "missing: auditor" in typed(node, "doctor")[1]


def test_the_doctor_of_a_stopped_node_names_cause_and_cure(auditor):
    text = auditor.home.config_file.read_text()
    with contextlib.ExitStack() as undo:
        undo.callback(auditor.home.config_file.write_text, text)
        taken = undo.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        config.update(auditor.home.config_file, "network", "listen", [f"/ip4/127.0.0.1/tcp/{taken}"])
        undo.callback(auditor.home.ledger_key.chmod, 0o600)
        auditor.home.ledger_key.chmod(0o644)
        code, out, _ = typed(auditor, "doctor", "--json")
        found = {each["name"]: each for each in json.loads(out)["findings"]}
        assert code == 2
        assert (found["ports"]["level"], f"sport = :{taken}" in found["ports"]["cure"]) == ("fail", True)
        assert found["permissions"]["level"] == "fail"
        assert found["permissions"]["cure"].startswith("chmod")
        assert found["daemon"]["cure"] == "fishernet up"
        shown = typed(auditor, "doctor")[1]
        assert f"ss -ltnp 'sport = :{taken}'" in shown
        auditor.home.config_file.write_text(text + "\n[trian]\n")
        code, out, _ = typed(auditor, "doctor", "--json")
        assert (code, next(e["level"] for e in json.loads(out)["findings"] if e["name"] == "config")) == (2, "fail")


def backed_up(node, file, monkeypatch):
    """A backup of a running node, with its keys."""
    monkeypatch.setenv("FISHERNET_BACKUP_PASSPHRASE", "a passphrase for the test")
    made = answer(node, "backup", str(file))
    assert made["own_size"] > 0
    return made


def no_forks(line):
    return not any(n.forks() or n.fold().forked or n.fold().double_votes for n in line.nodes)


def test_an_old_backup_of_a_lost_node_forks_nothing_and_takes_back_nothing(line, tmp_path, monkeypatch):
    node, file = line["cinema"], tmp_path / "cinema.backup"
    made = backed_up(node, file, monkeypatch)
    line.train([node])
    line.train([node])
    line.settle()
    node.kill()
    others = [each for each in line.nodes if each.running]

    def known():
        sizes = {each.fold().sizes[node.member] for each in others}
        return sizes.pop() if len(sizes) == 1 else 0

    before = node.own()[: until(known, what="the others hold the same of its feed")]  # its last word may have been lost
    contributed = [body["blob"] for type_, body in before if type_ == "contribution.published"]
    assert len(before) > made["own_size"]
    shutil.rmtree(node.home.path)

    done = answer(node, "restore", str(file))
    assert {"keys", "ledger.db", "rows.db", "node.toml"} <= set(done["taken"])
    assert len(node.own()) == made["own_size"]
    line.start()
    after = node.own()
    assert after[: len(before)] == before, "what it had written after the backup came back from the others"
    assert after[len(before)][0] == "node.started"
    fold = node.fold()
    mine = fold.contributions[node.member]
    assert [c.blob for c in mine][: len(contributed)] == contributed
    assert {fold.fate(c) for c in mine} <= {"released", "pending"}
    line.train([node])
    assert [body["number"] for body in published(node)] == list(range(1, len(contributed) + 2))
    line.settle()
    assert {fold.fate(c) for fold in [node.fold()] for c in fold.contributions[node.member]} <= {"released", "pending"}
    assert no_forks(line)


@pytest.mark.slow
def test_a_running_node_takes_an_old_backup_by_starting_anew_and_gets_its_own_entries_back(line, tmp_path, monkeypatch):
    node, file = line["cinema"], tmp_path / "cinema.backup"
    backed_up(node, file, monkeypatch)
    line.train([node])
    line.settle()
    before, pid = node.own(), node.pid
    assert answer(node, "restore", str(file))["taken"] == [], "everything is whole"
    done = answer(node, "restore", str(file), "--replace")
    assert done["waits"]
    until(lambda: "event=restored" in node.log.read_text(), what="it starts anew")
    until(lambda: node.status().get("ready"), 240, what="it works again")
    assert (node.pid, node.running) == (pid, True)
    assert node.own()[: len(before)] == before
    line.settle()
    assert no_forks(line)


@pytest.mark.slow
def test_a_second_node_with_the_same_key_writes_nothing_until_the_first_is_gone(line, tmp_path, monkeypatch):
    node, file = line["cinema"], tmp_path / "cinema.backup"
    backed_up(node, file, monkeypatch)
    line.settle()
    home = Home(path=tmp_path / "twin")
    assert run(["restore", str(file), "--home", str(home.path), "--json"]) == 0
    config.update(home.config_file, "network", "listen", [f"/ip4/127.0.0.1/tcp/{free_port()}"])
    second = Node(home, 0)
    second.start()
    try:
        until(lambda: "another node with this node" in str(second.status().get("paused")), 240, what="the second waits")
        assert "stop the other node" in typed(second, "doctor")[1]
        line.train([node])
        before = node.own()
        node.stop()
        until(second.ready, 240, what="the second takes over")
        assert second.own()[: len(before)] == before, "with all that the first has written"
        assert second.own()[len(before)][0] == "node.started"
    finally:
        second.stop()
    line.start()
    line.settle()
    assert no_forks(line)


def test_a_restore_beside_the_running_node_is_warned_about(line, tmp_path, monkeypatch, capsys):
    node, file = line["cinema"], tmp_path / "cinema.backup"
    backed_up(node, file, monkeypatch)
    capsys.readouterr()
    assert run(["restore", str(file), "--home", str(tmp_path / "twin"), "--json"]) == 0
    warning = json.loads(capsys.readouterr().out)["warnings"][0]
    assert "answers at" in warning
    assert "fork" in warning
