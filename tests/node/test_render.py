from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from rich.console import Console

from node.cli import render, render_audit, render_data, render_training

ME, OTHER, DIGEST = "a" * 64, "b" * 64, "0123456789abcdef" * 4

STATUS: Mapping[str, Any] = {
    "node": "clinic",
    "member": ME,
    "peer": "12D3KooWPeer",
    "addresses": ["/ip4/127.0.0.1/tcp/4242/p2p/12D3KooWPeer"],
    "collective": DIGEST,
    "name": "three",
    "role": "contributor",
    "epoch": DIGEST,
    "height": 2,
    "view": DIGEST,
    "peers": [{"member": OTHER, "name": "cinema", "peer": "12D3KooWOther", "connected": True}],
    "heads": [
        {"member": ME, "name": "clinic", "size": 17, "root": DIGEST},
        {"member": OTHER, "name": "cinema", "size": 9, "root": DIGEST},
    ],
    "pending": [{"member": OTHER, "name": "cinema", "digest": DIGEST}],
    "releases": [{"height": 2, "digest": DIGEST, "model": DIGEST, "members": [ME, OTHER], "time": 1_700_000_000_000}],
    "running": False,
    "paused": "peers were not asked",
    "double_votes": [OTHER],
    "training": {"state": "training", "step": 3, "steps": 10},
    "serving": {"url": "http://127.0.0.1:8000", "ready": True, "models": ["base", "view"]},
    "errors": [{"time": 1_700_000_000_000, "code": "swarm-down", "text": "couldn't dial [cinema]: refused"}],
}
LOG: Mapping[str, Any] = {
    "decisions": [
        {
            "height": 1,
            "attempt": 0,
            "kind": "release",
            "digest": DIGEST,
            "model": DIGEST,
            "time": 1_700_000_000_000,
            "contributions": [{"member": ME, "name": "clinic", "count": 2, "blob": DIGEST, "bytes": 76_543}],
            "votes": [
                {
                    "member": OTHER,
                    "name": "cinema",
                    "vote": "accept",
                    "committed": True,
                    "versus_base": -34,
                    "versus_parent": 2,
                    "rows": 200,
                }
            ],
            "number": 1,
            "proposer": "clinic",
            "excluded": [{"event": DIGEST, "reason": "norm"}],
        }
    ]
}
AUDIT: Mapping[str, Any] = {
    "verdict": "findings",
    "findings": [
        {"id": "bad-chain", "severity": "error", "member": ME, "seq": 4, "event": DIGEST, "text": "a gap after 3"}
    ],
    "feeds": [{"member": ME, "name": "clinic", "size": 17, "root": DIGEST}],
    "releases": [{"height": 1, "digest": DIGEST, "recomputed": True, "matches": False}],
    "unchecked": ["release 2 could not be recomputed: 1 blobs are not here"],
}
CHARTER: Mapping[str, Any] = {
    "id": DIGEST,
    "name": "three",
    "base": {"name": "tiny", "digest": DIGEST},
    "adapter": {"rank": 16, "targets": ["q_proj", "v_proj"], "seed": DIGEST},
    "recipe": "contributor-mean/1",
    "quorum": 2,
    "members": [{"id": ME, "name": "clinic", "role": "contributor", "weight": 1}],
}
REQUESTS: Mapping[str, Any] = {
    "requests": [{"member": OTHER, "name": "cinema", "time": 1_700_000_000_000}],
    "proposals": [{"digest": DIGEST, "kind": "amendment", "by": ME, "text": "admit cinema", "accepts": 1, "needed": 2}],
}
DATASETS: Mapping[str, Any] = {
    "datasets": [{"name": "clinic", "kind": "text", "train_rows": 900, "held_out_rows": 100, "train_root": DIGEST}]
}
Show = Callable[[Console, Any], None]


def shown(show: Show, result: object) -> str:
    out = Console(width=120, record=True, file=None, color_system=None, quiet=False)
    with out.capture() as captured:
        show(out, result)
    return captured.get()


