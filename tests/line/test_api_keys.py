"""A running node: its API answers while the model still loads, keys rest on grants, and what was decided is in the feed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from line import Line
from real_node import Node, make_node, sentences, until

pytestmark = pytest.mark.slow  # real daemons; the same without them: tests/node/serving/test_keys.py and test_api.py


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Node]:
    """A collective of one whose model is loaded at its start."""
    node = make_node(tmp_path, "alone", sentences("alone"), train__auto=False, serve__preload=True)
    line = Line.found([node], wait_for=1)
    yield node
    line.stop()


def told(node: Node, *arguments: str) -> Any:
    done = node.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_key_rests_on_a_grant_and_its_decisions_are_in_the_feed(alone: Node) -> None:
    node = alone.start()
    url = until(lambda: (node.status().get("serving") or {}).get("url"), what="the API listens").removesuffix("/v1")
    first = httpx.get(f"{url}/ready")
    assert httpx.get(f"{url}/health").status_code == 200
    assert first.status_code in {200, 503}
    assert first.status_code == 200 or first.json()["missing"], "it says what is missing"
    until(lambda: httpx.get(f"{url}/ready").status_code == 200, what="the model is loaded")
    assert httpx.get(f"{url}/ready").json()["ready"]["engine"] is True
    grant = told(node, "grant", "issue", "alone", "--action", "serve", "--purpose", "triage", "--member", "alone")[
        "grant"
    ]
    key = told(node, "key", "api", "add", "--purpose", "triage", "--grant", grant[:12])
    asked = {"model": "base", "prompt": "In a village", "max_tokens": 2}

    def post(**headers: str) -> httpx.Response:
        return httpx.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=60)

    assert post(authorization=f"Bearer {key['key']}").status_code == 200
    assert post().status_code == 401
    told(node, "grant", "revoke", grant[:12])
    refused = post(authorization=f"Bearer {key['key']}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "revoked")
    assert not any(type_ == "access.served" for type_, _ in node.own()), (
        "they are counted together, not written one by one"
    )
    node.stop()
    (body,) = [body for type_, body in node.own() if type_ == "access.served"]
    assert [(s["key"], s["purpose"], s["reason"], s["requests"]) for s in body["served"]] == [
        (key["id"], "triage", "", 1),
        (key["id"], "triage", "revoked", 1),
    ]
    assert body["served"][0]["answer_tokens"] == 2
    assert body["served"][0]["grants"] == [grant]
    assert "village" not in json.dumps(body)
    audited = node.cli("audit", "--json")
    assert audited.returncode == 0, audited.stdout[-2000:]
