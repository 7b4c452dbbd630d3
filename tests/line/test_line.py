"""Promises of the whole line: three `fishernet up` processes on the tiny model, over real p2pd daemons."""

from __future__ import annotations

import json

import httpx
import pytest
from line import Line
from real_node import make_node, sentences, until

from ledger.cuts import Cut
from protocol.errors import Refused


def api(node, path, body=None):
    """One request to the node's API: answer (parsed unless it streams) and headers."""
    method = "GET" if body is None else "POST"
    answer = httpx.request(method, node.status()["serving"]["url"] + path, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    streams = answer.headers["content-type"].startswith("text/event-stream")
    return (answer.text if streams else answer.json()), answer.headers


def model_names(node):
    return [each["id"] for each in api(node, "/models")[0]["data"]]


def test_three_nodes_make_two_releases_with_equal_digests(line):
    found = [[(r["number"], r["digest"], r["model"]) for r in n.status()["releases"]] for n in line.nodes]
    assert found[0] == found[1] == found[2]
    assert [number for number, _, _ in found[0][:2]] == [1, 2]
    first = line["clinic"].fold().releases[0].value
    assert isinstance(first, Cut)
    assert {x.member for x in first.last} <= {n.member for n in line.nodes}


def test_a_node_that_knows_only_the_founder_finds_the_others(line):
    for node in line.nodes:
        others = {n.name for n in line.nodes if n is not node}
        until(
            lambda node=node, others=others: {p["name"] for p in node.status()["peers"] if p["connected"]} >= others,
            what=f"{node.name} is connected to {others}",
        )


def test_loss_of_every_release_is_below_the_loss_of_the_base_at_every_node(line):
    for node in line.nodes:
        losses = node.call("measure")["losses"]
        assert losses["release-2"]["micronats"] < losses["base"]["micronats"]
        assert losses["release-1"]["micronats"] < losses["base"]["micronats"]


def test_log_shows_who_contributed_and_what_each_voter_measured_in_buckets(line):
    line.settle()
    done = line["security"].cli("log", "--json")
    assert done.returncode == 0, done.stderr
    releases = [d for d in json.loads(done.stdout)["decisions"] if d["kind"] == "release"]
    names = {n.name for n in line.nodes}
    assert {c["name"] for d in releases for c in d["contributions"]} == names
    measured = [v for d in releases for v in d["votes"] if v["versus_base"] is not None]
    assert {v["name"] for v in measured} == names
    assert all(isinstance(v["versus_base"], int) and v["versus_base"] < 0 for v in measured)
    people = line["security"].cli("log")
    assert all(name in people.stdout for name in names)


def test_every_answer_names_the_release_and_the_ledger_head(line):
    line.settle()
    node = line["clinic"]
    status = node.status()
    newest = status["releases"][-1]
    head = next(h["root"] for h in status["heads"] if h["member"] == node.member)
    asked = {"prompt": "In a village", "max_tokens": 4}
    release = f"release-{newest['number']}"
    for model, digest in ((release, newest["digest"]), ("latest", newest["digest"]), ("base", None)):
        answer, headers = api(node, "/completions", {**asked, "model": model})
        assert headers["x-fishernet-head"] == head
        assert digest is None or headers["x-fishernet-release"] == digest
        assert answer["system_fingerprint"].endswith(head[:12])
        assert headers["x-fishernet-release"][:12] in answer["system_fingerprint"]
    chat = {"model": release, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer, headers = api(node, "/chat/completions", chat)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert (headers["x-fishernet-release"], headers["x-fishernet-head"]) == (newest["digest"], head)
    for path, body in (("/completions", {**asked, "model": "view"}), ("/chat/completions", chat)):
        stream, headers = api(node, path, {**body, "stream": True})
        events = [json.loads(e[6:]) for e in stream.split("\n\n") if e.startswith("data: {")]
        assert stream.rstrip().endswith("[DONE]")
        assert all(e["system_fingerprint"].endswith(head[:12]) for e in events)
        assert headers["x-fishernet-head"] == head


def test_a_new_release_is_served_without_restart(line):
    node = line["clinic"]
    pid, before = node.pid, set(model_names(node))
    assert {"base", "view", "release-1", "release-2"} <= before
    digest = line.release()
    number = len(node.releases())
    until(lambda: f"release-{number}" in model_names(node), what="the new release is listed")
    assert set(model_names(node)) > before
    _, headers = api(node, "/completions", {"model": f"release-{number}", "prompt": "a", "max_tokens": 1})
    assert headers["x-fishernet-release"] == digest
    assert node.pid == pid


def test_a_late_fourth_member_is_voted_in_catches_up_contributes_and_is_voted_out(line, tmp_path):
    late = make_node(tmp_path, "late", sentences("late"), train__auto=False)
    late.ask("collective.join", collective=line.id, peers=[line["clinic"].address])
    clinic, security, cinema = line.nodes
    late.start()
    try:
        asks = lambda: any(r["member"] == late.member for r in clinic.call("collective.requests")["requests"])  # noqa: E731
        until(asks, what="the newcomer asks")
        assert not late.fold().known
        assert not late.ready()
        invitation = clinic.call("collective.invite", member=late.member, name="late")["proposal"]
        approve(invitation, [security])
        until(late.ready, what="the newcomer has its seat\n" + late.tail())
        assert late.releases() == clinic.releases()

        four = Line([*line.nodes, late], line.id)
        four.release()
        four.settle()
        fold = clinic.fold()
        assert len(fold.in_cut(fold.cut)[late.member]) == 1
    finally:
        removal = clinic.call("collective.amend", remove=[late.member])["proposal"]
        approve(removal, [security, cinema])
        for node in (*line.nodes, late):
            until(lambda node=node: node.fold().charter.member(late.member) is None, what="the seat is gone")
        with pytest.raises(Refused, match="no contributor's seat"):
            late.call("train.now")
        late.stop()
    assert line.release() not in late.releases()


def approve(proposal, nodes):
    for node in nodes:
        until(lambda node=node: proposal in node.fold().asked, what="the proposal arrives")
        node.call("collective.approve", proposal=proposal)