@pytest.mark.parametrize(
    ("show", "result", "expected"),
    [
        (render.status, STATUS, ["clinic", "/ip4/127.0.0.1/tcp/4242/p2p/12D3KooWPeer", "three 0123456789ab", "3/10",
                                 "this node", "yes", "not running", "peers were not asked", "double votes",
                                 "17", "http://127.0.0.1:8000", "couldn't dial [cinema]: refused"]),
        (render.log, LOG, ["height 1: release 1 0123456789ab", "by clinic", "74.7 KiB", "accept", "-0.34",
                                 "+0.02", "200", "cinema", "0123456789ab: norm"]),
        (render_audit.audit, AUDIT, ["findings: 1 feeds, 1 releases", "bad-chain", "aaaaaaaaaaaa #4", "a gap after 3", "no",
                                     "not checked: release 2"]),
        (render.charter, CHARTER, [DIGEST, "tiny", "rank 16", "targets q_proj v_proj", "contributor"]),
        (render.requests, REQUESTS, [OTHER, "admit cinema", "1 of 2"]),
        (render_data.datasets, DATASETS, ["clinic", "900", "100"]),
        (render.done, {"text": "asked [all] to join", "digest": DIGEST}, ["asked [all] to join", DIGEST]),
        (render.losses, {"losses": {"base": {"micronats": 4_229_500, "rows": 200},
                                    "release-1": {"micronats": 3_776_000, "rows": 200}}}, ["4.2295", "3.7760", "-0.45"]),
        (render_training.trained, {"run": "r1", "steps": 10, "loss_before": 423, "loss_after": 390, "digest": DIGEST,
                          "bytes": 2048, "sent": 73728}, ["4.23 -> 3.90", "73728", "2.0 KiB"]),
        (render_data.forgotten, {"dry_run": True, "datasets": ["notes", "calls"], "rows": 7, "held_out_rows": 2,
                            "contributions": [DIGEST, ME], "bodies": 4, "requests": []},
         ["would forget 7 rows of notes, calls", "4 to erase", "2 contributions", "trained again"]),
        (render_data.forgotten, {"dry_run": False, "datasets": ["notes"], "rows": 7, "held_out_rows": 2,
                            "contributions": [], "bodies": 0, "requests": [DIGEST]},
         ["forgot 7 rows of notes", "0 erased here", "nothing published", "0123456789ab"]),
        (render.status, {**STATUS, "marked": [DIGEST], "erasures": [
            {"request": DIGEST, "by": "clinic", "dataset": "notes", "rows": 7, "missing": ["cinema", "security"],
             "deadline": 1_700_000_000_000, "overdue": True}]},
         ["1 contributions were trained on rows that were forgotten", "Erasures", "cinema, security", "notes"]),
        (render_data.datasets, {"datasets": [{"name": "notes", "kind": "text", "train_rows": 9, "held_out_rows": 1,
                                         "characters": 99, "train_root": DIGEST, "sealed": True, "tags": ["a", "b"],
                                         "retention_days": 30, "overdue": True}]},
         ["a, b", "sealed", "over 30 days", "--expired"]),
    ],
)  # fmt: skip
def test_a_person_sees_what_matters(show: Show, result: object, expected: list[str]) -> None:
    text = shown(show, result)
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    "show", [render.status, render.log, render_audit.audit, render.charter, render.requests, render_data.datasets, render.done,
             render.models, render_training.trained, render.losses, render_data.forgotten]
)  # fmt: skip
def test_an_answer_with_nothing_in_it_is_shown_too(show: Show) -> None:
    shown(show, {})


def test_a_node_without_a_collective_is_told_what_to_do() -> None:
    assert "create or join one" in shown(render.status, {"node": "clinic", "member": ME, "collective": ""})


def test_foreign_text_cannot_change_how_it_is_printed() -> None:
    text = shown(render.done, {"name": "[red]x[/] \x1b[2J"})
    assert "[red]x[/]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB")])
def test_sizes_have_units(count: int, text: str) -> None:
    assert render.size(count) == text
