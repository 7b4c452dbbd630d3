"""A grant decision: microseconds for chains of 1 to 3 grants, among few and many, against Cedar on the same chains.

Both run in turns in one process, CPU time, median of the rounds. Cedar gets each link as a policy set that was parsed before,
so only its evaluation is measured; it decides a link at a time, as the differential test uses it. Also measured: a decision
as an auditor takes it (in a past, nothing prepared), and how fast the book folds entries.

    python benchmarks/bench_access.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness import Figure, finish, options, table

from ledger import events
from ledger.access.book import Book, Past
from ledger.access.decision import decide
from ledger.entry import Record, make
from ledger.events import AccessRequest, Audience, GrantIssued, Selector
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, digest
from protocol.keys import SigningKey, member_id

NOW = 1_000_000
NAMES = ("ada", "bob", "cyd", "dan")
KEYS = {name: SigningKey(hashlib.sha256(name.encode()).digest()) for name in NAMES}
IDS = {name: member_id(KEYS[name]) for name in NAMES}
ROLES = dict.fromkeys(IDS.values(), "contributor")
BATCH = 2_000


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    return finish(measure(arguments), arguments, began=began)


class Feeds:
    """Members who write entries, and a book that has them all."""

    def __init__(self) -> None:
        self.book = Book()
        self.records: dict[str, list[Record]] = {name: [] for name in NAMES}

    def say(self, name: str, event: events.Event) -> EventId:
        feed = self.records[name]
        record = make(
            KEYS[name],
            collective=CollectiveId(digest(b"bench")),
            seq=len(feed),
            prev=feed[-1].entry.leaf if feed else ZERO,
            ts=NOW,
            type=event.TYPE,
            seen=[],
            body=event.to_json(),
            salt=bytes(16),
        )
        feed.append(record)
        self.book.apply(record)
        return record.entry.event

    def commit(self) -> None:
        root = digest(b"root")
        self.say(
            "ada",
            events.DataCommitted(dataset="notes", train_rows=9, held_out_rows=1, train_root=root, held_out_root=root),
        )

    def chain(self, links: int, *, uses: int | None = None, salt: str = "") -> list[EventId]:
        """Ada grants to bob, bob to cyd, cyd to dan: as many links as wanted."""
        made: list[EventId] = []
        for i in range(links):
            made.append(
                self.say(
                    NAMES[i],
                    GrantIssued(
                        dataset="notes",
                        selector=Selector(columns=("prompt", "text"), tags_all=("consented",), tags_none=("minor",)),
                        actions=("evaluate", "train"),
                        purposes=("care", "research"),
                        audience=Audience(members=(IDS[NAMES[i + 1]],)),
                        not_before=0,
                        expires=2 * NOW,
                        uses=uses,
                        epsilon_micro=None,
                        depth=links - 1 - i,
                        parent=made[-1] if made else None,
                        basis="",
                        nonce=Digest(digest(f"{salt}{i}{len(self.records[NAMES[i]])}".encode())),
                    ),
                )
            )
        return made


def request(links: int, **fields: Any) -> AccessRequest:
    return AccessRequest(
        **{
            "actor": IDS[NAMES[links]],
            "action": "train",
            "dataset": f"{IDS['ada']}/notes",
            "purpose": "research",
            "columns": ("text",),
            "rows": 9,
            "epsilon_micro": None,
            "at": NOW,
            "run": "",
            **fields,
        }
    )


def measure(arguments: argparse.Namespace) -> list[Figure]:
    past = Past(roles=ROLES)
    runs: dict[str, Callable[[], float]] = {}
    for links in (1, 2, 3):
        feeds = Feeds()
        feeds.commit()
        feeds.chain(links, uses=1000)
        runs[f"allow-{links}"] = repeated(feeds.book, request(links), past, allowed=True)
        runs[f"deny-{links}"] = repeated(feeds.book, request(links, purpose="ads"), past, allowed=False)
        runs[f"cedar-{links}"] = cedar(links)
        everything = Past(sizes={IDS[n]: len(feeds.records[n]) for n in NAMES}, roles=ROLES)
        runs[f"audit-{links}"] = repeated(feeds.book, request(links), everything, allowed=True, times=200)
    crowd = Feeds()
    crowd.commit()
    for i in range(30):
        for links in (1, 2, 3):
            crowd.chain(links, salt=f"{i}-{links}")
    runs["allow-among-180"] = repeated(crowd.book, request(3), past, allowed=True)
    entries = [record for feed in crowd.records.values() for record in feed]
    runs["fold"] = lambda: folding(entries)
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            took[name].append(run())
    middle = {name: statistics.median(each) * 1e6 for name, each in took.items()}
    table("CPU microseconds each", ("what", "median", "best"), [(n, middle[n], min(took[n]) * 1e6) for n in runs])
    worst = max(middle[f"{what}-{links}"] for what in ("allow", "deny") for links in (1, 2, 3))
    ratio = min(middle[f"cedar-{links}"] / middle[f"allow-{links}"] for links in (1, 2, 3))
    return [
        Figure(id="access.decide-us", value=worst, unit="us", floor=10, aim=4, lower=True),
        Figure(id="access.decide-among-180-us", value=middle["allow-among-180"], unit="us", floor=10, lower=True),
        Figure(id="access.cedar-over-ours", value=ratio, unit="x", floor=5, aim=20),
        Figure(id="access.decide-in-a-past-us", value=middle["audit-3"], unit="us"),
        Figure(id="access.fold-us", value=middle["fold"], unit="us"),
    ]


def repeated(book: Book, asked: AccessRequest, past: Past, *, allowed: bool, times: int = BATCH) -> Callable[[], float]:
    if decide(book, asked, past).allowed != allowed:
        raise AssertionError("the decision that is measured is not the one that was meant")

    def run() -> float:
        start = time.process_time()
        for _ in range(times):
            decide(book, asked, past)
        return (time.process_time() - start) / times

    return run


def folding(entries: Sequence[Record]) -> float:
    book = Book()
    start = time.process_time()
    book.apply_all(entries)
    return (time.process_time() - start) / len(entries)


def cedar(links: int) -> Callable[[], float]:
    """The same question to Cedar, a link at a time, policies and entities parsed before."""
    from cedarpy import Entities, PolicySet, is_authorized

    policies = [
        PolicySet.from_str(
            f'permit(principal == Member::"{IDS[NAMES[i + 1]]}", action, resource == DataSet::"notes") when {{ '
            '["evaluate","train"].contains(context.action) && ["care","research"].contains(context.purpose) && '
            '["prompt","text"].containsAll(context.columns) && context.at >= 0 && context.at < 2000000 && '
            f"context.used < 1000 && context.below <= {links - 1 - i} }};"
        )
        for i in range(links)
    ]
    nobody = Entities.from_json_str("[]")

    def ask(holder: MemberId, index: int) -> bool:
        question = {
            "principal": {"type": "Member", "id": holder},
            "action": {"type": "Action", "id": "use"},
            "resource": {"type": "DataSet", "id": "notes"},
            "context": {
                "action": "train",
                "purpose": "research",
                "columns": ["text"],
                "at": NOW,
                "used": 0,
                "below": links - 1 - index,
            },
        }
        return bool(is_authorized(question, policies[index], nobody).allowed)

    if not all(ask(IDS[NAMES[i + 1]], i) for i in range(links)):
        raise AssertionError("Cedar denies what is measured")

    def run() -> float:
        start = time.process_time()
        for _ in range(100):
            for i in range(links):
                ask(IDS[NAMES[i + 1]], i)
        return (time.process_time() - start) / 100

    return run


if __name__ == "__main__":
    sys.exit(main())
